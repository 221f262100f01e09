"""The published implementation (PyTorch), as a program that other benchmarks time from outside.

python benchmarks/published.py CODE DEVICE

CODE is a checkout of the published code, the folder that holds the package `time_moe`; DEVICE is
cpu or cuda. It runs in an environment of its own, which has PyTorch and the version of
transformers that the published code asks for, reads one JSON command a line, and answers each with
one JSON line. It stays alive between commands, so that a benchmark can alternate between its own
calls and those made here.

Three things are built to be timed: the sparse layer, the update of a whole model, and its forecast.
In the layer the shared expert is replaced by zeros, so that what remains is the router and the
routed experts (and the adding of those zeros). All get the arrays that the other side makes from
the same seed.
"""

import contextlib
import importlib
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Sequence
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
      code: the folder that holds `time_moe`.
      device: cpu or cuda.
    """

    def __init__(self, code: str, device: str):
        sys.path.insert(0, code)
        self.torch: Any = importlib.import_module("torch")
        self.transformers: Any = importlib.import_module("transformers")
        self.modeling: Any = importlib.import_module("time_moe.models.modeling_time_moe")
        self.device = device
        self.works: dict[str, Callable[[], Any]] = {}
        self.torch.set_num_threads(os.cpu_count() or 1)
        # XLA multiplies float32 matrices of a GPU in TF32; so that this side may, too.
        self.torch.backends.cuda.matmul.allow_tf32 = True

    def describe(self) -> dict[str, Any]:
        """Versions, and whether the device can be used."""
        usable = self.device == "cpu" or self.torch.cuda.is_available()
        threads, torch_version = self.torch.get_num_threads(), self.torch.__version__
        text = f"torch {torch_version}, transformers {self.transformers.__version__}"
        return {"usable": usable, "text": f"{text}, {self.device}, {threads} threads"}

    def clear(self) -> dict[str, Any]:
        """Forgets what was built."""
        self.works.clear()
        if self.device == "cuda":
            self.torch.cuda.empty_cache()
            self.torch.cuda.reset_peak_memory_stats()
        reset_peak_memory()
        return {}

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
          the first forecast, [B, H] as lists, and the seconds it took.
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

        self.works = {"forecast": forecast}
        start = time.perf_counter()
        first = forecast()
        seconds = time.perf_counter() - start
        if first.shape != (batch, horizon) or not np.isfinite(first).all():
            raise ValueError(f"forecasts {first.shape} are not finite [{batch}, {horizon}]")
        return {"forecast": first.tolist(), "seconds": seconds}

    def time(self, work: str, calls: int) -> dict[str, Any]:
        """Seconds of each of so many calls."""
        seconds = []
        for _ in range(calls):
            start = time.perf_counter()
            self.works[work]()
            if self.device == "cuda":
                self.torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        return {"seconds": seconds}

    def memory(self) -> dict[str, Any]:
        """Peak since the last `clear`: of the device if that is a GPU, else of the process."""
        if self.device == "cuda":
            return {"bytes": self.torch.cuda.max_memory_allocated()}
        return {"bytes": peak_memory()}


def main() -> None:
    """Answers commands until there are no more."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    with contextlib.suppress(OSError):
        # Where memory runs out, it is this process that ends, and the benchmark goes on.
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="utf-8")
    program: Program | None = None
    for line in sys.stdin:
        fields = json.loads(line)
        try:
            program = program or Program(*sys.argv[1:])
            answer = getattr(program, fields.pop("command"))(**fields)
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
