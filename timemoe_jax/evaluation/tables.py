"""How evaluations write their results: Markdown tables and pairs of errors."""

from collections.abc import Sequence


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
