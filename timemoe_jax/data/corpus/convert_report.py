"""The report of a conversion to Time-300B folders: what was written, and what was left out."""

import dataclasses
from typing import Any

UNKNOWN = "unknown"  # the frequency of a series that has none

# Why a series is left out.
EMPTY = "no points"
MISSING = "no observed value"
TOO_LARGE = "a value too large for the dtype"
REASONS = (EMPTY, MISSING, TOO_LARGE)


@dataclasses.dataclass
class SourceReport:
    """What became of one source."""

    domain: str  # the folder it lies in
    name: str  # its own folder
    inputs: tuple[str, ...] = ()  # the files that it was made of
    frequency: str | None = None  # of all series that have none of their own, if there is one
    # Series written, by their frequency; `UNKNOWN` for those without one.
    frequencies: dict[str, int] = dataclasses.field(default_factory=dict)
    series: int = 0  # how many were written
    points: int = 0  # in them
    missing_points: int = 0  # those of them that are NaN
    infinite_points: int = 0  # those of them that are infinite; written as they are
    rounded_points: int = 0  # those of them that the dtype does not hold exactly
    # Series left out, by reason.
    dropped: dict[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    ignored_columns: tuple[str, ...] = ()  # neither values, nor ids, nor times


@dataclasses.dataclass(frozen=True)
class ConversionReport:
    """What became of all sources."""

    dtype: str  # of the numbers written
    sources: tuple[SourceReport, ...]
    skipped_files: tuple[str, ...] = ()  # of kinds that are not read

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
