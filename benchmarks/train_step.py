"""How fast a whole update is, and what memory it takes, beside the published implementation.

python benchmarks/train_step.py
python benchmarks/train_step.py --shapes 4x512 --published-python PYTHON --published-code CHECKOUT
python benchmarks/train_step.py --memory
python benchmarks/train_step.py --family seg_moe --sizes small --shapes 32x512

An update is forward, the loss of all heads and the balancing loss, backward, clipping by the
global norm, AdamW. Ours is `timemoe_jax.training.step.make_train_step`. The published one is its
`TimeMoeForPrediction` with the loss it computes itself, its own (eager) attention, no key/value
cache, `clip_grad_norm_` and `torch.optim.AdamW`; it starts from our parameters, exported, and sees
the same batch, in which nothing is missing. The losses of the first update are compared, and a
line says so if they differ. Neither rematerializes unless --remat says that ours does. In bfloat16
our parameters and moments are float32, the published ones bfloat16, as it trains.

Rows are named by the shape, windows x points, and the dtype: `4x512 float32` is ms per update, and
its ratio is our time over the published one: below 1, ours is faster. Then the size unless it is
base, the --remat unless it is none. Beside it: points per second, bytes of temporaries as the
compiler plans them, peak memory (of the process, or of the GPU since the start), the time
to trace and compile, and the share of the machine's peak,

    (6 * A + 6 * L * T * D) * B * T / time / peak.

A is the number of activated parameters, all of them (`count_parameters`); a product with one
costs 2 forward and 4 backward per point. Attention costs 12 * L * T * D per point, of which a
causal mask leaves half. Nothing that is computed again counts. The peak is the rate of one large
matrix product in the same rounds.

--family seg_moe and --family mohets measure an encoder instead: a forward pass and an update of so
many windows of --variates series, Seg-MoE beside its own published code; see `encoder_step.py`.

--memory makes a few updates of 1x4096, so that the peak memory is theirs alone; for the base model
in float32 it stands beside its goal, 6 GB.
"""

import argparse
import dataclasses
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import encoder_step, measure
from benchmarks.published import peak_memory, reset_peak_memory, step_values
from configs import time_moe_base, time_moe_large, time_moe_ultra
from timemoe_jax.checkpoints.published import write_published
from timemoe_jax.config import from_mapping
from timemoe_jax.nn import REMAT_POLICIES
from timemoe_jax.training.config import RunConfig
from timemoe_jax.training.step import TrainState, create_state, make_train_step

SIZES = {"base": time_moe_base, "large": time_moe_large, "ultra": time_moe_ultra}
TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
MEMORY_GOAL = 6e9  # bytes, of 1x4096 float32 updates of the base model


class Work(NamedTuple):
    """What is updated, on what."""

    size: str  # of SIZES, or "tiny"
    batch: int
    length: int
    dtype: str
    remat: str

    @property
    def name(self) -> str:
        """Of its rows."""
        parts = [f"{self.batch}x{self.length}", self.dtype]
        parts += [self.size] if self.size != "base" else []
        parts += [f"remat {self.remat}"] if self.remat != "none" else []
        return " ".join(parts)

    @property
    def config(self) -> RunConfig:
        """The run of the size's config, changed where the published update needs it to be."""
        config = SIZES.get(self.size, time_moe_base).get_config().to_dict()
        config["model"] |= {"dtype": self.dtype, "remat": self.remat}
        config["model"] |= TINY if self.size == "tiny" else {}
        config["data"] |= {"length": self.length, "synthetic_sequences": 1}
        # torch.optim.AdamW decays every parameter.
        config["optimizer"] |= {"weight_decay_exclude": "none"}
        # A constant rate, small enough for many updates on one batch.
        config["optimizer"] |= {"warmup_steps": 0, "learning_rate": 1e-4, "end_learning_rate": 1e-4}
        config["train"] |= {"batch_size": self.batch}
        return from_mapping(RunConfig, config)

    @property
    def flops(self) -> float:
        """Of the model, per update: see the module's docstring."""
        return measure.update_flops(self.config.model, self.batch, self.length)


