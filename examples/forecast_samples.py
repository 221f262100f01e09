"""Restores a checkpoint and draws its forecasts of the embedded real series.

python examples/forecast_samples.py mini out/demo/forecasts.png
"""

import argparse

from timemoe_jax import Forecaster
from timemoe_jax.cli.programs import report_errors
from timemoe_jax.data.samples import SAMPLES, load_sample
from timemoe_jax.plotting import Panel, plot_forecasts

HORIZON = 96
LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)


def main(checkpoint: str, picture: str) -> None:
    """Forecasts the last points of every sample from those before, and draws them."""
    forecaster = Forecaster.from_pretrained(checkpoint)
    # Bands that the model says itself; others take a forecast of many earlier points.
    levels = LEVELS if forecaster.config.quantile_levels else None
    panels = []
    for name in SAMPLES:
        table = load_sample(name)
        for column, values in zip(table.columns, table.values.T, strict=True):
            context, truth = values[:-HORIZON], values[-HORIZON:]
            out = forecaster.forecast(context, HORIZON, quantile_levels=levels)
            bands = (None, None) if out.quantiles is None else (out.quantiles[0], LEVELS)
            panels.append(Panel(f"{name}: {column}", context, out.point[0], truth, *bands))
    print(f"wrote {plot_forecasts(picture, panels)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw a checkpoint's forecasts of real series.")
    parser.add_argument("checkpoint", help="anything that Forecaster.from_pretrained reads")
    parser.add_argument("picture", help="the PNG to write")
    args = parser.parse_args()
    report_errors(lambda: main(args.checkpoint, args.picture))
