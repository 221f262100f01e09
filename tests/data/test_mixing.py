"""Mixing: planned and realized shares, and draws that are the same whoever makes them."""

import collections
import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from timemoe_jax.data.config import DataConfig
from timemoe_jax.data.formats.open import SourcePart, open_parts, open_source
from timemoe_jax.data.formats.time300b.folder import write_time_moe_folder
from timemoe_jax.data.pipeline.batches import make_dataset
from timemoe_jax.data.pipeline.mixing import plan_mixture, share_metrics
from timemoe_jax.data.pipeline.order import BLOCK, MixedOrder, Schedule, permuted
from timemoe_jax.data.pipeline.packing import PackedIndex, PackedSource
from timemoe_jax.data.pipeline.splits import split_sequences, subset_parts
from timemoe_jax.data.pipeline.windows import WindowIndex, WindowSource
from timemoe_jax.data.series_source import ArraySource, SubsetSource
from timemoe_jax.errors import DataError

LENGTH = 4


def config(**fields) -> DataConfig:
    return DataConfig(path="x", length=LENGTH, **fields)


# By domain and name, how many series of how many points.
CORPUS = {
    "energy/a": (5, 9),
    "energy/b": (10, 5),
    "nature/c": (200, 5),
    "web/short": (30, 2),
}


def corpus(series=None):
    """Windows over made-up sources, whose series tell which they are of."""
    parts, arrays = [], []
    for label, (count, points) in (series or CORPUS).items():
        domain, name = label.split("/")
        parts.append(SourcePart(domain, name, len(arrays), len(arrays) + count))
        arrays += [np.arange(float(points)) for _ in range(count)]
    source = ArraySource(arrays)
    return WindowSource(source, WindowIndex(source.lengths, LENGTH)), parts


def plan(windows, parts, draws=1000, **fields):
    return plan_mixture(parts, windows.index, config(**fields), draws)


def labels_of(ids, parts):
    stops = [part.stop for part in parts]
    return [parts[int(np.searchsorted(stops, i, side="right"))].label for i in ids]


def test_points_is_the_pool_of_all_windows():
    windows, parts = corpus()
    mixture = plan(windows, parts, 500)
    assert mixture.counts is None
    # 5 series of 9 points are two windows each, which share a point: 50. Of 250: 500 / 250 epochs.
    np.testing.assert_allclose(mixture.epochs(), 2.0)
    total = 50 + 50 + 1000 + 60
    expected = {"energy": 100 / total, "nature": 1000 / total, "web": 60 / total}
    assert mixture.shares() == pytest.approx(expected)


def test_power_one_is_points_and_power_zero_is_even():
    windows, parts = corpus()
    for power, weights in ((1.0, (50, 50, 1000, 60)), (0.0, (1, 1, 1, 1)), (0.5, None)):
        mixture = plan(windows, parts, mixing="power", mixing_power=power)
        weights = np.sqrt([50, 50, 1000, 60]) if weights is None else np.array(weights)
        energy, nature, web = weights[0] + weights[1], weights[2], weights[3]
        expected = np.array([energy, nature, web]) / weights.sum()
        np.testing.assert_allclose(list(mixture.shares().values()), expected, rtol=1e-6)


def test_fixed_weights_by_domain_and_by_source():
    """A source with a weight of its own is no part of its domain's."""
    windows, parts = corpus()
    weights = "energy:1,energy/b:2,nature:5,web:2"
    mixture = plan(windows, parts, mixing="fixed", mixing_weights=weights)
    assert mixture.shares() == pytest.approx({"energy": 0.3, "nature": 0.5, "web": 0.2})
    # Two of five points of a window of web are there: it takes more windows for its share.
    per_window = np.array([5.0, 5.0, 5.0, 2.0])
    by_points = np.array(mixture.counts) * per_window
    np.testing.assert_allclose(by_points / by_points.sum(), [0.1, 0.2, 0.5, 0.2], rtol=1e-6)
    text = str(mixture)
    assert text.startswith("fixed: nature 50.00% (")
    assert "epochs" in text


def test_weights_may_be_of_windows():
    """As many windows of a source of short series as its weight says, whatever is in them."""
    windows, parts = corpus()
    weights = "energy:1,energy/b:2,nature:5,web:2"
    fields = {"mixing": "fixed", "mixing_weights": weights, "mixing_unit": "windows"}
    counts = np.array(plan(windows, parts, **fields).counts)
    np.testing.assert_allclose(counts / counts.sum(), [0.1, 0.2, 0.5, 0.2], rtol=1e-3)