class Ours:
    """Our update, compiled, and the state it is at.

    Args:
      config: of the run.
      state: to start from.
    """

    def __init__(self, config: RunConfig, state: TrainState):
        values = step_values(config.train.batch_size, config.data.length)
        self.batch = jax.device_put({"values": values, "mask": np.ones(values.shape, bool)})
        self.state = state
        start = time.perf_counter()
        step: Any = make_train_step(config)
        self.step = step.lower(state, self.batch).compile()
        self.compile_seconds = time.perf_counter() - start

    def update(self) -> Any:
        """One update; returns all that it computes."""
        self.state, metrics = self.step(self.state, self.batch)
        return self.state, metrics


def start_theirs(
    work: Work, state: TrainState, published: measure.PublishedProcess | None
) -> float | None:
    """Builds the published update from our parameters; returns its first loss."""
    if published is None:
        return None
    config = work.config
    try:
        published.ask("clear")
        with tempfile.TemporaryDirectory() as folder:
            write_published(folder, config.model, state.params)
            answer = published.ask(
                "model",
                folder=folder,
                batch=work.batch,
                length=work.length,
                dtype=work.dtype,
                optimizer=dataclasses.asdict(config.optimizer),
            )
    except measure.PublishedError as error:
        print(f"pytorch {work.name}: skipped, {error}")
        return None
    return answer["loss"]


def peak_bytes() -> int:
    """Peak of the device; where that is the processor, of this process."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use") or peak_memory()


def run(
    work: Work,
    rounds: int,
    peak: measure.MatrixPeak,
    published: measure.PublishedProcess | None,
    report: measure.Report,
) -> None:
    """Measures one work, and reports it."""
    state = create_state(work.config)
    their_loss = start_theirs(work, state, published)
    reset_peak_memory()  # the export is no part of an update
    ours = Ours(work.config, state)
    del state  # the first update takes its memory
    loss = float(ours.update()[1]["loss"])
    sides = {"ours": measure.timed(ours.update), "peak": peak.side}
    if published is not None and their_loss is not None:
        bound = 1e-4 if jax.default_backend() == "cpu" else 2e-2
        if not abs(loss / their_loss - 1) <= bound:
            print(f"{work.name}: the first loss is {loss:.6f}, that of pytorch {their_loss:.6f}")
        sides["pytorch"] = published.side("step")
    timings = measure.interleave(sides, rounds)
    peak.see(timings["peak"])
    memory = {"ours": peak_bytes()}
    if published is not None and "pytorch" in timings:
        memory["pytorch"] = published.ask("memory")["bytes"]
    add_rows(work, ours, timings, memory, peak, report)


def add_rows(
    work: Work,
    ours: Ours,
    timings: dict[str, measure.Timing],
    memory: dict[str, int],
    peak: measure.MatrixPeak,
    report: measure.Report,
) -> None:
    """The rows of one work, and its lines of the table."""
    points, name = work.batch * work.length, work.name
    best = {who: timing.best for who, timing in timings.items()}
    theirs = best.get("pytorch")
    report.add(name, best["ours"] * 1e3, "ms/step", "pytorch", theirs and theirs * 1e3)
    points_ratio = theirs and points / theirs
    report.add(f"{name} throughput", points / best["ours"], "points/s", "pytorch", points_ratio)
    rate = work.flops / best["ours"]
    report.add(f"{name} utilisation", rate / 1e9, "GFLOP/s", "matrix product", peak.rate / 1e9)
    planned = measure.temporaries(ours.step)
    report.add(f"{name} temporaries", planned / 1e6, "MB")
    add_memory(work, memory, report)
    report.add(f"{name} compile", ours.compile_seconds, "s")
    if theirs:
        report.add(f"pytorch {name}", theirs * 1e3, "ms/step")
        report.add(f"pytorch {name} peak memory", memory["pytorch"] / 1e6, "MB")
    for who in [who for who in ("ours", "pytorch") if who in timings]:
        ratio = f"{best['ours'] / theirs:.2f}" if who == "ours" and theirs else ""
        cells = f"{best[who] * 1e3:11.1f} ms +{timings[who].spread:4.0%} {ratio:>8}"
        cells += f" {points / best[who]:9.0f} {work.flops / best[who] / peak.rate:7.0%}"
        cells += f" {memory[who] / 1e6:10.0f}"
        if who == "ours":
            cells += f" {planned / 1e6:9.0f} {ours.compile_seconds:9.1f}"
        print(f"{name if who == 'ours' else 'pytorch ' + name:42}{cells}", flush=True)


def add_memory(work: Work, memory: dict[str, int], report: measure.Report) -> None:
    """Beside the published one's; where a goal is set, beside that, too."""
    name, value = f"{work.name} peak memory", memory["ours"] / 1e6
    theirs = memory["pytorch"] / 1e6 if "pytorch" in memory else None
    has_goal = work[:4] == ("base", 1, 4096, "float32")
    if theirs or not has_goal:
        report.add(name, value, "MB", "pytorch", theirs)
    if has_goal:
        report.add(name, value, "MB", "goal", MEMORY_GOAL / 1e6)
        met = "within" if memory["ours"] <= MEMORY_GOAL else "beyond"
        print(f"{name}: {value:.0f} MB, {met} the goal of {MEMORY_GOAL / 1e6:.0f} MB")


