"""What a conversion to Time-300B folders came to: what was written, and what was not."""

import dataclasses
from typing import Any

UNKNOWN = "unknown"  # the frequency of a series of which nothing says it

# Why a series is left out.
EMPTY = "no points"
MISSING = "no observed value"
TOO_LARGE = "a value too large for the dtype"
REASONS = (EMPTY, MISSING, TOO_LARGE)


@dataclasses.dataclass
class SourceReport:
    """What became of one source.

    Attributes:
      domain: the folder it lies in.
      name: its own folder.
      inputs: the files that it was made of.
      frequency: the sampling frequency of all series that have none of their own; None where
        nothing says it.
      frequencies: how many of the series that were written have which; `UNKNOWN` is none.
      series: how many were written.
      points: in them.
      missing_points: those of them that are NaN.
      infinite_points: those of them that are infinite; written as they are.
      rounded_points: those of them that the dtype does not hold exactly.
      dropped: series that were left out, by reason.
      ignored_columns: columns of tables that are no values, ids or times.
    """

    domain: str
    name: str
    inputs: tuple[str, ...] = ()
    frequency: str | None = None
    frequencies: dict[str, int] = dataclasses.field(default_factory=dict)
    series: int = 0
    points: int = 0
    missing_points: int = 0
    infinite_points: int = 0
    rounded_points: int = 0
    dropped: dict[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    ignored_columns: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class ConversionReport:
    """What a conversion came to.

    Attributes:
      dtype: of the numbers written.
      sources: of each source.
      skipped_files: files passed over in a folder, since their kind is not read.
    """

    dtype: str
    sources: tuple[SourceReport, ...]
    skipped_files: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The report as its JSON file holds it."""
        return dataclasses.asdict(self)

    def to_text(self) -> str:
        """One line per source, then what was left out and why."""
        lines = [_line(source, self.dtype) for source in self.sources]
        if len(self.sources) > 1:
            totals = (
                f"{sum(s.series for s in self.sources):,} series, "
                f"{sum(s.points for s in self.sources):,} points, "
                f"{sum(s.missing_points for s in self.sources):,} missing, "
                f"{sum(sum(s.dropped.values()) for s in self.sources):,} series dropped"
            )
            lines.append(f"total: {len(self.sources):,} sources, {totals}")
        if self.skipped_files:
            lines.append(
                f"{len(self.skipped_files):,} files skipped, of a kind that is not read: "
                f"{', '.join(self.skipped_files[:3])}{' ...' * (len(self.skipped_files) > 3)}"
            )
        return "\n".join(lines)


def _line(source: SourceReport, dtype: str) -> str:
    dropped = [f"{count:,} with {reason}" for reason, count in source.dropped.items() if count]
    parts = [
        f"{source.domain}/{source.name}: {source.series:,} series, {source.points:,} points",
        f"{source.missing_points:,} missing",
        _frequency_text(source),
        f"dropped {', '.join(dropped)}" if dropped else "none dropped",
    ]
    if source.infinite_points:
        parts.append(f"{source.infinite_points:,} infinite")
    if source.rounded_points:
        parts.append(f"{source.rounded_points:,} rounded to {dtype}")
    if source.ignored_columns:
        parts.append(f"columns left out: {', '.join(source.ignored_columns)}")
    return ", ".join(parts)


def _frequency_text(source: SourceReport) -> str:
    if len(source.frequencies) > 1:
        counts = (f"{name} of {count:,}" for name, count in source.frequencies.items())
        return f"frequencies {', '.join(counts)}"
    return f"frequency {next(iter(source.frequencies), source.frequency or UNKNOWN)}"
