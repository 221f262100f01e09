"""Draws forecasts of twelve well-known small series, with their bands, beside what came.

python examples/twelve_series.py mini PATH_TO_CORPUS out/twelve_series.png

The series lie in collections of the corpus that the bundled models were not trained on. A line for
each says its MASE, and that of seasonal naive.
"""

import argparse
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from timemoe_jax import Forecaster
from timemoe_jax.cli.programs import report_errors
from timemoe_jax.data.formats.open import open_parts
from timemoe_jax.evaluation.held_out.selection import seasonal_naive_forecast
from timemoe_jax.evaluation.methods.base import MethodForecast
from timemoe_jax.evaluation.scores import score_windows, summarize
from timemoe_jax.evaluation.tasks import DECILES, Task
from timemoe_jax.plotting import Panel, plot_forecasts


class Known(NamedTuple):
    """A series that many readers know."""

    title: str
    source: str  # of the corpus
    number: int  # of the series in it
    season: int  # points
    horizon: int  # points


SERIES = (
    Known("airline passengers, monthly", "multiple/rdatasets_ts", 14, 12, 24),
    Known("CO2 at Mauna Loa, monthly", "multiple/rdatasets_ts", 17, 12, 36),
    Known("electricity in Australia, monthly", "multiple/rdatasets_ts", 66, 12, 24),
    Known("antidiabetic drugs, monthly", "multiple/rdatasets_ts", 46, 12, 24),
    Known("Australian wine sales, monthly", "multiple/rdatasets_ts", 44, 12, 24),
    Known("Johnson & Johnson, quarterly", "multiple/rdatasets_ts", 18, 4, 8),
    Known("gas in the UK, quarterly", "multiple/rdatasets_ts", 21, 4, 12),
    Known("sunspots, yearly", "multiple/rdatasets_ts", 30, 11, 22),
    Known("the Nile at Aswan, yearly", "multiple/rdatasets_ts", 20, 1, 10),
    Known("lynx trapped in Canada, yearly", "multiple/rdatasets_ts", 25, 10, 20),
    Known("coldest of the day in Melbourne", "multiple/tsdl_library", 83, 1, 60),
    Known("a retail item with weekends, daily", "sales/small_sales_sets", 306, 7, 28),
)
DRAWN = 5  # horizons of the context


def read_series(path: str) -> list[Float64[np.ndarray, " T"]]:
    """The series of `SERIES`, out of the corpus."""
    source, parts = open_parts(path)
    read = []
    for known in SERIES:
        ids = [np.arange(part.first, part.stop) for part in parts if part.label == known.source]
        read.append(source[int(np.concatenate(ids)[known.number])].astype(np.float64))
    return read


def main(checkpoint: str, corpus: str, picture: str) -> None:
    """Forecasts the last points of every series from those before, scores and draws them."""
    forecaster = Forecaster.from_pretrained(checkpoint)
    panels = []
    for known, series in zip(SERIES, read_series(corpus), strict=True):
        horizon = known.horizon
        context, truth = series[:-horizon], series[-horizon:]
        out = forecaster.forecast(context, horizon, quantile_levels=DECILES)
        quantiles = np.asarray(out.quantiles)
        origins = (np.array([len(context)]),)
        task = Task(known.title, (series,), (known.title,), origins, horizon, known.season)
        made = (MethodForecast(out.point, quantiles), seasonal_naive_forecast(task))
        ours, naive = (summarize(score_windows(task, each)).mase for each in made)
        print(f"{known.title:36} MASE {ours:.2f}, seasonal naive {naive:.2f}")
        drawn = context[-DRAWN * horizon :]
        bands = (quantiles[0], out.quantile_levels)
        panels.append(Panel(known.title, drawn, out.point[0], truth, *bands))
    print(f"wrote {plot_forecasts(picture, panels, columns=2)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw forecasts of twelve well-known series.")
    parser.add_argument("checkpoint", help="anything that Forecaster.from_pretrained reads")
    parser.add_argument("corpus", help="the folder of the corpus that holds the series")
    parser.add_argument("picture", help="the PNG to write")
    args = parser.parse_args()
    report_errors(lambda: main(args.checkpoint, args.corpus, args.picture))
