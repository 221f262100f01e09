"""The loop of fine-tuning: that of a run, with forecasts that decide what is kept."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from timemoe_jax.checkpoints.store import Checkpoints
from timemoe_jax.data.pipeline.training_data import TrainingData
from timemoe_jax.training.config import ProfileConfig, RunConfig
from timemoe_jax.training.finetuning.config import FinetuneConfig
from timemoe_jax.training.finetuning.step import Update, rate_at
from timemoe_jax.training.finetuning.validation import Errors, Validator
from timemoe_jax.training.loop import Loop, Trace
from timemoe_jax.training.metrics_log import MetricsLog
from timemoe_jax.training.objective import Metrics
from timemoe_jax.training.step import TrainState, batch_arrays

DIVERGED = 2.0  # times the errors of zero-shot, beyond which a run is not worth going on
_FIELDS = {field.name: f"validation_{field.name}" for field in dataclasses.fields(Errors)}


class History:
    """The validations of a run, and what they say about it."""

    def __init__(self, every: list[tuple[int, Errors]], patience: int):
        self.every, self._patience = every, patience

    @property
    def zero_shot(self) -> Errors:
        """The errors of the start."""
        return self.every[0][1]

    @property
    def best(self) -> int:
        """The update whose forecasts gain the most or lose the least, each counting the same.

        0: there is none yet.
        """
        tried = [(errors.change, step) for step, errors in self.every[1:] if errors.finite]
        return min(tried, default=(0.0, 0))[1]

    @property
    def best_errors(self) -> Errors:
        """The errors of that update."""
        return dict(self.every)[self.best]

    @property
    def gaining(self) -> int:
        """That update if its forecasts gain, else 0, which is the start."""
        return self.best if self.best_errors.change < 0 else 0

    @property
    def ended(self) -> str:
        """Why the run should end now; empty if it should not."""
        last = self.every[-1][1]
        if not last.relative_to(self.zero_shot) <= DIVERGED:
            return "diverged"
        since = [step for step, _ in self.every if step > self.gaining]
        return "no better" if len(since) >= self._patience else ""


def read_history(records: list[dict[str, Any]], last: int) -> list[tuple[int, Errors]]:
    """The validations in the log of a run, up to an update."""
    found = []
    for record in records:
        if record["step"] <= last and _FIELDS["mse"] in record:
            values = {
                name: math.nan if record[logged] is None else record[logged]
                for name, logged in _FIELDS.items()
                if logged in record
            }
            found.append((record["step"], Errors(**values)))
    return found


class FinetuneLoop(Loop):
    """Runs updates of the trained part, and keeps a copy of the best."""

    def __init__(
        self,
        run: RunConfig,
        config: FinetuneConfig,
        mesh: jax.sharding.Mesh,
        update: Update,
        data: TrainingData,
        validator: Validator,
        history: History,
        learning_rate: float,
        best: nnx.State,
        saved: Checkpoints | None = None,
        log: MetricsLog | None = None,
        quiet: bool = False,
    ):
        trace = Trace(ProfileConfig(), Path())
        super().__init__(run, mesh, update.program, data, saved, log, trace, quiet)
        self._tuning, self._rate = config, learning_rate
        self._program, self._validator = update, validator
        self.history, self.best = history, best
        self._ended = bool(history.ended)

    def _run_update(self, step: int, state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        arrays = self._place({name: batch[name] for name in batch_arrays(self._config)})
        tuning = self._tuning
        rate = rate_at(step, tuning.num_steps, self._rate, tuning.warmup_share)
        with jax.transfer_guard("disallow"):
            return self._program(state, arrays, rate)

    def _save(self, step: int, state: TrainState, batches: Any) -> None:
        if self._saved is not None:
            tree = {"optimizer": state.opt_state, "best": self.best}
            self._saved.save(step, state.params, tree, batches, {"skipped": int(state.skipped)})

    def _validate(self, step: int, state: TrainState) -> None:
        """Scores the forecasts of the parameters, and keeps them if they are the best so far."""
        history = self.history
        if step > 0:
            history.every.append((step, self._validator(state.params, self._program.frozen)))
            if history.best == step:
                self.best = jax.tree.map(jnp.copy, state.params)
            self._ended = bool(history.ended)
        errors = history.every[-1][1]
        logged = {_FIELDS[n]: v for n, v in dataclasses.asdict(errors).items() if v is not None}
        self._write(step, {**logged, "best": history.gaining})
        beside = f" ({errors.beside_zero_shot})" if step else ""
        best = "; the best so far" if step and history.gaining == step else ""
        self._say(f"step {step:,}: held-out forecasts: {errors}{beside}{best}")
        self._meter.restart()
