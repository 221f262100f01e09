"""The published implementation (PyTorch), as a program that other benchmarks time from outside.

python benchmarks/published.py CODE DEVICE

CODE is a checkout of the published code, the folder that holds the package `time_moe` (Time-MoE) or
`segmoe_forecast` (Seg-MoE); DEVICE is cpu or cuda. It runs in an environment of its own, which has
PyTorch and what the published code asks for (Time-MoE a version of transformers, Seg-MoE einops,
timm, safetensors, matplotlib and tqdm), reads one JSON command a line, and answers each with one
JSON line. It stays alive between commands, so that a benchmark can alternate between its own calls
and those made here.

Of Time-MoE three things are built to be timed: the sparse layer, the update of a whole model, and
its forecast. In the layer the shared expert is replaced by zeros, so that what remains is the
router and the routed experts (and the adding of those zeros). Of Seg-MoE these are the forward pass
and the update of a whole model. All get the arrays that the other side makes from the same seed.
"""

import contextlib
import importlib
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SEED = 0
INIT_SCALE = 0.02


def layer_arrays(
    tokens: int, d_model: int, d_hidden: int, num_experts: int
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """Input [T, D]; kernels of router [D, E], gate, up [E, D, F] and down [E, F, D]; cotangent."""
    random = np.random.default_rng(SEED)

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape, dtype=np.float32)

    wide, narrow = (num_experts, d_model, d_hidden), (num_experts, d_hidden, d_model)
    kernels = [INIT_SCALE * normal(*s) for s in ((d_model, num_experts), wide, wide, narrow)]
    return normal(tokens, d_model), kernels, normal(tokens, d_model)


def step_values(batch: int, length: int) -> np.ndarray:
    """Windows of `length` inputs and one more point, so that every input has a target."""
    return np.random.default_rng(SEED).standard_normal((batch, length + 1), dtype=np.float32)


def window_values(batch: int, variates: int, points: int) -> np.ndarray:
    """Windows of several series, of all points that are read or aimed at."""
    shape = (batch, variates, points)
    return np.random.default_rng(SEED).standard_normal(shape, dtype=np.float32)


def forecast_values(batch: int, context: int) -> np.ndarray:
    """Contexts to forecast from, of zero mean and unit deviation."""
    return np.random.default_rng(SEED).standard_normal((batch, context), dtype=np.float32)


def peak_memory() -> int:
    """Most bytes this process had resident since the last `reset_peak_memory`."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak_memory() -> None:
    """Starts counting again from what is resident now, where the system can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


class Program:
    """What the commands act on.

    Args:
      device: cpu or cuda.
    """

    def __init__(self, device: str):
        self.torch: Any = importlib.import_module("torch")
        self.beside = ""  # the version of another library
        self.device = device
        self.works: dict[str, Callable[[], Any]] = {}
        # As many as there are cores that this process may use, as XLA does.
        self.torch.set_num_threads(len(os.sched_getaffinity(0)))
        # XLA multiplies float32 matrices of a GPU in TF32; so that this side may, too.
        self.torch.backends.cuda.matmul.allow_tf32 = True

    def describe(self) -> dict[str, Any]:
        """Versions, and whether the device can be used."""
        usable = self.device == "cpu" or self.torch.cuda.is_available()
        threads, torch_version = self.torch.get_num_threads(), self.torch.__version__
        text = f"torch {torch_version}{self.beside}, {self.device}, {threads} threads"
        return {"usable": usable, "text": text}

    def clear(self) -> dict[str, Any]:
        """Forgets what was built."""
        self.works.clear()
        if self.device == "cuda":
            self.torch.cuda.empty_cache()
            self.torch.cuda.reset_peak_memory_stats()
        reset_peak_memory()
        return {}

    def time(self, work: str, calls: int, clock: str = "perf_counter") -> dict[str, Any]:
        """Seconds of each of so many calls, by a clock of the module `time`."""
        now = getattr(time, clock)
        seconds = []
        for _ in range(calls):
            start = now()
            self.works[work]()
            if self.device == "cuda":
                self.torch.cuda.synchronize()
            seconds.append(now() - start)
        return {"seconds": seconds}

    def built(self, forecast: Callable[[], np.ndarray], shape: tuple[int, int]) -> dict[str, Any]:
        """Takes the work "forecast".

        Returns:
          the first forecast, [B, H] as lists, and the seconds it took.

        Raises:
          ValueError: it is not of that shape, or not finite.
        """
        self.works = {"forecast": forecast}
        start = time.perf_counter()
        first = forecast()
        seconds = time.perf_counter() - start
        if first.shape != shape or not np.isfinite(first).all():
            raise ValueError(f"forecasts {first.shape} are not finite {list(shape)}")
        return {"forecast": first.tolist(), "seconds": seconds}

    def memory(self) -> dict[str, Any]:
        """Peak since the last `clear`: of the device if that is a GPU, else of the process."""
        if self.device == "cuda":
            return {"bytes": self.torch.cuda.max_memory_allocated()}
        return {"bytes": peak_memory()}


