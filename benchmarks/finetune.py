"""Fine-tuning: time and memory of an update in each mode, and the share of what is trained.

python benchmarks/finetune.py --checkpoint nano

Every mode is beside "full". Updates are of 16 windows of generated waves, at the context that the
model forecasts by and the horizon asked for. Memory is as the compiler plans it, for one device.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.measure import Report, describe_machine, interleave, prepare, timed
from timemoe_jax.checkpoints.load import load_model
from timemoe_jax.data.series_source import ArraySource
from timemoe_jax.errors import TimeMoeError
from timemoe_jax.runtime import partitioning
from timemoe_jax.runtime.config import MeshConfig
from timemoe_jax.training.finetuning.config import MODES, FinetuneConfig
from timemoe_jax.training.finetuning.start import Start, context_of, optimizer_of
from timemoe_jax.training.finetuning.step import Update, compile_update, run_config
from timemoe_jax.training.finetuning.trainable import split
from timemoe_jax.training.finetuning.windows import split_in_time


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="nano", help="a folder or a bundled name")
    parser.add_argument("--horizon", type=int, default=96, help="points to forecast")
    parser.add_argument("--context", type=int, default=0, help="points to read; 0: as in use")
    parser.add_argument("--batch", type=int, default=16, help="windows of an update")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each mode")
    parser.add_argument("--quick", action="store_true", help="short contexts; says little")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    args = parser.parse_args(argv)
    if args.quick:
        args.horizon, args.context, args.batch, args.rounds = 16, 32, 4, 1
    return args


def compiled(start: Start, config: FinetuneConfig) -> tuple[Update, dict[str, jax.Array], int]:
    """The update of a mode, a batch for it, and how many parameters it trains."""
    context = context_of(start.config, config)
    t = np.arange(4 * context)
    source = ArraySource(list(np.sin(t / 7 + np.arange(8)[:, None])))
    data = split_in_time(source, config, context, joint=False)
    run = run_config(
        start.config,
        config,
        context=context,
        variates=0,
        algorithm=optimizer_of(start, config),
        source="benchmark",
    )
    parts = split(start.params, start.config, config)
    mesh = partitioning.make_mesh(MeshConfig(), jax.devices()[:1])
    update = compile_update(run, config, parts, mesh)
    batch = data.windows.batch(np.arange(config.batch_size))
    place = partitioning.batch_sharding(mesh)
    arrays = {name: jax.device_put(batch[name], place) for name in ("values", "mask")}
    return update, arrays, parts.num_trained


def megabytes(update: Update) -> float:
    """What an update needs in all."""
    plan: Any = update.program.memory_analysis()
    held = plan.argument_size_in_bytes + plan.temp_size_in_bytes
    return (held + plan.output_size_in_bytes - plan.alias_size_in_bytes) / 1e6


def main(argv: list[str] | None = None) -> None:
    """Prints and writes the rows."""
    args = parse(argv)
    prepare()
    report = Report(args.json)
    print(describe_machine())
    start = Start.of(load_model(args.checkpoint), args.checkpoint)
    size = sum(p.size for p in jax.tree.leaves(start.params))
    sides, memory, trained = {}, {}, {}
    for mode in MODES:
        config = FinetuneConfig(
            horizon=args.horizon, context_length=args.context, mode=mode, batch_size=args.batch
        )
        update, batch, trained[mode] = compiled(start, config)
        memory[mode] = megabytes(update)
        state = [update.initial()]

        def step(update: Update = update, batch: dict = batch, state: list = state) -> object:
            state[0], metrics = update(state[0], batch, 1e-6)
            return metrics["loss"]

        sides[mode] = timed(step)
    times = interleave(sides, args.rounds)
    for mode in MODES:
        reference = None if mode == "full" else "full"
        full = None if mode == "full" else 1e3 * times["full"].best
        report.add(f"{mode}: an update", 1e3 * times[mode].best, "ms", reference, full)
        of = None if mode == "full" else memory["full"]
        report.add(f"{mode}: memory", memory[mode], "MB", reference, of)
        report.add(f"{mode}: trained", trained[mode], "parameters", "model", size)
        print(
            f"{mode:10s} {1e3 * times[mode].best:8.0f} ms an update, {memory[mode]:7.0f} MB, "
            f"{trained[mode]:,} parameters trained ({trained[mode] / size:.1%})"
        )
    report.write()


if __name__ == "__main__":
    try:
        main()
    except (TimeMoeError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
