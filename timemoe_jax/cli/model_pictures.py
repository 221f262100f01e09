"""Pictures of what a model does with the series of files, for `timemoe plot`."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timemoe_jax.forecasting.frames.prepare import FrameInputs
from timemoe_jax.models.base import family_of


def item_numbers(files: Sequence[FrameInputs]) -> list[int]:
    """A number for each series of all files, the same for those of one id of one file."""
    numbers: list[int] = []
    for prepared in files:
        first = 1 + max(numbers, default=-1)
        numbers += [first + code for code in prepared.timed.codes.tolist()]
    return numbers


def draw_experts(
    path: Path, args: argparse.Namespace, forecaster: Any, files: Sequence[FrameInputs]
) -> None:
    """Draws which experts each layer uses: a panel for each file, or each series if joint."""
    from timemoe_jax.evaluation.expert_pictures import plot_expert_usage
    from timemoe_jax.evaluation.expert_usage import expert_usage
    from timemoe_jax.plotting import MAX_PANELS

    joint = forecaster.joint
    shares: dict[str, Any] = {}
    for data, prepared in zip(args.data, files, strict=True):
        file = Path(data).stem
        # A joint model may choose experts for each of its series, which are then told apart.
        given: Any = prepared.joint() if joint else prepared.series
        found = expert_usage(
            forecaster, given, args.context_length, names=prepared.names, by_series=joint
        )
        names = [f"{file} {name}" for name in prepared.names] if joint else [file]
        shares.update(zip(names, found if joint else [found], strict=True))
    drawn = dict(list(shares.items())[:MAX_PANELS]) if joint else shares
    more = f" (the first {len(drawn)} of {len(shares)} series)" if len(drawn) < len(shares) else ""
    print(f"wrote {plot_expert_usage(path, drawn)}{more}")


def draw_links(
    path: Path, args: argparse.Namespace, forecaster: Any, files: Sequence[FrameInputs]
) -> None:
    """Draws the links among the series of each file, or of each id of it."""
    from timemoe_jax.evaluation.variate_graph import link_probabilities, plot_links
    from timemoe_jax.plotting import MAX_PANELS

    links: dict[str, Any] = {}
    for data, prepared in zip(args.data, files, strict=True):
        ids = prepared.timed.ids
        found = link_probabilities(forecaster, prepared.joint(), args.context_length)
        for item, of_item in found.items():
            title = Path(data).stem if ids is None else f"{Path(data).stem} {ids[item]}"
            links[title] = of_item
    threshold = family_of(forecaster.config).link_threshold(forecaster.config)
    more = f" (the first {MAX_PANELS} of {len(links)} items)" if len(links) > MAX_PANELS else ""
    print(f"wrote {plot_links(path, links, threshold)}{more}")
