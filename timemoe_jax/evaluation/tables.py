"""How evaluations write their results: Markdown tables, pairs of errors, JSON without NaN."""

import math
from collections.abc import Sequence
from typing import Any


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of cells that are text already; it ends with a newline."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def number(value: float | None) -> str:
    """Four decimals; nothing for None."""
    return "" if value is None else f"{value:.4f}"


def error_pair(mse: float | None, mae: float | None) -> str:
    """ "mse / mae"; nothing where one of them is None."""
    return "" if mse is None or mae is None else f"{number(mse)} / {number(mae)}"


def without_nan(value: Any) -> Any:
    """Nested dictionaries and sequences as JSON takes them: None in place of NaN and infinity."""
    if isinstance(value, dict):
        return {str(key): without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
