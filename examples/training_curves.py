"""Draws the losses of a run, each head's, and its learning rate.

python examples/training_curves.py out/nano out/nano/curves.png
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from timemoe_jax.cli.programs import report_errors
from timemoe_jax.errors import DataError
from timemoe_jax.plotting import new_figure, save_figure
from timemoe_jax.training.metrics_log import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def main(workdir: str, picture: str) -> None:
    """Draws training and validation losses against points, and the learning rate below."""
    records = read_metrics(Path(workdir) / "metrics.jsonl")
    trained = [r for r in records if "loss" in r]
    validated = [r for r in records if "validation_loss" in r]
    if not trained:
        raise DataError(f"{workdir} has no metrics.jsonl with a loss in it; is it a run's workdir?")
    figure = new_figure(picture, 9, 5.5)
    losses, validation, rate = figure.subplots(
        3, 1, sharex=True, gridspec_kw={"height_ratios": [3, 3, 1]}
    )
    _draw_heads(losses, trained, "loss")
    _draw_heads(validation, validated, "validation_loss")
    rate.plot([r["step"] for r in trained], [r["learning_rate"] for r in trained], color="black")
    losses.legend(fontsize=8, frameon=False, ncols=6, loc="lower left", bbox_to_anchor=(0, 1))
    losses.set_ylabel("training loss")
    validation.set_ylabel("held-out loss")
    rate.set_ylabel("learning rate")
    rate.set_xlabel("update")
    for ax in (losses, validation, rate):
        ax.spines[["top", "right"]].set_visible(False)
    print(f"wrote {save_figure(figure, picture, 130)}")


def _draw_heads(ax: "Axes", records: list[dict[str, Any]], name: str) -> None:
    """The mean over the heads, and each head by itself."""
    if not records:
        return
    steps = [r["step"] for r in records]
    ax.plot(steps, [r[name] for r in records], color="black", label="mean of the heads")
    heads = sorted(int(k.rsplit("_", 1)[1]) for k in records[0] if _is_head(k, name))
    shades = np.linspace(0.75, 0.25, len(heads))
    for horizon, shade in zip(heads, shades, strict=True):
        values = [r[f"{name}_{horizon}"] for r in records]
        ax.plot(steps, values, color=(shade, shade, 1.0), linewidth=1, label=f"head of {horizon}")


def _is_head(key: str, name: str) -> bool:
    return key.startswith(f"{name}_") and key.rsplit("_", 1)[1].isdigit()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw the losses of a run.")
    parser.add_argument("workdir", help="of the run")
    parser.add_argument("picture", help="the PNG to write")
    args = parser.parse_args()
    report_errors(lambda: main(args.workdir, args.picture))
