"""What a covariate that is known ahead gains a joint model, and what one without effect costs.

python benchmarks/known_ahead.py

Two synthetic tables of a daily cycle with autoregressive noise and a promotion that comes and goes
at random: in one a promotion raises the value, in the other it has no effect. On each a small Time
Tracker is trained on the values alone, and fine-tuned from there twice with `Forecaster.fit`, by as
many updates at most: on the values alone ("apart"), and with the promotion known ahead ("joint").
Both forecast the last fifth of the table, which nothing was trained or chosen by, 8 points at a
time, through `Forecaster.predict_df`.

Rows: the mean squared error of the joint model, with that of the one apart as the reference, for
each table and seed. It takes about three minutes of a core for each seed.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import measure
from timemoe_jax import Forecaster
from timemoe_jax.config import from_mapping
from timemoe_jax.training import run as train
from timemoe_jax.training.config import RunConfig

ROWS, HELD_OUT, CONTEXT, HORIZON = 6000, 1200, 64, 8
EFFECTS = {"effect": 3.0, "no effect": 0.0}


def table(effect: float, seed: int) -> pd.DataFrame:
    """Hourly values "y" and a "promotion" of spells of 4 to 24 hours, which raises them."""
    rng = np.random.default_rng(seed)
    promotion, on = np.zeros(ROWS), False
    at = 0
    while at < ROWS:
        spell = int(rng.integers(4, 25))
        promotion[at : at + spell] = on
        at, on = at + spell, not on
    noise = np.zeros(ROWS)
    for t in range(1, ROWS):
        noise[t] = 0.7 * noise[t - 1] + rng.normal(scale=0.5)
    hours = np.arange(ROWS)
    y = 2 * np.sin(hours * 2 * np.pi / 24) + effect * promotion + noise
    times = pd.date_range("2024-01-01", periods=ROWS, freq="h")
    return pd.DataFrame({"ds": times, "y": y, "promotion": promotion})


def first_stage(path: Path, steps: int, seed: int) -> RunConfig:
    """A Time Tracker of patches of 8 points, on variates apart."""
    fields: dict[str, Any] = {
        "model": {
            "family": "time_tracker",
            "horizon_lengths": (HORIZON,),
            "patch_size": 8,
            "hidden_size": 48,
            "num_hidden_layers": 3,
            "num_mixed_layers": 2,
            "num_attention_heads": 4,
            "num_experts": 4,
            "expert_size": 48,
            "shared_size": 48,
            "max_position_embeddings": 256,
        },
        "data": {
            "path": str(path),
            "variates": 1,
            "length": CONTEXT + HORIZON,
            "future": HORIZON,
            "stride": 5,
            "standardization": "context",
            "context_min": 48,
            "num_threads": 0,
        },
        "optimizer": {"learning_rate": 2e-3, "warmup_steps": steps // 10},
        "train": {
            "num_steps": steps,
            "batch_size": 32,
            "log_every": steps,
            "checkpoint_every": steps,
            "eval_batches": 1,
        },
        "seed": seed,
    }
    return from_mapping(RunConfig, fields)


def error(forecaster: Forecaster, frame: pd.DataFrame, joint: bool) -> float:
    """The mean squared error over the end of a table, 8 points at a time."""
    begins = range(ROWS - HELD_OUT + CONTEXT, ROWS - HORIZON + 1, HORIZON)
    columns = list(frame.columns) if joint else ["ds", "y"]
    pasts = [frame[columns][t - CONTEXT : t].assign(unique_id=t) for t in begins]
    futures = [frame[["ds", "promotion"]][t : t + HORIZON].assign(unique_id=t) for t in begins]
    known = {"future_df": pd.concat(futures)} if joint else {}
    out = forecaster.predict_df(pd.concat(pasts), HORIZON, freq="h", target="y", **known)
    truth = np.concatenate([frame["y"].to_numpy()[t : t + HORIZON] for t in begins])
    return float(np.mean((out["predictions"].to_numpy() - truth) ** 2))


def compare(effect: float, seed: int, steps: int) -> tuple[float, float]:
    """The errors of the model tuned with the promotion and of the one tuned without it."""
    frame, errors = table(effect, seed), []
    past = frame[: ROWS - HELD_OUT]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        past[["ds", "y"]].to_csv(path, index=False)
        train.run(first_stage(path, steps, seed), Path(folder) / "first")
        start = Forecaster.from_pretrained(Path(folder) / "first", disk_cache=False)
    for joint in (True, False):
        known = {"known_covariates": "promotion", "mixing": "all"} if joint else {}
        tuned = start.fit(
            past,
            HORIZON,
            target="y",
            context_length=CONTEXT,
            learning_rate=2e-3,
            num_steps=steps,
            batch_size=32,
            seed=seed,
            progress=False,
            **known,
        )
        print(f"{'joint' if joint else 'apart'}:\n{tuned.tuning}", flush=True)
        errors.append(error(tuned, frame, joint))
    return errors[0], errors[1]


def main() -> None:
    """Runs the comparison from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one table, one seed, few updates")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    parser.add_argument("--seeds", type=int, default=3, help="how many (default 3)")
    parser.add_argument("--steps", type=int, default=250, help="updates of a stage (default 250)")
    args = parser.parse_args()
    report = measure.Report(args.json)
    steps, seeds = (20, 1) if args.quick else (args.steps, args.seeds)
    for name, effect in list(EFFECTS.items())[: 1 if args.quick else None]:
        for seed in range(seeds):
            joint, apart = compare(effect, seed, steps)
            report.add(f"joint, {name}, seed {seed}", joint, "MSE", "apart", apart)
            print(f"{name}, seed {seed}: joint {joint:.4f}, apart {apart:.4f}", flush=True)
    report.write()


if __name__ == "__main__":
    main()