class TimeMoe(Program):
    """The works of the published Time-MoE; see `Program`."""

    def __init__(self, device: str):
        super().__init__(device)
        self.beside = f", transformers {importlib.import_module('transformers').__version__}"
        self.modeling: Any = importlib.import_module("time_moe.models.modeling_time_moe")

    def layer(
        self, tokens: int, d_model: int, d_hidden: int, num_experts: int, choices: int, dtype: str
    ) -> dict[str, Any]:
        """Builds the works "forward" and "forward+backward" of one sparse layer.

        Returns:
          the norms of the output and of every gradient, to compare with the other side's.
        """
        torch = self.torch
        arrays = layer_arrays(tokens, d_model, d_hidden, num_experts)
        layer = self._layer(d_hidden * choices, choices, arrays[1])
        layer = layer.to(self.device, getattr(torch, dtype))
        x, d_y = (
            torch.from_numpy(a)[None].to(self.device, getattr(torch, dtype))
            for a in (arrays[0], arrays[2])
        )
        x.requires_grad_()

        def forward() -> None:
            with torch.no_grad():
                layer(x)

        def both() -> Any:
            layer.zero_grad(set_to_none=True)
            x.grad = None
            y, _ = layer(x)
            y.backward(d_y)
            return y

        self.works = {"forward": forward, "forward+backward": both}
        groups = [[both()], [x.grad], [layer.gate.weight.grad]]
        for part in ("gate_proj", "up_proj", "down_proj"):
            groups.append([getattr(expert, part).weight.grad for expert in layer.experts])
        return {"norms": [self._norm(group) for group in groups]}

    def _layer(self, intermediate_size: int, choices: int, arrays: Sequence[np.ndarray]) -> Any:
        """The sparse layer with these kernels and without its shared expert."""
        torch = self.torch
        router, *kernels = arrays
        config = self.modeling.TimeMoeConfig(
            hidden_size=router.shape[0],
            intermediate_size=intermediate_size,
            num_experts=router.shape[1],
            num_experts_per_tok=choices,
        )
        layer = self.modeling.TimeMoeSparseExpertsLayer(config)
        layer.shared_expert = torch.nn.Module()
        layer.shared_expert.forward = torch.zeros_like
        with torch.no_grad():  # PyTorch keeps linear maps as [out, in]
            layer.gate.weight.copy_(torch.from_numpy(router.T.copy()))
            for part, kernel in zip(("gate", "up", "down"), kernels, strict=True):
                for expert, matrix in zip(layer.experts, kernel, strict=True):
                    weight = getattr(expert, f"{part}_proj").weight
                    weight.copy_(torch.from_numpy(matrix.T.copy()))
        return layer

    def _norm(self, tensors: Sequence[Any]) -> float:
        """Of all tensors together; an expert without a token has no gradient."""
        squares = [t.detach().float().pow(2).sum().item() for t in tensors if t is not None]
        return float(np.sqrt(sum(squares)))

    def model(
        self, folder: str, batch: int, length: int, dtype: str, optimizer: dict[str, Any]
    ) -> dict[str, Any]:
        """Builds the work "step", an update of the model of a folder.

        In bfloat16 parameters and moments are, too, as the published training has it.
        """
        torch = self.torch
        model = self.modeling.TimeMoeForPrediction.from_pretrained(
            folder, attn_implementation="eager", torch_dtype=getattr(torch, dtype)
        )
        model = model.to(self.device).train()
        adamw = torch.optim.AdamW(
            model.parameters(),
            lr=optimizer["learning_rate"],
            betas=(optimizer["b1"], optimizer["b2"]),
            eps=optimizer["eps"],
            weight_decay=optimizer["weight_decay"],
        )
        values = torch.from_numpy(step_values(batch, length))[..., None]
        values = values.to(self.device, getattr(torch, dtype))
        mask = torch.ones_like(values[:, 1:])

        def step() -> float:
            adamw.zero_grad(set_to_none=True)
            output = model(
                input_ids=values[:, :-1], labels=values[:, 1:], loss_masks=mask, use_cache=False
            )
            output.loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), optimizer["clip_norm"])
            adamw.step()
            return output.loss.detach()

        self.works = {"step": step}
        return {"loss": float(step())}

    def forecast(
        self, folder: str, batch: int, context: int, horizon: int, part: int, dtype: str
    ) -> dict[str, Any]:
        """Builds the work "forecast": `generate` of the model of a folder, arrays in, arrays out.

        Attention is eager and keys and values are cached, both as the published code has it.

        Args:
          folder: of config.json and safetensors.
          batch: series.
          context: points of each that are read.
          horizon: points to forecast.
          part: series that one call of `generate` takes.
          dtype: of parameters and computation.

        Returns:
          see `built`.
        """
        torch = self.torch
        model = self.modeling.TimeMoeForPrediction.from_pretrained(
            folder, attn_implementation="eager", torch_dtype=getattr(torch, dtype)
        )
        model = model.to(self.device).eval()
        reset_peak_memory()  # loading is no part of a forecast
        values = forecast_values(batch, context)

        def generate(some: np.ndarray) -> np.ndarray:
            # A copy, since the model adds an axis to what it is given.
            inputs = torch.from_numpy(some).to(self.device, model.dtype, copy=True)
            output = model.generate(inputs, max_new_tokens=horizon)
            return output[:, -horizon:].float().cpu().numpy()

        def forecast() -> np.ndarray:
            with torch.inference_mode():
                parts = [generate(values[i : i + part]) for i in range(0, batch, part)]
            return np.concatenate(parts)

        return self.built(forecast, (batch, horizon))


