"""How fast an encoder is: a forward pass, and a whole update with what it draws.

python benchmarks/train_step.py --family seg_moe --sizes small --shapes 32x512
python benchmarks/train_step.py --family seg_moe --sizes small --shapes 32x512 \
    --published-python PYTHON --published-code CHECKOUT

`32x512` are windows of so many points, of --variates series each: B x C rows in all. The forward
pass is without dropout, the update (`timemoe_jax.training.step.make_train_step`) with it, and with
stochastic depth. Beside the time: rows per second, the temporaries that the compiler plans, and the
time to trace and compile. The time of an update of one process on a shared machine spreads: compare
sides of one run only.

The published Seg-MoE starts from our parameters, exported, and sees the same windows; what the two
forward passes give is compared, and a line says so if it differs. Its forward pass is that of its
forecast, its update a step of its trainer with its optimizer: forward, Huber and balancing loss,
backward, AdamW, with the same rates of dropout and stochastic depth. A row's ratio is our time over
the published one: below 1, ours is faster.

`of peak` is the share of the machine's peak, the rate of one large matrix product in the same
rounds, that the operations of the model take: 2 for each product of a forward pass, and three times
those of an update. Counted are the matrix products that no implementation can leave out: every
kernel by the tokens, points or segments that it multiplies, one routed expert for each choice, and
the scores of attention. What is computed beside them (norms, GELU, softmax, dropout, AdamW) takes
time and does not count. 1 / `of peak` is how far an implementation is from the floor.
"""

import argparse
import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from benchmarks import measure
from benchmarks.published import window_values
from configs import mohets_small, seg_moe_base, seg_moe_small
from timemoe_jax.checkpoints.published import write_published
from timemoe_jax.config import from_mapping
from timemoe_jax.models.base import abstract_model
from timemoe_jax.nn.patches import bottleneck_width
from timemoe_jax.training.config import RunConfig
from timemoe_jax.training.step import create_state, make_train_step

