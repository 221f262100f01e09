"""The learning rate: the largest that does no harm in a short trial.

Short trials favor small rates: the noise of a large one shows at once, and what it gains only
after more updates, when it has fallen (arXiv 1803.02021). So trials only tell which rates break the
model, and the run itself, with its validations, decides what is kept.
"""

import itertools
from collections.abc import Callable
from typing import Any

from timemoe_jax.training.finetuning.config import FinetuneConfig
from timemoe_jax.training.finetuning.step import Update, rate_at
from timemoe_jax.training.step import TrainState

Score = Callable[[TrainState], float]  # less is better; infinite where the trial has diverged
HARMED = 0.05  # a trial with a larger change of the errors has broken something
_LOWER = 5.0  # times, at least, by which the rate of a second run is lower


def search_rate(
    config: FinetuneConfig,
    update: Update,
    batches: Callable[[], Any],
    score: Score,
    tried: Callable[[float, float], None],
    stopped: Callable[[], bool] = lambda: False,
) -> tuple[float, dict[float, float]]:
    """The largest rate whose trial does no harm, else the smallest; and the scores of all trials.

    A trial is a whole short run, with a warm-up and a fall of its own; all see the same windows.
    `tried` hears of each: its rate and its score.
    """
    rates, scores = sorted(config.search_rates, reverse=True), {}
    for rate in rates:
        if stopped():
            break
        scores[rate] = _trial(config, update, batches, rate, score)
        tried(rate, scores[rate])
        if scores[rate] <= HARMED:
            return rate, scores
    return rates[-1], scores


def lower_rate(config: FinetuneConfig, rate: float) -> float | None:
    """The rate of a second run after one without a sure gain; None: there is none."""
    return max((r for r in config.search_rates if r * _LOWER <= rate), default=None)


def _trial(
    config: FinetuneConfig,
    update: Update,
    batches: Callable[[], Any],
    rate: float,
    score: Score,
) -> float:
    state, steps = update.initial(), config.search_steps
    for step, batch in enumerate(itertools.islice(batches(), steps)):
        state, _ = update(state, batch, rate_at(step, steps, rate, config.warmup_share))
    return score(state)