def parse() -> tuple[argparse.Namespace, list[Work]]:
    """The command line, and the works it asks for."""
    parser = argparse.ArgumentParser(description="Speed and memory of a whole update.")
    measure.add_flags(parser)
    known = (*SIZES, "tiny")
    parser.add_argument("--sizes", help=f"of {','.join(known)}; default base, tiny if quick")
    parser.add_argument("--family", default="time_moe", choices=("time_moe", *encoder_step.SIZES))
    parser.add_argument("--variates", type=int, default=21, help="of a window of an encoder")
    parser.add_argument(
        "--clock", default="wall", choices=measure.CLOCKS, help="what is timed, of an encoder"
    )
    parser.add_argument("--shapes", help="windows x points; default 4x512,1x4096; 2x64 if quick")
    parser.add_argument("--remat", default="none", choices=REMAT_POLICIES, help="of our update")
    parser.add_argument("--memory", action="store_true", help="peak memory of 1x4096 updates")
    args = parser.parse_args()
    if args.memory and args.shapes:
        parser.error("--memory has a shape of its own; leave --shapes out")
    default = "1x4096" if args.memory else "2x64" if args.quick else "4x512,1x4096"
    if args.family != "time_moe":
        args.rounds = args.rounds or (2 if args.quick else 5)
        return args, []
    sizes = measure.names(args.sizes or ("tiny" if args.quick else "base"))
    unknown = set(sizes) - set(known)
    if unknown:
        parser.error(f"--sizes may hold {', '.join(known)}, not {', '.join(unknown)}")
    args.rounds = args.rounds or (2 if args.quick or args.memory else 5)
    works = []
    for size in sizes:
        for shape in measure.names(args.shapes or default):
            batch, _, length = shape.partition("x")
            if not (batch.isdigit() and length.isdigit()):
                parser.error(f"--shapes are like 4x512, not {shape!r}")
            works.append(Work(size, int(batch), int(length), args.dtype, args.remat))
    return args, works


def main() -> None:
    """Prints the table, and writes the rows as JSON if asked to."""
    args, works = parse()
    measure.prepare()
    print(f"{measure.describe_machine()}, {args.dtype}")
    if args.family != "time_moe":
        encoder_step.run(args)
        return
    published = measure.start_published(args)
    report = measure.Report(args.json)
    peak = measure.MatrixPeak(args.dtype, args.quick)
    heading = (
        f"{'best, spread':>20} {'/pytorch':>8} {'points/s':>9} {'of peak':>7} {'memory MB':>10}"
    )
    print(f"{'':42}{heading} {'temp MB':>9} {'compile s':>9}", flush=True)
    try:
        for work in works:
            run(work, args.rounds, peak, published, report)
    finally:  # a run given up still leaves its rows
        report.add("matrix product", peak.rate / 1e9, "GFLOP/s")
        print(f"{'matrix product':42} {peak.rate / 1e9:.1f} GFLOP/s")
        report.write()
        if published:
            published.close()


if __name__ == "__main__":
    main()
