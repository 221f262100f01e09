"""What fine-tuning is about to do, and what became of it."""

import dataclasses
import json
from typing import Any

from timemoe_jax.training.finetuning.validation import Errors


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is known before the first update."""

    series: int
    points: int  # that are trained on
    windows: int  # different ones
    held_out: int  # forecasts of a validation
    updates: int  # at most
    batch_size: int
    context: int  # points that a window reads at most
    horizon: int
    normalization: str
    mode: str
    trained: int  # parameters
    parameters: int  # of the model
    optimizer: str
    memory: str  # a line
    skipped: dict[str, int]  # why, and how many series
    past_variates: int = 0  # of each item; see `FinetuneConfig`
    known_variates: int = 0

    @property
    def share(self) -> float:
        """Of the model's parameters how many are trained."""
        return self.trained / self.parameters

    def __str__(self) -> str:
        epochs = self.updates * self.batch_size / self.windows
        lines = [
            f"fine-tuning: {self.series:,} series, {self.points:,} points, {self.windows:,} "
            f"windows; at most {self.updates:,} updates of {self.batch_size} windows, which is "
            f"{epochs:.2g} epochs",
            f"context {self.context:,}, horizon {self.horizon:,}, normalization "
            f"{self.normalization!r}; validation: {self.held_out:,} forecasts at the end of the "
            "series",
            f"trained: {self.mode}, {self.trained:,} parameters, {self.share:.1%} of "
            f"{self.parameters:,}, by {self.optimizer}",
            self.memory,
        ]
        if self.past_variates or self.known_variates:
            lines.append(
                f"read beside the targets of each item: {self.known_variates:,} covariates known "
                f"ahead, {self.past_variates:,} others"
            )
        if self.skipped:
            left_out = ", ".join(f"{count:,} {reason}" for reason, count in self.skipped.items())
            lines.append(f"left out: series that are {left_out}")
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class TuningReport:
    """What became of it. Errors are of the forecasts held out, in each series' deviations."""

    plan: Plan
    learning_rate: float
    search: dict[float, float]  # by rate tried, the change of a forecast (`Errors.change`)
    zero_shot: Errors
    tuned: Errors  # of what was kept
    kept: int  # the update that was kept; 0: the start
    share: float  # of the way from the start to that update; 1: all of it
    updates: int  # that were made
    history: tuple[tuple[int, Errors], ...]  # every validation
    ended: str  # why: "complete", "no better", "diverged" or the name of a signal
    seconds: float

    def __str__(self) -> str:
        before, after = self.zero_shot, self.tuned
        change = ""
        if before.mse > 0 and before.mae > 0:
            mse, mae = after.mse / before.mse - 1, after.mae / before.mae - 1
            change = f" (MSE {mse:+.1%}, MAE {mae:+.1%})"
        kept = "the start: no update was better"
        if self.kept:
            part = "" if self.share == 1 else f"{self.share:.0%} of the way to "
            kept = f"{part}update {self.kept:,}"
        return (
            f"zero-shot: {before}\ntuned:     {after}{change}\nkept: {kept}, of {self.updates:,} "
            f"at a learning rate of {self.learning_rate:g}; {self.ended}; {self.seconds:.0f} s"
        )

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        fields = dataclasses.asdict(self)
        fields["plan"]["share"] = self.plan.share
        fields["search"] = {f"{rate:g}": score for rate, score in self.search.items()}
        fields["history"] = [
            {"update": step, **dataclasses.asdict(errors)} for step, errors in self.history
        ]
        return json.loads(json.dumps(fields))
