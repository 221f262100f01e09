"""What a forecast returns."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float64, Int


@dataclasses.dataclass(frozen=True, eq=False)
class Forecast:
    """What `Forecaster.forecast` returns.

    Attributes:
      point: the forecasts, in the units of the input; [N, C, H] where that was [N, C, T].
      context_length: at most so many last points of each series were read.
      missing: how many of them are missing.
      quantiles: in the same units; None unless asked for.
      quantile_levels: of the quantiles [Q].
      intervals: where the quantiles are from: "heads", "calibrated" or "conformal".
      channelwise: whether the input was multivariate, and each channel was forecast by itself.
      names: what each series, or each channel, was called.
      joint: whether each series was forecast from all series of its item: a joint model reads the
        channels of an array, or the targets of an id, together.
      filled: how many points of each context were filled in, since the model has no mask: missing
        ones by the line between their neighbors, and points before too short a context by its
        first value; None of a model with masks.
    """

    point: Float64[np.ndarray, "N *C H"]
    context_length: int
    missing: Int[np.ndarray, "N *C"]
    quantiles: Float64[np.ndarray, "N *C H Q"] | None = None
    quantile_levels: tuple[float, ...] = ()
    intervals: str | None = None
    channelwise: bool = False
    names: tuple[str, ...] = ()
    joint: bool = False
    filled: Int[np.ndarray, "N *C"] | None = None

    def to_frame(self) -> Any:
        """The forecasts as a long table, a pandas DataFrame of N * C * H rows.

        Its columns are "unique_id", the name of the series (or of the channel); "step", from 1 to
        H; "predictions"; and the quantiles, each under its level as text, such as "0.1".
        `Forecaster.predict_df` returns a table with times instead.
        """
        import pandas as pd

        horizon = self.point.shape[-1]
        point = self.point.reshape(-1, horizon)
        names = self.names or tuple(f"series {i}" for i in range(len(point)))
        columns = {
            "unique_id": np.repeat(np.array(names, dtype=object), horizon),
            "step": np.tile(np.arange(1, horizon + 1), len(point)),
            "predictions": point.reshape(-1),
        }
        if self.quantiles is not None:
            by_level = self.quantiles.reshape(-1, len(self.quantile_levels)).T
            columns |= {
                f"{tau:g}": q for tau, q in zip(self.quantile_levels, by_level, strict=True)
            }
        return pd.DataFrame(columns)
