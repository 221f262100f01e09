"""Which shapes the programs of a call have: few of them, by what padding and compiling cost."""

from collections.abc import Mapping

# After two, a further program for a call must save as much as compiling this many takes: a few
# more may pay over thousands of series, but a call of some dozens never waits for a third.
FURTHER_PROGRAM = 10


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()


def length_bucket(length: int) -> int:
    """Rounds a length up to one of few, by a quarter (or 15 points, if that is more) at most."""
    step = max(16, power_of_two(length) // 8)
    return -(-length // step) * step


def padded_lengths(series: Mapping[int, int], program: float) -> dict[int, int]:
    """The length that the contexts of each bucket are padded to, so that few programs serve all.

    Padding costs points to compute, and a length of its own costs a program. One bucket, or two,
    stay as they are. Of more, one or two lengths are chosen, whichever costs less in all; a third
    and further ones only where each saves as much as compiling `FURTHER_PROGRAM` of them takes.

    Args:
      series: how many contexts each bucket holds, by its length in points.
      program: the padded points that take as long to compute as a program takes to compile.

    Returns:
      by the length of each bucket the length to pad to, which is that of a bucket.
    """
    buckets = sorted(series)
    if len(buckets) <= 2:
        return {bucket: bucket for bucket in buckets}
    # best[k][j]: the least cost of the j shortest buckets in k programs, and where the last begins.
    best: list[list[tuple[float, int]]] = [[(0.0, 0)] + [(float("inf"), 0)] * len(buckets)]
    for k in range(1, len(buckets) + 1):
        price = program * (1 if k <= 2 else FURTHER_PROGRAM)
        row = [(float("inf"), 0)]
        for j in range(1, len(buckets) + 1):
            held, choices = 0, []
            for i in range(j - 1, -1, -1):
                held += series[buckets[i]]
                choices.append((best[k - 1][i][0] + price + held * buckets[j - 1], i))
            row.append(min(choices))
        best.append(row)
    k = min(range(1, len(best)), key=lambda k: (best[k][-1][0], k))
    lengths, j = {}, len(buckets)
    while j:
        i = best[k][j][1]
        lengths.update(dict.fromkeys(buckets[i:j], buckets[j - 1]))
        j, k = i, k - 1
    return dict(sorted(lengths.items()))


def rows_of_batch(count: int, size: int, length: int, more: bool, program: float) -> int:
    """Rows of a batch of `count` contexts, at most `size`: one of few numbers.

    It is a power of two, or where computing the rows that fill it up would take more than a quarter
    of what compiling a program takes, a multiple of a half, quarter or eighth of that. Where the
    batch is the rest of `more` than `size` contexts, it takes the program of those, if that costs
    fewer points than a program of its own.
    """
    most = step = power_of_two(count)
    while step * 8 > most and step > 1 and (-count % step) * length > program / 4:
        step //= 2
    rows = min(size, count + -count % step)
    return size if more and (size - rows) * length < program else rows
