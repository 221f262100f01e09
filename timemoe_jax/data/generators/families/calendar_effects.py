"""Series that follow a calendar: hour of day, day of week, month, holidays.

Each series has a first date and a step of its own, and dates are those of the real calendar:
months differ in length, and holidays move through the week.
"""

import dataclasses
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from timemoe_jax.data.generators.draws import autoregression, log_uniform, smooth, uniform
from timemoe_jax.data.generators.generator import Bounds, Generator, Rng

DAY = 1440  # minutes
MONTH = 0  # stands for a step of a month among steps in minutes

# (month, day) of days that are holidays somewhere; each series keeps some of them.
HOLIDAYS = (
    *((1, 1), (1, 6), (2, 14), (3, 8), (5, 1), (5, 9), (7, 4), (7, 14), (8, 15), (10, 1)),
    *((10, 31), (11, 1), (11, 11), (12, 6), (12, 24), (12, 25), (12, 26), (12, 31)),
)
_MONTH_STARTS = np.array((0, 31, 60, 91, 121, 152, 182, 213, 244, 274, 305, 335))


class Dates(NamedTuple):
    """Parts of dates, each [count, length]."""

    of_day: Float64[np.ndarray, "count length"]  # from 0 to 1
    weekday: Int64[np.ndarray, "count length"]  # Monday is 0
    month: Int64[np.ndarray, "count length"]  # January is 0
    of_year: Int64[np.ndarray, "count length"]  # days since 1 January, of a leap year


@dataclasses.dataclass(frozen=True)
class CalendarEffects(Generator):
    """Draws sums, or products, of effects of the calendar, a trend and noise."""

    citation: ClassVar[str] = "Harvey, Forecasting, Structural Time Series Models (1989)"

    # minutes from point to point, one drawn for each series; 0 is a month
    steps: tuple[int, ...] = (10, 15, 30, 60, 60, 60, DAY, DAY, 7 * DAY, MONTH)
    hour: Bounds = (0.3, 1.5)  # size of the daily shape, where a step is shorter than a day
    weekday: Bounds = (0.05, 1.0)  # size of the effects of the days of the week
    month: Bounds = (0.05, 1.0)  # size of the effects of the months
    holiday: Bounds = (0.1, 1.5)  # size of the effects of holidays
    trend: Bounds = (0.0, 1.0)  # size of a slow change of level
    noise: Bounds = (0.02, 0.5)  # size of the noise
    holidays: float = 6.0  # how many of the year's days are holidays, on average
    product_share: float = 0.3  # how many series are the exponential of the sum

    def _draw(self, rng: Rng, count: int, length: int) -> Float64[np.ndarray, "{count} {length}"]:
        steps = rng.choice(self.steps, count)
        start = rng.integers(10_000, 20_000, count) * DAY  # from 1997 to 2024
        parts = dates(start, steps, length)
        daily = ((steps > 0) & (steps < DAY)).astype(np.float64)[:, None]
        weekly = ((steps > 0) & (steps <= DAY)).astype(np.float64)[:, None]

        week = rng.standard_normal((count, 7))
        week[:, 5:] -= rng.uniform(-0.5, 2.0, (count, 1))
        by_weekday = np.take_along_axis(week, parts.weekday, axis=1)
        # The shape of a day is stronger or weaker by the day of the week.
        gain = 1.0 + daily * np.tanh(0.3 * by_weekday)
        values = daily * gain * uniform(rng, self.hour, count, 1) * day_shapes(rng, parts.of_day)
        values += weekly * uniform(rng, self.weekday, count, 1) * by_weekday
        months = np.take_along_axis(rng.standard_normal((count, 12)), parts.month, axis=1)
        values += uniform(rng, self.month, count, 1) * months
        free = np.take_along_axis(self._holiday_table(rng, count), parts.of_year, axis=1)
        values += weekly * uniform(rng, self.holiday, count, 1) * free
        slow = smooth(rng, length / log_uniform(rng, (1.0, 8.0), count), length)
        values += uniform(rng, self.trend, count, 1) * slow
        noise = autoregression(rng, rng.uniform(0.0, 0.9, count), length)
        values += uniform(rng, self.noise, count, 1) * noise
        products = rng.random(count) < self.product_share
        values[products] = np.exp(0.4 * values[products])
        return values

    def _holiday_table(self, rng: Rng, count: int) -> Float64[np.ndarray, "{count} 366"]:
        """The effect of each day of the year; a holiday reaches to the days beside it."""
        table = np.zeros((count, 366))
        kept = rng.random((count, len(HOLIDAYS))) < self.holidays / len(HOLIDAYS)
        size = kept * rng.normal(-1.0, 1.0, kept.shape)
        reach = rng.uniform(0.0, 0.5, (count, 1))
        days = np.array([_MONTH_STARTS[month - 1] + day - 1 for month, day in HOLIDAYS])
        for offset in (-2, -1, 0, 1, 2):
            table[:, (days + offset) % 366] += size * reach ** abs(offset)
        return table


def dates(
    start: Int64[np.ndarray, " count"], steps: Int64[np.ndarray, " count"], length: int
) -> Dates:
    """The parts of dates that are `steps` minutes apart, from `start`, in minutes since 1970, on.

    A step of 0 is a month, counted from the first day of the month of `start`.
    """
    minutes = start[:, None] + steps[:, None] * np.arange(length)
    monthly = np.flatnonzero(steps == MONTH)
    if monthly.size:
        first = start[monthly].astype("M8[m]").astype("M8[M]").astype(np.int64)
        months = (first[:, None] + np.arange(length)).astype("M8[M]")
        minutes[monthly] = months.astype("M8[m]").astype(np.int64)
    day, minute = np.divmod(minutes, DAY)
    months = day.astype("M8[D]").astype("M8[M]")
    month = months.astype(np.int64) % 12
    of_month = day - months.astype("M8[D]").astype(np.int64)
    return Dates(
        of_day=minute / DAY,
        weekday=(day + 3) % 7,  # 1970 began on a Thursday
        month=month,
        of_year=_MONTH_STARTS[month] + of_month,
    )


def day_shapes(
    rng: Rng, of_day: Float64[np.ndarray, "count length"]
) -> Float64[np.ndarray, "count length"]:
    """Random daily shapes: three harmonics, tabled at 288 times of the day."""
    angle = 2 * np.pi * np.arange(289) / 288
    k = np.arange(1, 4)[:, None, None]
    size = (3, len(of_day), 1)
    waves = np.cos(k * angle + rng.uniform(0.0, 2 * np.pi, size))
    table = np.sum(rng.standard_normal(size) / k * waves, axis=0)
    return np.take_along_axis(table, np.rint(of_day * 288).astype(np.int64), axis=1)