class SegMoe(Program):
    """The works of the published Seg-MoE; see `Program`."""

    def __init__(self, device: str):
        super().__init__(device)
        self.model_class: Any = importlib.import_module("segmoe_forecast.model").TSFTransformer
        self.losses: Any = importlib.import_module("segmoe_forecast.utils.LoadBalancingLoss")

    def windows(
        self,
        folder: str,
        shape: Sequence[int],
        delta: float,
        factor: float,
        optimizer: dict[str, Any],
    ) -> dict[str, Any]:
        """Builds the works "forward" and "update" of the model of a folder, float32.

        The forward pass is that of a published forecast, without dropout: the other path of its
        attention drops weights when it is not trained, too. An update is a step of the published
        trainer, with its optimizer.

        Args:
          folder: of config.json and safetensors.
          shape: windows, variates, points that are read and points further that are aimed at.
          delta: of the Huber loss.
          factor: of the balancing loss.
          optimizer: our `OptimizerConfig` as a mapping.

        Returns:
          the norm of what comes out, to compare with the other side's.
        """
        torch = self.torch
        load: Any = importlib.import_module("safetensors.torch").load_file
        arguments = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        arguments = {"channels": shape[1], "n_outputs": shape[3], **arguments}
        model = self.model_class(**arguments)
        model.load_state_dict(load(Path(folder) / "model.safetensors"))
        model = model.to(self.device)
        adamw = model.setup_optimizer(
            optimizer["learning_rate"],
            optimizer["weight_decay"],
            betas=(optimizer["b1"], optimizer["b2"]),
        )
        values = torch.from_numpy(window_values(shape[0], shape[1], shape[2] + shape[3])).to(
            self.device
        )
        reads, aims = values[..., : shape[2]], values[..., shape[3] :]
        huber = torch.nn.HuberLoss(delta=delta)
        experts, choices = arguments["n_experts"], arguments["top_k_experts"]
        balancing = self.losses.LoadBalancingLoss(experts, choices, alpha=factor)

        def forward() -> Any:
            with torch.no_grad():
                return model.eval()(reads, flash_attn=False)[0]

        def update() -> None:
            model.train()
            adamw.zero_grad(set_to_none=True)
            outputs, probabilities = model(reads)
            loss = huber(outputs, aims) + balancing(probabilities)[0]
            loss.backward()
            adamw.step()

        self.works = {"forward": forward, "update": update}
        return {"norm": float(forward().norm())}


PACKAGES: dict[str, type[Program]] = {"time_moe": TimeMoe, "segmoe_forecast": SegMoe}


def start(packages: Mapping[str, type[Program]], code: str, device: str) -> Program:
    """The program for the package that a folder, or its folder `src`, holds."""
    for folder in (Path(code), Path(code) / "src"):
        for package, program in packages.items():
            if (folder / package).is_dir():
                sys.path.insert(0, str(folder))
                return program(device)
    raise FileNotFoundError(f"{code} holds none of the packages {', '.join(packages)}")


def main(packages: Mapping[str, type[Program]]) -> None:
    """Answers commands until there are no more; the programs by the package that they need."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    with contextlib.suppress(OSError):
        # Where memory runs out, it is this process that ends, and the benchmark goes on.
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="utf-8")
    program: Program | None = None
    for line in sys.stdin:
        fields = json.loads(line)
        try:
            program = program or start(packages, *sys.argv[1:])
            answer = getattr(program, fields.pop("command"))(**fields)
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(PACKAGES)
