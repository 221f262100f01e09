"""What a method gives so that any benchmark can run it: forecasts of contexts, with quantiles."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Float64


@dataclasses.dataclass(frozen=True, eq=False)
class MethodForecast:
    """Forecasts of N contexts in their units."""

    point: Float64[np.ndarray, "N H"]  # the median, which is best for absolute errors
    quantiles: Float64[np.ndarray, "N H Q"]
    failures: dict[int, str] = dataclasses.field(default_factory=dict)  # of a context: why


class Method(Protocol):
    """A way to forecast. It keeps nothing between calls."""

    @property
    def name(self) -> str:
        """As tables name it."""
        ...

    @property
    def isolated(self) -> bool:
        """Whether each context is forecast in a worker process, which is killed at a limit.

        For methods that fit each series by itself and may take long; the method is pickled.
        """
        ...

    def predict(
        self,
        contexts: Sequence[Float64[np.ndarray, " _"]],
        horizon: int,
        season: int,
        levels: Sequence[float],
        freq: str | None = None,
    ) -> MethodForecast:
        """Forecasts each context, which may have any length from 1 up, and NaN in it.

        A method that cannot forecast a context raises, or names it in `failures`, or gives NaN;
        `running.run_method` puts seasonal naive there, and reports it.
        """
        ...