SIZES: dict[str, dict[str, Any]] = {
    "seg_moe": {"small": seg_moe_small, "base": seg_moe_base},
    "mohets": {"small": mohets_small},
}
TINY = {
    **{"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1},
    **{"num_attention_heads": 2, "num_key_value_heads": 1},
}


def config_of(args: argparse.Namespace, size: str, batch: int, length: int) -> RunConfig:
    """The run of a size's config, of windows of several variates without a calendar."""
    config = SIZES[args.family][size].get_config().to_dict()
    config["model"] |= {"dtype": args.dtype, "max_position_embeddings": max(length, 64)}
    config["model"] |= TINY if args.quick else {}
    if args.quick and args.family == "seg_moe":
        config["model"]["segment_lengths"] = (5,)
    if args.family == "mohets":
        config["model"]["covariate_variates"] = 0
    config["data"] |= {"length": length, "synthetic_sequences": 1, "calendar": False}
    config["data"] |= {"variates": args.variates}
    config["optimizer"] |= {"warmup_steps": 0}
    config["train"] |= {"batch_size": batch}
    return from_mapping(RunConfig, config)


def forward_flops(model: Any, rows: int, length: int) -> float | None:
    """Operations of the matrix products of a forward pass of Seg-MoE: see the module's docstring.

    None of another family, whose experts are of several kinds.
    """
    if model.family != "seg_moe":
        return None
    size, patch, tokens = model.hidden_size, model.patch_size, length // model.patch_size
    narrow = model.num_key_value_heads * size // model.num_attention_heads
    q = bottleneck_width(size)
    # Embedding and head; the head's smoothing and last map are small, and left out.
    macs = tokens * patch * size + tokens * size * size * (1 + patch) + length * size * q
    for layer in range(model.num_hidden_layers):
        macs += tokens * (2 * size * size + 2 * size * narrow + 2 * tokens * size)
        segment = model.segment_of(layer)
        mlp = 2 * size * model.intermediate_size
        segments = -(-tokens // segment)
        macs += segments * segment**2 * mlp  # the shared expert, on whole segments
        if model.num_experts:
            macs += segments * segment * size * (model.num_experts + 1)
            macs += tokens * mlp * model.num_experts_per_tok
    return 2.0 * macs * rows


def start_theirs(
    config: RunConfig, state: Any, published: measure.PublishedProcess | None
) -> float | None:
    """Builds the published works from our parameters; returns the norm of what comes out."""
    if published is None:
        return None
    model: Any = config.model
    shape = (config.train.batch_size, config.data.variates, config.data.length, config.data.future)
    with tempfile.TemporaryDirectory() as folder:
        write_published(folder, model, state.params)
        answer = published.ask(
            "windows",
            folder=folder,
            shape=shape,
            delta=config.loss.huber_delta,
            factor=model.router_aux_loss_factor,
            optimizer=dataclasses.asdict(config.optimizer),
        )
    return float(answer["norm"])


def run(args: argparse.Namespace) -> None:
    """Measures every size and shape of the command line, and writes the rows if asked to."""
    report = measure.Report(args.json)
    published = measure.start_published(args) if args.family == "seg_moe" else None
    peak = measure.MatrixPeak(args.dtype, args.quick, args.clock)
    heading = f"{'best, spread':>20} {'/pytorch':>8} {'rows/s':>9} {'of peak':>7} {'temp MB':>9}"
    print(f"{'':42}{heading} {'compile s':>9}", flush=True)
    try:
        for size in measure.names(args.sizes or "small"):
            for shape in measure.names(args.shapes or ("2x64" if args.quick else "32x512")):
                batch, _, length = shape.partition("x")
                config = config_of(args, size, int(batch), int(length))
                name = f"{args.family} {size} {shape}"
                _measure(config, name, args.rounds, peak, published, args.clock, report)
    finally:  # a run given up still leaves its rows
        report.write()
        if published:
            published.close()


class Ours:
    """Our two works, compiled: "forward" and "update".

    Args:
      config: of the run.
      state: to start from; the first update takes its memory.
      values: [B, C, T + future].
    """

    def __init__(self, config: RunConfig, state: Any, values: np.ndarray):
        batch = jax.device_put({"values": values, "mask": np.ones(values.shape, bool)})
        reads = jax.device_put(values[..., : config.data.length])
        graph, _ = abstract_model(config.model)

        def forward(params: nnx.State, x: Any) -> Any:
            return nnx.merge(graph, params)(x).predictions

        began = time.perf_counter()
        forward_pass = jax.jit(forward).lower(state.params, reads).compile()
        between = time.perf_counter()
        step: Any = make_train_step(config)
        update_pass = step.lower(state, batch).compile()
        self.compile_seconds = {
            "forward": between - began,
            "update": time.perf_counter() - between,
        }
        params = jax.tree.map(lambda p: p + 0, state.params)  # the update donates its own
        held = [state]

        def update() -> Any:
            held[0], metrics = update_pass(held[0], batch)
            return metrics

        self.programs = {"forward": forward_pass, "update": update_pass}
        self.works: dict[str, Callable[[], Any]] = {
            "forward": functools.partial(forward_pass, params, reads),
            "update": update,
        }

    def norm(self) -> float:
        """Of what the forward pass gives."""
        (outputs,) = self.works["forward"]().values()
        return float(np.linalg.norm(np.asarray(outputs, np.float64)))


def _measure(
    config: RunConfig,
    name: str,
    rounds: int,
    peak: measure.MatrixPeak,
    published: measure.PublishedProcess | None,
    clock: str,
    report: measure.Report,
) -> None:
    """The two works of one config, ours and the published, in turns."""
    batch, variates, length = config.train.batch_size, config.data.variates, config.data.length
    state = create_state(config)
    their_norm = start_theirs(config, state, published)
    ours = Ours(config, state, window_values(batch, variates, length + config.data.future))
    del state
    if their_norm is not None and not abs(ours.norm() / their_norm - 1) <= 1e-4:
        print(f"{name}: the norm of ours is {ours.norm():.6f}, of pytorch's {their_norm:.6f}")
    rows = batch * variates
    flops = forward_flops(config.model, rows, length)
    for kind, factor in (("forward", 1), ("update", 3)):
        sides = {"ours": measure.timed(ours.works[kind], clock), "peak": peak.side}
        if published is not None:
            sides["pytorch"] = published.side(kind, clock)
        timings = measure.interleave(sides, rounds)
        peak.see(timings["peak"])
        theirs = timings["pytorch"].best if published is not None else None
        planned = measure.temporaries(ours.programs[kind])
        label = f"{name} {kind}"
        best = timings["ours"].best
        report.add(label, best * 1e3, "ms", "pytorch", theirs and theirs * 1e3)
        report.add(
            f"{label} throughput", rows / best, "rows/s", "pytorch", theirs and rows / theirs
        )
        if flops is not None:
            rate, most = factor * flops / best / 1e9, peak.rate / 1e9
            report.add(f"{label} utilisation", rate, "GFLOP/s", "matrix product", most)
        report.add(f"{label} temporaries", planned / 1e6, "MB")
        for who in [who for who in ("ours", "pytorch") if who in timings]:
            timing = timings[who]
            ratio = f"{best / theirs:.2f}" if who == "ours" and theirs else ""
            share = "" if flops is None else f"{factor * flops / timing.best / peak.rate:.0%}"
            cells = f"{timing.best * 1e3:11.1f} ms +{timing.spread:4.0%} {ratio:>8}"
            cells += f" {rows / timing.best:9.0f} {share:>7}"
            if who == "ours":
                cells += f" {planned / 1e6:9.0f} {ours.compile_seconds[kind]:9.1f}"
            print(f"{label if who == 'ours' else f'pytorch {label}':42}{cells}", flush=True)
