"""The parts of a series that are fit to train on (arXiv 2409.16040, Algorithm 2).

A stuck sensor or a gap filled with zeros teaches a model nothing but to repeat. A series is split
where a value is missing or infinite, and from each piece the windows with too many zeros or
repetitions are cut out.

All of it is exact: two finite floats differ by zero only if they are equal, so comparisons stand
for the differences of the algorithm, and its shares are compared in whole numbers.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8

from timemoe_jax.errors import DataError

WINDOW = 128  # points; the last window of a piece also takes the rest, so it has up to 255
MIN_RUN = 256  # points of adjacent valid windows that are worth keeping
# A window is rejected when more than a fifth of its values, or of its differences, are zero.
SHARE_DIVISOR = 5
# Why points are dropped, in the order of the tests: points that fail several count under the first.
REASONS = ("missing", "zeros", "repeated", "alternating", "short")

PerWindow = Int64[np.ndarray, " W"]

# Points tested together: they and three masks of them stay in a core's own cache.
_BLOCK = 1 << 16


@dataclasses.dataclass(frozen=True)
class Cleaned:
    """What to keep of a series."""

    pieces: Int64[np.ndarray, "N 2"]  # first point of each that is kept, and that after its last
    # Points by reason, every one of `REASONS`: "missing" (or infinite), in windows with too many
    # "zeros", values "repeated" at once or "alternating" (equal to the last but one), and in runs
    # of valid windows that are too "short".
    dropped: dict[str, int]


def clean(values: Float[np.ndarray, " T"], zero: float = 0.0) -> Cleaned:
    """Finds what to keep of a series (arXiv 2409.16040, Algorithm 2).

    A piece between missing values of at most 128 points is one window, kept whole if it is valid;
    of a longer one, adjacent valid windows are joined and kept from 256 points on.

    Values are NaN where a point is missing. They may be scaled and shifted, since equal values stay
    equal; `zero` is then the value that stands for zero, or NaN if none does.
    """
    values = np.asarray(values)
    if values.ndim != 1 or values.dtype.kind not in "iuf":
        raise DataError(
            f"values have shape {values.shape} and dtype {values.dtype}; a series to clean must be "
            "one-dimensional and numeric"
        )
    finite = np.isfinite(values)
    failed = None
    if 0 < len(values) <= _BLOCK and np.count_nonzero(finite) == len(values):
        failed = _failed_tests_of_piece(values, zero)
        if failed is None:
            return _without_failures(len(values))
    pieces = _true_runs(finite)
    lengths = pieces[:, 1] - pieces[:, 0]
    starts, stops, piece_of = _windows(pieces, lengths)
    if failed is None:
        failed = _failed_tests(values, zero, finite, starts, stops)
    valid = failed == len(_TESTS)
    points = dict.fromkeys(_TESTS, 0)
    if valid.all():
        runs, run_lengths, is_short_piece = pieces, lengths, lengths <= WINDOW
    else:
        begins, ends = _join(valid, piece_of)
        runs = np.stack([starts[begins], stops[ends]], 1)
        run_lengths, is_short_piece = runs[:, 1] - runs[:, 0], lengths[piece_of[begins]] <= WINDOW
        for place, test in enumerate(_TESTS):
            points[test] = int((stops - starts)[failed == place].sum())
    keep = (run_lengths >= MIN_RUN) | is_short_piece
    short = int(run_lengths[~keep].sum())
    missing = len(values) - int(lengths.sum())
    return Cleaned(runs[keep], {"missing": missing, **points, "short": short})


_TESTS = REASONS[1:-1]
# How many zeros a window of n points may have: of its n values, its n - 1 differences at lag 1,
# its n - 2 at lag 2.
_LIMITS = np.array(
    [[max(n - lag, 0) // SHARE_DIVISOR for n in range(2 * WINDOW)] for lag in range(3)], np.uint8
)
# The same for at most a whole window, as Python's numbers, which compare faster.
_FEWEST = [tuple(column) for column in _LIMITS.T[: WINDOW + 1].tolist()]


def _without_failures(length: int) -> Cleaned:
    """The result for a series without missing values whose windows are all valid."""
    dropped = dict.fromkeys(REASONS, 0)
    if WINDOW < length < MIN_RUN:
        dropped["short"] = length
        return Cleaned(np.empty((0, 2), np.int64), dropped)
    return Cleaned(np.array([[0, length]], np.int64), dropped)


def _failed_tests_of_piece(values: Float[np.ndarray, " T"], zero: float) -> PerWindow | None:
    """As `_failed_tests` for a series of finite points only; None if no window fails.

    Most series are short and whole, and a call into NumPy takes longer than its work on them. So
    this makes few calls, and ends early where the whole series has no more zeros than one window
    may have. It makes cleaning a folder 2 (8,192 points) to 4 times (512 points) as fast.
    """
    count = len(values)
    masks = (
        values == values.dtype.type(zero),
        values[1:] == values[:-1],
        values[2:] == values[:-2],
    )
    # A piece shorter than a window is one; the last window of others may have more, never fewer.
    zeros, repeated, alternating = _FEWEST[min(count, WINDOW)]
    if (
        np.count_nonzero(masks[0]) <= zeros
        and np.count_nonzero(masks[1]) <= repeated
        and np.count_nonzero(masks[2]) <= alternating
    ):
        return None
    table = np.zeros((len(_TESTS), count), bool)
    for row, mask in zip(table, masks, strict=True):
        row[: len(mask)] = mask
    rest = (max(count // WINDOW, 1) - 1) * WINDOW  # where the last window begins
    # Differences that reach beyond a window's last point do not belong to it.
    table[1:, WINDOW - 1 : rest : WINDOW] = False
    table[2, WINDOW - 2 : rest : WINDOW] = False
    starts = np.arange(0, rest + 1, WINDOW)
    counts = np.add.reduceat(table.view(np.uint8), starts, axis=1, dtype=np.uint8)
    too_many = counts > _LIMITS[:, WINDOW, None]
    too_many[:, -1] = counts[:, -1] > _LIMITS[:, count - rest]
    if not too_many.any():
        return None
    return np.where(too_many.any(0), too_many.argmax(0), len(_TESTS))


def _true_runs(mask: Bool[np.ndarray, " T"]) -> Int64[np.ndarray, "N 2"]:
    """The start and stop of each run of True."""
    if len(mask) and mask.all():
        return np.array([[0, len(mask)]], np.int64)
    edges = np.flatnonzero(np.diff(mask, prepend=False, append=False))
    return edges.astype(np.int64).reshape(-1, 2)


def _windows(
    pieces: Int64[np.ndarray, "N 2"], lengths: Int64[np.ndarray, " N"]
) -> tuple[PerWindow, PerWindow, PerWindow]:
    """Start and stop of each window, and the piece that it belongs to."""
    if len(pieces) == 1:  # the usual case, in fewer steps
        begin, end = pieces[0].tolist()
        starts = np.arange(begin, max(end - WINDOW + 1, begin + 1), WINDOW)
        stops = starts + WINDOW
        stops[-1] = end
        return starts, stops, np.zeros(len(starts), np.int64)
    counts = np.maximum(lengths // WINDOW, 1)
    ends = counts.cumsum()
    piece_of = np.arange(len(pieces)).repeat(counts)
    within = np.arange(len(piece_of)) - (ends - counts)[piece_of]
    starts = pieces[piece_of, 0] + WINDOW * within
    stops = starts + WINDOW
    stops[ends - 1] = pieces[:, 1]
    return starts, stops, piece_of


def _failed_tests(
    values: Float[np.ndarray, " T"],
    zero: float,
    finite: Bool[np.ndarray, " T"],
    starts: PerWindow,
    stops: PerWindow,
) -> PerWindow:
    """The first test that each window fails, as its index in `_TESTS`, or their number if none."""
    failed = np.full(len(starts), len(_TESTS), np.int64)
    first = 0
    while first < len(starts):
        begin = int(starts[first])
        # A block holds at least one window, and ends between windows.
        end = max(int(stops.searchsorted(begin + _BLOCK, side="right")), first + 1)
        block, inner = slice(begin, int(stops[end - 1])), slice(first, end)
        sizes = stops[inner] - starts[inner]
        counts = _zero_counts(
            values[block], zero, finite[block], starts[inner] - begin, stops[inner] - begin
        )
        too_many = counts > _LIMITS[:, sizes]
        if too_many.any():
            failed[inner] = np.where(too_many.any(0), too_many.argmax(0), len(_TESTS))
        first = end
    return failed


def _zero_counts(
    values: Float[np.ndarray, " T"],
    zero: float,
    finite: Bool[np.ndarray, " T"],
    starts: PerWindow,
    stops: PerWindow,
) -> UInt8[np.ndarray, "3 W"]:
    """How many values, and how many differences at lag 1 and 2, are zero in each window."""
    # In the dtype of the values, so that none of these are converted.
    masks = [values == values.dtype.type(zero)]
    for lag in (1, 2):
        equal = np.zeros(len(values), bool)
        np.equal(values[lag:], values[:-lag], out=equal[:-lag])
        equal &= finite  # infinity equals infinity
        # Differences that reach beyond the window's last point do not belong to it. In a window of
        # one point, the second of these is of the point before, and of no window either.
        for back in range(1, lag + 1):
            equal[stops - back] = False
        masks.append(equal)
    # A window has at most 255 points, and between windows all is False: a byte is enough.
    counts = np.empty((len(masks), len(starts)), np.uint8)
    for mask, row in zip(masks, counts, strict=True):
        np.add.reduceat(mask.view(np.uint8), starts, dtype=np.uint8, out=row)
    return counts


def _join(
    valid: Bool[np.ndarray, " W"], piece_of: PerWindow
) -> tuple[Bool[np.ndarray, " W"], Bool[np.ndarray, " W"]]:
    """Where runs of adjacent valid windows of one piece begin, and where they end."""
    same = (piece_of[1:] == piece_of[:-1]) & valid[1:] & valid[:-1]
    begins, ends = valid.copy(), valid.copy()
    begins[1:] &= ~same
    ends[:-1] &= ~same
    return begins, ends