def test_weight_zero_leaves_out_and_says_so():
    windows, parts = corpus()
    mixture = plan(windows, parts, mixing="fixed", mixing_weights="energy:1,nature:0,web:1")
    assert mixture.counts[2] == 0
    assert str(mixture).endswith("never drawn from: nature/c")
    drawn = MixedOrder(mixture, 0).windows(np.arange(400))
    seen = set(windows.batch(drawn)["sequence"].tolist())
    assert not seen & set(range(15, 215))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("energy:1,nature:1", "gives no weight to web/short"),
        ("energy:1,nature:1,web:1,sales:1", "'sales', but no source is left for it"),
        ("energy/a:1,energy/b:1,energy:2,nature:1,web:1", "'energy', but no source is left for it"),
    ],
)
def test_weights_that_do_not_fit_the_sources(weights, message):
    windows, parts = corpus()
    with pytest.raises(DataError, match=message):
        plan(windows, parts, mixing="fixed", mixing_weights=weights)


def test_a_source_without_windows():
    windows, parts = corpus(CORPUS | {"other/none": (3, 1)})
    mixture = plan(windows, parts, mixing="power")
    assert mixture.counts[-1] == 0
    assert "never drawn from: other/none" in str(mixture)
    weights = "energy:1,nature:1,web:1,other:1"
    with pytest.raises(DataError, match="'other' 1, but it has no window"):
        plan(windows, parts, mixing="fixed", mixing_weights=weights)


def test_a_limit_on_epochs_gives_the_excess_to_the_others():
    """Of 300 draws by even power, 75 each; 10 windows thrice are 30: the rest share 240."""
    windows, parts = corpus({"d/a": (10, 5), "d/b": (10, 5), "d/c": (500, 5), "e/d": (500, 5)})
    mixture = plan(windows, parts, 300, mixing="power", mixing_power=0.0, max_epochs_per_source=3.0)
    assert mixture.counts == (30, 30, 120, 120)
    assert mixture.epochs().tolist() == [3, 3, 0.24, 0.24]
    assert "at most 3 epochs of d/a, d/b" in str(mixture)
    drawn = collections.Counter(MixedOrder(mixture, 5).windows(np.arange(300)).tolist())
    # Each window of a limited source exactly thrice, of the others at most once.
    assert {drawn[w] for w in range(20)} == {3}
    assert max(drawn[w] for w in range(20, 1020)) == 1
    free = plan(windows, parts, 300, mixing="power", mixing_power=0.0, max_epochs_per_source=9.0)
    assert free.counts == (75, 75, 75, 75)


@pytest.mark.parametrize("mixing", ["points", "power"])
def test_a_limit_that_the_run_cannot_keep(mixing):
    windows, parts = corpus({"d/a": (10, 5), "e/b": (10, 5)})
    assert plan(windows, parts, 20, mixing=mixing, max_epochs_per_source=1.0).draws == 20
    with pytest.raises(DataError, match="allows 20 windows, but the run takes 21"):
        plan(windows, parts, 21, mixing=mixing, max_epochs_per_source=1.0)


def permutation(size, seed, count=None):
    """Where the first numbers go."""
    i = np.arange(size if count is None else count)
    return permuted(i, np.full_like(i, size), np.full(len(i), seed, np.uint64)).tolist()


@given(st.integers(1, 300), st.integers(0, 2**64 - 1))
def test_a_permutation_is_one(size, seed):
    assert sorted(permutation(size, seed)) == list(range(size))


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 2**64 - 1)), min_size=1, max_size=9))
def test_permutations_side_by_side_are_those_alone(kinds):
    apart = [permutation(size, seed) for size, seed in kinds]
    i = np.concatenate([np.arange(size) for size, _ in kinds])
    size = np.concatenate([np.full(size, size) for size, _ in kinds])
    seed = np.concatenate([np.full(size, seed, np.uint64) for size, seed in kinds])
    assert permuted(i, size, seed).tolist() == list(itertools.chain(*apart))


@pytest.mark.parametrize("size", [2, 3, 5, 16, 100])
def test_permutations_of_neighboring_seeds_are_as_if_drawn(size):
    """Each number goes to each place about as often: 4000 seeds, six standard deviations."""
    places = np.zeros((size, size))
    for seed in range(4000):
        for i, place in enumerate(permutation(size, seed, min(size, 4))):
            places[i, place] += 1
    expected = 4000 / size
    deviation = math.sqrt(expected * (1 - 1 / size))
    assert np.abs(places[: min(size, 4)] - expected).max() < 6 * deviation


def test_a_permutation_of_very_many():
    size = 10**12
    seen = set(permutation(size, 3, 2000))
    assert len(seen) == 2000
    assert abs(np.mean(list(seen)) / size - 0.5) < 0.05


