"""Families as a source to train on: which series is which, and how families are chosen."""

import pickle
import threading

import numpy as np
import pytest

from timemoe_jax.data.generators.augmentations import MissingSpells
from timemoe_jax.data.generators.generated_source import BLOCK, LANES, GeneratedSource
from timemoe_jax.data.generators.registry import FAMILIES, make_generator, parse_families
from timemoe_jax.data.pipeline.windows import WindowIndex, WindowSource
from timemoe_jax.errors import DataError


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_families_are_chosen_by_name_and_weight():
    assert parse_families("arima, chaos:2.5") == {"arima": 1.0, "chaos": 2.5}
    assert parse_families(" ") == dict.fromkeys(FAMILIES, 1.0)
    for wrong in ("arima:x", "arima:0", ":2", "arima:-1", "arima:nan"):
        with pytest.raises(DataError, match=f"families has '{wrong}'; .* with a positive weight"):
            parse_families(wrong)
    with pytest.raises(DataError, match="families has 'arima' twice"):
        parse_families("arima,arima")
    with pytest.raises(DataError, match="did you mean arima"):
        make_generator("arma")
    with pytest.raises(DataError, match="give a source"):
        make_generator("tsmixup")


def small_source(count: int = 5000, **changes) -> GeneratedSource:
    arguments = {"families": "arima:3,diffusion", "length": 50, "seed": 7} | changes
    return GeneratedSource.parse(num_sequences=count, **arguments)


def test_a_series_of_a_source_depends_on_seed_and_number_alone():
    source, again = small_source(), small_source(4000)
    order = rng().permutation(4000)[:60]
    found = {i: source[i] for i in order}
    for i in sorted(order):
        np.testing.assert_array_equal(again[i], found[i])
        np.testing.assert_array_equal(again.read(i, 10, 30), found[i][10:30])
        assert again.name(i) == source.name(i)
    assert len({values.tobytes() for values in found.values()}) == 60
    assert not np.array_equal(small_source(seed=8)[0], source[0])
    assert source.lengths.shape == (5000,)


def test_neighbors_are_a_mixture_by_weight():
    source = small_source()
    names = [source.family(i) for i in range(BLOCK * LANES * 4)]
    # In the first 16, 3 parts in 4 are of the first family.
    assert names[:LANES].count("arima") == 12
    assert names.count("arima") == 0.75 * len(names)
    assert "(arima)" in source.name(names.index("arima"))


def test_what_is_read_may_be_written_to():
    source = small_source()
    first = source[3]
    source[3][:] = 0
    np.testing.assert_array_equal(source[3], first)


def test_a_source_is_small_in_another_process_and_the_same():
    source = small_source(1_000_000)
    source[5]
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[5], source[5])


def test_threads_get_what_one_alone_gets():
    source, expected = small_source(), [small_source()[i] for i in range(0, 2000, 50)]
    found: dict[int, np.ndarray] = {}

    def read(start: int) -> None:
        for i in range(start, 2000, 200):
            found[i] = source[i]

    threads = [threading.Thread(target=read, args=(start,)) for start in (0, 50, 100, 150)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal([found[i] for i in range(0, 2000, 50)], expected)


def test_a_source_makes_windows():
    source = small_source()
    windows = WindowSource(source, WindowIndex(source.lengths, 20))
    window = windows[77]
    assert window["mask"].all()
    assert np.all(np.isfinite(window["values"]))


def test_a_source_can_be_augmented():
    generators = {"arima": make_generator("arima")}
    plain = GeneratedSource(generators, None, 50, 7, 100)
    gaps = GeneratedSource(generators, None, 50, 7, 100, MissingSpells(share=(0.3, 0.3)))
    missing = np.isnan(np.stack(list(gaps)))
    assert missing.mean() == pytest.approx(0.3, abs=0.08)
    np.testing.assert_array_equal(np.stack(list(plain))[~missing], np.stack(list(gaps))[~missing])


@pytest.mark.parametrize(
    "changes", [{"length": 1}, {"seed": -1}, {"weights": {"chaos": 1.0}}, {"families": {}}]
)
def test_wrong_arguments_of_a_source(changes):
    arguments = {"families": {"arima": make_generator("arima")}, "weights": None}
    with pytest.raises(DataError, match=r"must be at least|at least one"):
        GeneratedSource(**(arguments | {"length": 10, "seed": 0} | changes))
