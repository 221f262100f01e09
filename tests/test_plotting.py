"""Pictures: what is drawn, not only that something is."""

import matplotlib.image
import numpy as np

from timemoe_jax.plotting import FORECAST_COLOR, TRUTH_COLOR, Panel, plot_forecasts


def _has_color(image, color):
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return bool((np.abs(image[..., :3] - rgb).max(axis=-1) < 0.02).any())


def test_panels_show_forecast_and_truth(tmp_path):
    t = np.arange(300.0)
    with_truth = Panel("a", np.sin(t / 9), np.sin(t[:24] / 9), np.cos(t[:24] / 9))
    path = plot_forecasts(tmp_path / "deep" / "two.png", [with_truth, with_truth])
    image = matplotlib.image.imread(path)
    assert _has_color(image, FORECAST_COLOR)
    assert _has_color(image, TRUTH_COLOR)
    alone = plot_forecasts(tmp_path / "one.png", [with_truth._replace(truth=None)])
    smaller = matplotlib.image.imread(alone)
    assert not _has_color(smaller, TRUTH_COLOR)
    assert smaller.shape[0] < image.shape[0]
