"""The learning rate, by short trials and validation: successive halving (arXiv 1502.07943)."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from timemoe_jax.training.finetuning.config import FinetuneConfig
from timemoe_jax.training.finetuning.step import Update, rate_at
from timemoe_jax.training.step import TrainState

Score = Callable[[TrainState], float]  # less is better; infinite where the run has diverged


def search_rate(
    config: FinetuneConfig,
    update: Update,
    batches: Callable[[], Any],
    score: Score,
    tried: Callable[[float, int, float], None],
    stopped: Callable[[], bool] = lambda: False,
) -> tuple[float, dict[float, float]]:
    """The rate of the best trial, and the score of the longest trial of each rate.

    A trial is a whole short run, with a warm-up and a fall of its own. The better half of the rates
    is tried again for twice as many updates, until two are left; all see the same windows. `tried`
    hears of each trial: its rate, its updates and its score.
    """
    rates, scores = list(config.search_rates), {}
    steps = config.search_steps
    while True:
        for rate in rates:
            if stopped():
                break
            scores[rate] = _trial(config, update, batches, rate, steps, score)
            tried(rate, steps, scores[rate])
        known = [rate for rate in rates if rate in scores]
        # Of equals the smaller: it changes the model less.
        known.sort(key=lambda rate: (scores[rate], rate))
        if len(known) <= 2 or stopped():
            return (known or rates)[0], scores
        rates, steps = _better_half(known), 2 * steps


def _better_half(ranked: Sequence[float]) -> list[float]:
    return list(ranked[: max(2, len(ranked) // 2)])


def _trial(
    config: FinetuneConfig,
    update: Update,
    batches: Callable[[], Any],
    rate: float,
    steps: int,
    score: Score,
) -> float:
    state, place = update.initial(), batches()
    for step, batch in enumerate(itertools.islice(place, steps)):
        state, _ = update(state, batch, rate_at(step, steps, rate, config.warmup_share))
    return score(state)
