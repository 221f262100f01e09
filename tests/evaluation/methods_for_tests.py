"""Methods that fail in every way, for workers that import them by their module."""

import dataclasses
import os
import time

import numpy as np

from timemoe_jax.evaluation.methods.base import MethodForecast


@dataclasses.dataclass(frozen=True)
class Moody:
    """Does what the first value of a context says: 0 forecasts it, and all else fails."""

    name: str = "moody"
    isolated: bool = True

    def predict(self, contexts, horizon, season, levels, freq=None):
        (context,) = contexts
        mood = int(context[0])
        if mood == 1:
            time.sleep(600)
        while mood == 5:
            pass
        if mood == 2:
            raise ValueError("no forecast today")
        if mood == 3:
            os._exit(3)
        point = np.full((1, horizon), np.nan if mood == 4 else context[-1] + 100)
        return MethodForecast(point, np.repeat(point[..., None], len(levels), axis=2))


@dataclasses.dataclass(frozen=True)
class NeverStarts(Moody):
    def prepare(self):
        raise ImportError("a package is broken")


class Last:
    """As a predictor of GluonTS: forecasts of the last value, with quantiles around it."""

    def __init__(self, prediction_length, freq):
        self.horizon, self.freq = prediction_length, freq

    def predict(self, dataset):
        for entry in dataset:
            assert entry["start"].freqstr == self.freq
            yield _Forecast(entry["target"][-1], self.horizon)


class LastEstimator:
    """As an estimator of GluonTS."""

    def __init__(self, horizon, freq):
        self.arguments = (horizon, freq)

    def train(self, dataset):
        assert len(dataset) == 1
        return Last(*self.arguments)


@dataclasses.dataclass(frozen=True)
class _Forecast:
    last: float
    horizon: int

    def quantile(self, level):
        return np.full(self.horizon, self.last + level - 0.5)


def nothing():
    return "a text"