COUNTS = st.lists(st.integers(0, 50), min_size=1, max_size=9).filter(any)


@given(COUNTS)
def test_a_schedule_is_exact_over_a_cycle_and_even_within(counts):
    schedule = Schedule(counts)
    total = sum(counts)
    taken = [0] * len(counts)
    parts, ks = schedule.locate(np.arange(2 * total))
    for i, (part, k) in enumerate(zip(parts.tolist(), ks.tolist(), strict=True)):
        # The k-th draw of a source is its k-th: nothing is left out or comes twice.
        assert k == taken[part]
        taken[part] += 1
        for n, count in zip(taken, counts, strict=True):
            assert abs(n - (i + 1) * count / total) <= 1 + math.ceil(math.log2(len(counts)))
        if i + 1 == total:
            assert taken == list(counts)


def descend(counts, i):
    """The definition, a draw at a time, in whole numbers of any size."""
    turn, k = divmod(i, sum(counts))
    first, here = 0, list(counts)
    while len(here) > 1:
        left, right = here[: len(here) // 2], here[len(here) // 2 :]
        earlier = k * sum(left) // sum(here)
        if (k + 1) * sum(left) // sum(here) > earlier:
            here, k = left, earlier
        else:
            first, here, k = first + len(left), right, k - earlier
    return first, turn * here[0] + k


@given(COUNTS, st.sampled_from([1, 1 << 20, 1 << 40]), st.integers(0, 1 << 62))
def test_a_schedule_of_numbers_of_any_size(counts, factor, i):
    counts = [n * factor for n in counts]
    part, k = Schedule(counts).locate(np.array([i]))
    assert (part[0], k[0]) == descend(counts, i)


def test_a_schedule_of_a_whole_corpus():
    """Shares of a millionth are met, far into a run."""
    counts = [905_000, 51_700, 29_800, 6_900, 5_800, 80, 60, 1, 1]
    schedule = Schedule(counts)
    start = 10**12 + 7
    drawn = collections.Counter(schedule.locate(np.arange(start, start + 20_000))[0].tolist())
    for part, count in enumerate(counts):
        assert abs(drawn[part] - 20_000 * count / sum(counts)) <= 5


@pytest.mark.parametrize("shuffle", [False, True])
def test_an_epoch_of_a_source_holds_each_of_its_windows_once(shuffle):
    windows, parts = corpus()
    mixture = plan(windows, parts, mixing="power", mixing_power=0.0)
    drawn = MixedOrder(mixture, 3 if shuffle else None).windows(np.arange(20 * BLOCK))
    order = collections.defaultdict(list)
    # In the order of the schedule, which shuffling moves within its blocks.
    sequences, _ = windows.index.locate(drawn)
    for w, label in zip(drawn.tolist(), labels_of(sequences, parts), strict=True):
        order[label].append(w)
    for part, extent in zip(parts, mixture.extents, strict=True):
        seen = collections.Counter(order[part.label])
        assert set(seen) == set(range(extent.first, extent.stop))
        # Epochs may overlap by a block.
        times = len(order[part.label]) / len(extent)
        assert max(seen.values()) - min(seen.values()) <= 1 + math.ceil(BLOCK / len(extent))
        assert abs(np.mean(list(seen.values())) - times) < 1e-9
    if not shuffle:
        first = order["nature/c"][:200]
        assert first == sorted(first)


OPTIONS = {"seed": 4, "shuffle": True, "repeat": True}


def take(dataset, count):
    iterator = iter(dataset)
    taken = list(itertools.islice(iterator, count))
    iterator.close()
    return taken


def mixed(batch_size=8, num_threads=0, **changes):
    windows, parts = corpus()
    mixture = plan(windows, parts, mixing="power", mixing_power=0.3)
    options = {**OPTIONS, "batch_size": batch_size, "num_threads": num_threads, **changes}
    return make_dataset(windows, mixture=mixture, **options)


def ids(batches):
    return [batch["sequence"].tolist() for batch in batches]


def test_draws_follow_the_seed_and_nothing_else():
    once = ids(take(mixed(), 40))
    assert once == ids(take(mixed(), 40))
    assert once == ids(take(mixed(num_threads=3), 40))
    assert once != ids(take(mixed(seed=5), 40))


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_draws(count):
    one = ids(take(mixed(), 40))
    parts = [
        ids(take(mixed(8 // count, process_index=k, process_count=count), 40)) for k in range(count)
    ]
    for step, together in enumerate(one):
        assert sorted(i for part in parts for i in part[step]) == sorted(together)


@pytest.mark.parametrize("num_threads", [0, 2])
def test_a_saved_state_continues_exactly(num_threads):
    first = iter(mixed(num_threads=num_threads))
    for _ in range(17):
        next(first)
    state = json.loads(json.dumps(first.get_state()))
    expected = ids(itertools.islice(first, 20))
    second = iter(mixed(num_threads=num_threads))
    next(second)
    second.set_state(state)
    assert ids(itertools.islice(second, 20)) == expected
    first.close()
    second.close()


@pytest.mark.parametrize("packed", [False, True])
def test_the_realised_shares_are_those_planned(packed):
    """By the points of the batches, as they are counted for the log."""
    source_windows, parts = corpus()
    source = source_windows.source
    windows = source_windows
    if packed:
        groups = [part.stop - part.first for part in parts]
        windows = PackedSource(source, PackedIndex(source.lengths, LENGTH, 0, groups))
    weights = "energy:1,nature:1,web:2"
    mixture = plan(windows, parts, mixing="fixed", mixing_weights=weights)
    assert mixture.labels == ("energy", "nature", "web")
    dataset = make_dataset(windows, mixture=mixture, batch_size=64, num_threads=0, **OPTIONS)
    points = np.zeros(3)
    for batch in take(dataset, 64):
        counted = mixture.count(batch["sequence"], batch["mask"])
        assert counted.sum() == batch["mask"].sum()
        points += counted
    realized = share_metrics(mixture.labels, points)
    assert list(realized) == ["share_energy", "share_nature", "share_web"]
    for label, share in mixture.shares().items():
        assert abs(realized[f"share_{label}"] - share) < 0.01


def test_counting_points_by_hand():
    windows, parts = corpus({"a/x": (2, 5), "b/y": (2, 5)})
    mixture = plan(windows, parts)
    mask = np.array([[1, 1, 0], [1, 1, 1], [0, 0, 0]], bool)
    assert mixture.count(np.array([1, 3, -1]), mask).tolist() == [2, 3]
    of_points = np.array([[0, 1, 1], [1, 2, 2], [-1, -1, -1]])
    assert mixture.count(of_points, mask).tolist() == [3, 2]
    assert share_metrics(("one",), np.ones(1)) == {}
    assert share_metrics(("a", "b"), np.zeros(2)) == {}


def test_the_sources_of_one_domain_are_told_apart():
    windows, parts = corpus({"d/a": (10, 5), "d/b": (30, 5)})
    mixture = plan(windows, parts)
    assert mixture.shares() == {"d/a": 0.25, "d/b": 0.75}


def test_parts_of_opened_paths(tmp_path):
    """Time-300B folders and files, found in a search or given, with what is passed over."""
    rng = np.random.default_rng(0)
    for domain, name, count in (("energy", "load", 3), ("nature", "era5", 2)):
        folder = tmp_path / "corpus" / domain / name
        write_time_moe_folder(folder, [rng.normal(size=9) for _ in range(count)])
    (tmp_path / "corpus" / "notes.txt").write_text("no series")
    (tmp_path / "mine").mkdir()
    np.save(tmp_path / "mine" / "own.npy", rng.normal(size=(4, 9)))
    paths = f"{tmp_path / 'corpus'}, {tmp_path / 'mine' / 'own.npy'}"
    source, parts = open_parts(paths)
    assert parts == [
        SourcePart("energy", "load", 0, 3),
        SourcePart("nature", "era5", 3, 5),
        SourcePart("mine", "own.npy", 5, 9),
    ]
    same = open_source(paths)
    assert source.lengths.tolist() == same.lengths.tolist()
    assert source.skipped_files == same.skipped_files != ()
    for i in range(9):
        assert source.name(i) == same.name(i)
    one, (part,) = open_parts(str(tmp_path / "mine" / "own.npy"))
    assert type(one) is type(open_source(str(tmp_path / "mine" / "own.npy")))
    assert part == SourcePart("mine", "own.npy", 0, 4)
    train, _ = split_sequences(9, 0.4, 0)
    kept = subset_parts(parts, train)
    assert len(SubsetSource(source, train)) == kept[-1].stop
    for whole, cut in zip(parts, kept, strict=True):
        inside = [i for i in train if whole.first <= i < whole.stop]
        assert train[cut.first : cut.stop].tolist() == inside
    for bad in ("", str(tmp_path / "nowhere"), f"{tmp_path / 'corpus'},{tmp_path / 'no'}"):
        with pytest.raises(DataError) as mine:
            open_parts(bad)
        with pytest.raises(DataError) as theirs:
            open_source(bad)
        assert str(mine.value) == str(theirs.value)
