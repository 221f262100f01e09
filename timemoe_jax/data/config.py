"""Where training series come from, by the config of a run."""

import dataclasses
import math
from fractions import Fraction
from typing import ClassVar

from timemoe_jax.config import require, require_choice, require_not_negative, require_positive

POLICIES = ("windows", "packing")
MIXINGS = ("points", "power", "fixed")
MIXING_UNITS = ("points", "windows")
STANDARDIZATIONS = ("series", "context", "pieces")
_LARGEST_RATE = 1000  # of a resolution, and of its inverse


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where training series come from, how they are cut into windows, and in which shares."""

    RENAMED: ClassVar[dict[str, str]] = {"standardisation": "standardization"}

    path: str = ""  # comma-separated files and folders
    length: int = 512  # points a window feeds to the model
    # Points of a window after those: they are only aimed at, so that a long head has its targets
    # at every position without the cost of reading them. 1 is as published.
    future: int = 1
    # What a window is z-scored by. "series": its whole series, as published; "context": its first
    # points, at least `context_min` and at most all inputs, a random number of them each time,
    # and only forecasts from the last of those on count: what a forecast is normalized by when
    # the model is used, with nothing of the future in it.
    # "pieces": a window is cut into equal parts, by a power of two drawn for each window, and each
    # part is read alone and z-scored by its own first points, at least half of it: so contexts of
    # all lengths from `context_min` up are seen, without a point read for one length alone.
    standardization: str = "series"
    context_min: int = 64  # the fewest points that a window is z-scored by
    # For "pieces": how likely one of L points is, by L to this power; 0 makes every length alike.
    piece_power: float = 0.0
    sign_flips: float = 0.0  # for "pieces": the share of windows that are turned upside down
    clip: float = 0.0  # standardized values beyond +-clip are set to it; 0: off
    # "windows": each of one series, padded where that is shorter; "packing": series after series,
    # cut at the length, each still on its own to attention and loss.
    policy: str = "windows"
    # How many aligned series, such as columns of a table, make one window [C, T] for a model that
    # reads them together; 0: every series by itself.
    variates: int = 0
    # Whether joint windows carry the calendar of their times, for a model with covariates.
    calendar: bool = False
    packing_bleeds: bool = False  # as published: attention and targets cross from series to series
    stride: int = 0  # distance between windows of a sequence; 0: length
    # Rates that windows to train on are read at, with weights, as "1:4,2,1/4": 2 takes means of 2
    # points for one, 1/4 reads 3 more between every two. Empty: every series as it is.
    resolutions: str = ""
    # The fewest points that a window has at a rate above 1; 0: all, so that only series of many
    # windows are averaged.
    resolution_min: int = 0
    # Shares of the points trained on. "points": every window once in an epoch; "power": a source
    # (a file, or a folder of the Time-300B layout) by its points ** mixing_power; "fixed": by
    # mixing_weights.
    mixing: str = "points"
    mixing_power: float = 0.5  # of "power"; 0 gives each source the same share
    mixing_weights: str = ""  # "domain:weight" or "domain/source:weight", with commas
    # What shares are of: "points", or "windows", of which one of a short series, mostly padding,
    # counts and costs as much as any.
    mixing_unit: str = "points"
    max_epochs_per_source: float = 0.0  # within train.num_steps; 0: any number
    validation_path: str = ""  # files and folders to validate on
    validation_sources: str = ""  # of path, "domain/source" with commas between: held out whole
    validation_fraction: float = 0.0  # of the sequences, held out whole
    # Of each sequence, its last part: held out, and forecast from all that comes before.
    validation_tail: float = 0.0
    # The published splits of a table: only so many first points of each series are trained on, and
    # the windows that end in the next ones are validated on; what follows is left alone. 0: all.
    train_rows: int = 0
    validation_rows: int = 0  # after train_rows
    # Regular times of a table that have no row are missing points, as `forecast` takes them.
    fill_absent: bool = False
    synthetic_sequences: int = 0  # a fixed number of generated series, when path is empty
    synthetic_length: int = 2048  # points of a generated series
    # Series generated without end while training: their share of the points trained on; it is 1
    # where there is no other source.
    synthetic_share: float = 0.0
    # Families of those, "arima:2,chaos" with weights, "tsmixup" among them for mixtures of the
    # training series; empty: all of them.
    synthetic_families: str = ""
    # The share of those that each kind of augmentation (warps, resampling, censoring, spikes, ...)
    # is applied to.
    synthetic_augmentation: float = 0.0
    shuffle: bool = True  # whether windows come in random order
    num_threads: int = 2  # threads that read ahead

    def __post_init__(self) -> None:
        require_positive(self, "length", "synthetic_length")
        require_not_negative(self, "stride", "synthetic_sequences", "num_threads", "variates")
        require(
            not self.variates or (self.policy == "windows" and not self.resolutions),
            f"variates is {self.variates}, but policy is {self.policy!r} and resolutions "
            f"{self.resolutions!r}; joint windows are for 'windows' at the series' own rate",
        )
        require(
            not self.calendar or self.variates > 0,
            f"calendar is {self.calendar}, but variates is 0; it is of windows of several variates",
        )
        require(
            not (self.variates and self.synthetic_share),
            f"variates is {self.variates}, but synthetic_share {self.synthetic_share}; series "
            "generated without end have no series beside them",
        )
        require(
            0 <= self.validation_fraction < 1,
            f"validation_fraction must be in [0, 1), but is {self.validation_fraction}",
        )
        require(
            0 <= self.validation_tail < 1 and not (self.validation_tail and self.variates),
            f"validation_tail must be in [0, 1), and 0 with variates ({self.variates}), but is "
            f"{self.validation_tail}",
        )
        held_out = (
            *("validation_path", "validation_sources"),
            *("validation_fraction", "validation_tail", "validation_rows"),
        )
        require_not_negative(self, "train_rows", "validation_rows")
        require(
            self.train_rows > 0 or not self.validation_rows,
            f"validation_rows is {self.validation_rows}, but train_rows is 0: no rows are left",
        )
        in_use = [f"{name} ({value!r})" for name in held_out if (value := getattr(self, name))]
        require(len(in_use) <= 1, f"{' and '.join(in_use)} exclude each other")
        require(
            not (self.path and self.synthetic_sequences),
            f"path ({self.path!r}) and synthetic_sequences ({self.synthetic_sequences}) exclude "
            "each other",
        )
        self._check_standardization()
        self._check_resolutions()
        self._check_resolution_min()
        self._check_generated()
        self._check_packing()
        self._check_mixing()

    def _require_policy(self, policy: str, name: str, unset: object) -> None:
        value = getattr(self, name)
        require(
            self.policy == policy or value == unset,
            f"{name} is {value!r}, but policy is {self.policy!r}; it is for {policy!r}",
        )

    def _check_standardization(self) -> None:
        require_choice(self, "standardization", STANDARDIZATIONS)
        require_positive(self, "future", "context_min")
        require_not_negative(self, "clip")
        by_context = self.standardization != "series"
        pieces = self.standardization == "pieces"
        require(
            not (pieces and self.variates),
            f"variates is {self.variates}, but standardization is 'pieces'; it cuts up windows of "
            "one series",
        )
        require(
            pieces or not (self.piece_power or self.sign_flips),
            f"piece_power is {self.piece_power} and sign_flips {self.sign_flips}, but "
            f"standardization is {self.standardization!r}; they are for 'pieces'",
        )
        require(
            0 <= self.sign_flips <= 1, f"sign_flips must be from 0 to 1, but is {self.sign_flips}"
        )
        require(
            not by_context or 2 <= self.context_min <= self.length,
            f"context_min must be from 2 to length ({self.length}), but is {self.context_min}",
        )
        self._require_policy("windows", "standardization", "series")
        self._require_policy("windows", "future", 1)

    def _check_resolutions(self) -> None:
        if not parse_resolutions(self.resolutions):
            return
        require(
            bool(self.path) or self.synthetic_sequences > 0,
            f"resolutions is {self.resolutions!r}, but path is empty and synthetic_sequences 0: "
            "series generated without end are read as they are",
        )
        self._require_policy("windows", "resolutions", "")

    def _check_resolution_min(self) -> None:
        require_not_negative(self, "resolution_min")
        require(
            not self.resolution_min or bool(self.resolutions),
            f"resolution_min is {self.resolution_min}, but resolutions is empty: every series is "
            "read as it is",
        )
        require(
            self.resolution_min <= self.length,
            f"resolution_min must be at most length ({self.length}), but is {self.resolution_min}",
        )

    def _check_generated(self) -> None:
        other, share = bool(self.path) or self.synthetic_sequences > 0, self.synthetic_share
        require(
            other or share > 0,
            "path is empty, synthetic_sequences and synthetic_share are 0: there is nothing to "
            "train on; set config.data.path to files or folders of series",
        )
        require(
            0 <= share < 1 if other else share == 1,
            f"synthetic_share is {share}; it must be from 0 to less than 1 beside path or "
            "synthetic_sequences, and 1 without them",
        )
        require(
            0 <= self.synthetic_augmentation <= 1,
            f"synthetic_augmentation must be from 0 to 1, but is {self.synthetic_augmentation}",
        )
        require(
            share > 0 or not (self.synthetic_families or self.synthetic_augmentation),
            f"synthetic_families is {self.synthetic_families!r} and synthetic_augmentation "
            f"{self.synthetic_augmentation}, but synthetic_share is 0: they would have no effect",
        )

    def _check_packing(self) -> None:
        require_choice(self, "policy", POLICIES)
        self._require_policy("packing", "packing_bleeds", False)
        require(
            not (self.policy == "packing" and self.stride),
            f"stride is {self.stride}, but policy 'packing' has none: leave it at 0",
        )

    def _check_mixing(self) -> None:
        require_choice(self, "mixing", MIXINGS)
        require_choice(self, "mixing_unit", MIXING_UNITS)
        require(
            self.mixing_unit == "points" or self.mixing == "fixed",
            f"mixing_unit is {self.mixing_unit!r}, but mixing is {self.mixing!r}; it is for the "
            "weights of 'fixed'",
        )
        require_not_negative(self, "mixing_power", "max_epochs_per_source")
        fixed = self.mixing == "fixed"
        require(
            fixed == bool(self.mixing_weights),
            f"mixing is {self.mixing!r} and mixing_weights {self.mixing_weights!r}; 'fixed' needs "
            "weights like 'energy:1,nature:2', and nothing else takes them",
        )
        if fixed:
            parse_mixing_weights(self.mixing_weights)

    def piece_lengths(self, stride: int) -> tuple[int, ...]:
        """Of the pieces of a window, ascending: its halves and theirs, of whole patches.

        `stride` is the number of points of a patch; none is shorter than `context_min`.
        """
        lengths = [self.length]
        while lengths[0] % (2 * stride) == 0 and lengths[0] // 2 >= self.context_min:
            lengths.insert(0, lengths[0] // 2)
        return tuple(lengths)

    @property
    def segmented(self) -> bool:
        """Whether a training batch says which of several series each of its points is of."""
        return self.policy == "packing" and not self.packing_bleeds


def parse_weights(
    text: str, key: str, must_be: str, *, default: float = math.nan, positive: bool = False
) -> dict[str, float]:
    """Reads weights written as "name:weight,name:weight"; a name itself may hold a colon.

    A name without a weight gets the default, if there is one. Errors call the text `key`, and say
    what an entry `must_be`.

    Raises:
      ConfigError: an entry has no name or no such weight, or a name comes twice.
    """
    weights: dict[str, float] = {}
    for entry in (part.strip() for part in text.split(",") if part.strip()):
        name, colon, number = (part.strip() for part in entry.rpartition(":"))
        try:
            weight = float(number) if colon else default
        except ValueError:
            weight = math.nan
        name = name if colon else entry
        good = bool(name) and 0 <= weight < math.inf and not (positive and weight == 0)
        require(good, f"{key} has {entry!r}; it must be {must_be}")
        require(name not in weights, f"{key} has {name!r} twice")
        weights[name] = weight
    return weights


def parse_mixing_weights(text: str) -> dict[str, float]:
    """Reads `data.mixing_weights`: the weight of each domain, or domain/source, by its name."""
    must_be = "a domain or domain/source, a colon, and a weight from 0"
    weights = parse_weights(text, "mixing_weights", must_be)
    require(sum(weights.values()) > 0, f"mixing_weights is {text!r}; one weight must be above 0")
    return weights


def parse_resolutions(text: str) -> dict[Fraction, float]:
    """Reads `data.resolutions`: the weight of each rate, which is how many points become one."""
    must_be = (
        f"a rate such as 4 (means of 4 points) or 1/4 (3 more between every two), at most "
        f"{_LARGEST_RATE}, or a rate, a colon, and a weight above 0"
    )
    weights: dict[Fraction, float] = {}
    by_name = parse_weights(text, "resolutions", must_be, default=1.0, positive=True)
    for name, weight in by_name.items():
        try:
            rate = Fraction(name)
        except (ValueError, ZeroDivisionError):
            rate = Fraction(0)
        whole = rate > 0 and 1 in (rate.numerator, rate.denominator)
        good = whole and max(rate.numerator, rate.denominator) <= _LARGEST_RATE
        require(good, f"resolutions has {name!r}; it must be {must_be}")
        require(rate not in weights, f"resolutions has {name!r} twice")
        weights[rate] = weight
    return weights
