"""What a forecasting benchmark asks: series, and the windows of each that are to be forecast.

Every benchmark becomes `Task`s, every forecast of one comes from a `Method`
(`evaluation.methods`), and every score of one is of its windows, so that any method can be compared
with any other on any of them.
"""

import dataclasses

import numpy as np
from jaxtyping import Float64, Int64

DECILES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """Series and the windows of them to forecast: each `horizon` points from an origin on.

    A forecast of a window sees the points before its origin alone. Windows are numbered series by
    series, and by time in each.
    """

    name: str  # as tables name it, such as "ett1/15T/short"
    series: tuple[Float64[np.ndarray, " _"], ...]  # NaN where a value is missing
    names: tuple[str, ...]  # of the series
    origins: tuple[
        Int64[np.ndarray, " _"], ...
    ]  # of each series: index of each window's first point
    horizon: int
    season: int  # points of a season, 1 for none: what seasonal naive repeats
    freq: str | None = None  # a pandas alias, where it is known
    scale_season: int | None = None  # of scaled errors, where it is not `season`
    levels: tuple[float, ...] = DECILES  # of the quantiles that are scored

    def __len__(self) -> int:
        return sum(map(len, self.origins))

    def windows(self) -> list[tuple[int, int]]:
        """The index of the series and the origin of every window, in order."""
        return [(i, int(t)) for i, origins in enumerate(self.origins) for t in origins]

    def contexts(self) -> list[Float64[np.ndarray, " _"]]:
        """What a forecast of each window may see: views of the series."""
        return [self.series[i][:origin] for i, origin in self.windows()]

    def targets(self) -> Float64[np.ndarray, "W H"]:
        """What came in each window."""
        return np.stack([self.series[i][t : t + self.horizon] for i, t in self.windows()])
