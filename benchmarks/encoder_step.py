"""How fast an encoder is: a forward pass, and a whole update with what it draws.

python benchmarks/train_step.py --family seg_moe --sizes small --shapes 32x512

`32x512` are windows of so many points, of --variates series each: B x C rows in all. The forward
pass is without dropout, the update (`timemoe_jax.training.step.make_train_step`) with it, and with
stochastic depth. Beside the time: rows per second, the temporaries that the compiler plans, and the
time to trace and compile. The time of an update of one process on a shared machine spreads: compare
sides of one run only.
"""

import argparse
import functools
import time
from typing import Any

import jax
import numpy as np
from flax import nnx

from benchmarks import measure
from configs import mohets_small, seg_moe_base, seg_moe_small
from timemoe_jax.config import from_mapping
from timemoe_jax.models.base import abstract_model
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


def run(args: argparse.Namespace) -> None:
    """Measures every size and shape of the command line, and writes the rows if asked to."""
    report = measure.Report(args.json)
    print(f"{'':42}{'best, spread':>20} {'rows/s':>9} {'temp MB':>9} {'compile s':>9}", flush=True)
    for size in measure.names(args.sizes or "small"):
        for shape in measure.names(args.shapes or ("2x64" if args.quick else "32x512")):
            batch, _, length = shape.partition("x")
            config = config_of(args, size, int(batch), int(length))
            _measure(config, f"{args.family} {size} {shape}", args.rounds, report)
    report.write()


def _measure(config: RunConfig, name: str, rounds: int, report: measure.Report) -> None:
    """The two passes of one config."""
    shape = (config.train.batch_size, config.data.variates, config.data.length + config.data.future)
    values = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    batch = jax.device_put({"values": values, "mask": np.ones(shape, bool)})
    graph, _ = abstract_model(config.model)
    state = create_state(config)
    reads = values[..., : config.data.length]

    def forward(params: nnx.State, x: Any) -> Any:
        return nnx.merge(graph, params)(x).predictions

    began = time.perf_counter()
    forward_pass = jax.jit(forward).lower(state.params, reads).compile()
    between = time.perf_counter()
    step: Any = make_train_step(config)
    update_pass = step.lower(state, batch).compile()
    compiled = {"forward": between - began, "update": time.perf_counter() - between}
    read_from = jax.tree.map(lambda p: p + 0, state.params)  # the update donates its own
    held = [state]

    def update() -> Any:
        held[0], metrics = update_pass(held[0], batch)
        return metrics

    sides = {
        "forward": measure.timed(functools.partial(forward_pass, read_from, reads)),
        "update": measure.timed(update),
    }
    programs = {"forward": forward_pass, "update": update_pass}
    for kind, timing in measure.interleave(sides, rounds).items():
        rows = shape[0] * shape[1]
        planned = measure.temporaries(programs[kind])
        report.add(f"{name} {kind}", timing.best * 1e3, "ms")
        report.add(f"{name} {kind} throughput", rows / timing.best, "rows/s")
        report.add(f"{name} {kind} temporaries", planned / 1e6, "MB")
        cells = f"{timing.best * 1e3:11.1f} ms +{timing.spread:4.0%} {rows / timing.best:9.0f}"
        cells += f" {planned / 1e6:9.0f} {compiled[kind]:9.1f}"
        print(f"{f'{name} {kind}':42}{cells}", flush=True)
