"""Checkpoints: round trips, damage of every file, killed runs, and every kind of folder."""

import dataclasses
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from flax import nnx
from places import GOLDEN, ROOT
from safetensors.numpy import load_file, save_file

from timemoe_jax.checkpoints.checksums import checksum, sum_on_host, sums_on_device, weights_digest
from timemoe_jax.checkpoints.load import LoadedModel, convert, load_model, save_model
from timemoe_jax.checkpoints.published import read_published
from timemoe_jax.checkpoints.store import Checkpoints
from timemoe_jax.errors import CheckpointError
from timemoe_jax.models.base import abstract_model, create_params
from timemoe_jax.models.time_moe.config import TimeMoeConfig

MOE_TINY = GOLDEN / "moe_tiny"
CONFIG = TimeMoeConfig(
    hidden_size=8,
    intermediate_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    num_experts=2,
    num_experts_per_tok=1,
    horizon_lengths=(1, 8),
)
RUN = {"model": dataclasses.asdict(CONFIG), "seed": 3, "optimizer": {"learning_rate": 1e-3}}
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
ITEMS = {"params", "opt_state", "data", "config"}


@pytest.fixture(scope="module")
def params() -> nnx.State:
    return create_params(CONFIG, seed=0)


@jax.jit
def update(params: nnx.State, state: optax.OptState, i: int) -> tuple[nnx.State, optax.OptState]:
    grads = jax.tree.map(lambda p: jnp.sin(p * 1000 + i), params)
    updates, state = OPTIMIZER.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def train(params: nnx.State, times: int = 1) -> tuple[nnx.State, optax.OptState]:
    """Parameters and an optimizer state that are not zeros."""
    state = jax.jit(OPTIMIZER.init)(params)
    for i in range(times):
        params, state = update(params, state, i)
    return params, state


@functools.cache
def abstract_params() -> nnx.State:
    return abstract_model(CONFIG)[1]


@functools.cache
def abstract() -> dict:
    target = abstract_params()
    return {"params": target, "opt_state": jax.eval_shape(OPTIMIZER.init, target)}


def iterator() -> grain.DatasetIterator:
    source = grain.MapDataset.source(range(100)).seed(1).shuffle().repeat().batch(4)
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    return iter(source.to_iter_dataset(options))


def assert_same(one: object, other: object) -> None:
    structure: Any = jax.tree.structure(one)
    assert structure == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def bfloat16(tree: nnx.State) -> nnx.State:
    return jax.tree.map(lambda a: a.astype(jnp.bfloat16), tree)


def test_everything_comes_back_bit_by_bit(tmp_path, params):
    params, opt_state = train(params, 3)
    data = iterator()
    seen = [next(data) for _ in range(3)]
    with Checkpoints(tmp_path / "ck", config=RUN) as checkpoints:
        checkpoints.save(3, params, opt_state, data, {"tokens": 12, "skipped": 0})
        expected = [next(data) for _ in range(4)]  # goes on while the save does
    resumed = iterator()
    with Checkpoints(tmp_path / "ck", config=RUN) as checkpoints:
        restored = checkpoints.restore(**abstract(), data_iterator=resumed)
    assert (restored.step, restored.extra) == (3, {"tokens": 12, "skipped": 0})
    assert_same(restored.params, params)
    assert_same(restored.opt_state, opt_state)
    assert isinstance(restored.opt_state[1][0], optax.ScaleByAdamState)
    assert len(seen) == 3
    np.testing.assert_array_equal([next(resumed) for _ in range(4)], expected)


def test_grain_data_loader_state_is_bytes_and_comes_back(tmp_path, params):
    def loader():
        sampler = grain.samplers.IndexSampler(10, num_epochs=None, shuffle=True, seed=1)
        source = grain.sources.RangeDataSource(0, 10, 1)
        return iter(grain.DataLoader(data_source=source, sampler=sampler))

    data = loader()
    for _ in range(3):
        next(data)
    with Checkpoints(tmp_path, config=RUN) as checkpoints:
        checkpoints.save(1, params, data_iterator=data)
        expected = [next(data) for _ in range(5)]
        resumed = loader()
        checkpoints.restore(params=abstract_params(), data_iterator=resumed)
    assert [next(resumed) for _ in range(5)] == expected


def test_dtypes_are_those_saved(tmp_path, params):
    mixed = bfloat16(params)
    mixed["norm"]["scale"] = params["norm"]["scale"]
    with Checkpoints(tmp_path, config=RUN) as checkpoints:
        checkpoints.save(1, mixed)
        assert_same(checkpoints.restore(params=abstract_params()).params, mixed)
    loaded = load_model(tmp_path)
    assert_same(loaded.params, mixed)
    assert loaded.digest == weights_digest(mixed) != weights_digest(params)


def test_a_state_without_arrays_is_a_state(tmp_path, params):
    sgd = optax.sgd(0.1).init(params)
    with Checkpoints(tmp_path, config=RUN) as checkpoints:
        checkpoints.save(1, params, sgd)
        assert checkpoints.restore(params=params, opt_state=sgd).opt_state == sgd


def test_arrays_come_back_sharded_as_asked(tmp_path, params):
    devices = jax.device_count()
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def sharded(a):
        spec = jax.sharding.PartitionSpec("data" if a.shape[0] % devices == 0 else None)
        return jax.device_put(a, jax.sharding.NamedSharding(mesh, spec))

    target = jax.tree.map(sharded, params)
    with Checkpoints(tmp_path, config=RUN) as checkpoints:
        checkpoints.save(1, params)
        restored = checkpoints.restore(params=target).params
    assert_same(restored, params)
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(target), strict=True):
        assert a.sharding == b.sharding


def test_what_is_saved_is_what_was_there_at_the_call(tmp_path):
    """The next update overwrites the very buffers that the background threads are to write."""
    size = 4_000_000
    start = np.arange(size, dtype=np.float32)
    step = jax.jit(lambda p: jax.tree.map(lambda a: a * 0 - 1, p), donate_argnums=0)
    on_host = start.copy()
    with Checkpoints(tmp_path, config=RUN) as checkpoints:
        for number in range(3):
            state = {"w": jnp.asarray(start) + number}
            checkpoints.save(number, state, {"m": on_host})
            old = state["w"]
            for _ in range(3):
                state = step(state)
            old.delete()
            on_host += 1
            jax.block_until_ready(state)
        for number in range(3):
            target = jax.eval_shape(lambda: {"w": jnp.zeros(size)})
            restored = checkpoints.restore(number, params=target, opt_state={"m": on_host})
            np.testing.assert_array_equal(restored.params["w"], start + number)
            np.testing.assert_array_equal(restored.opt_state["m"], start + number)


def test_the_newest_are_kept(tmp_path, params):
    with Checkpoints(tmp_path, keep=2, config=RUN) as checkpoints:
        assert checkpoints.steps() == []
        for step in (2, 4, 6, 8):
            checkpoints.save(step, params)
        checkpoints.wait()
        assert checkpoints.steps() == [6, 8]
    with Checkpoints(tmp_path, keep=2, config=RUN) as checkpoints:
        assert checkpoints.restore(params=params).step == 8
        checkpoints.save(10, params)
        checkpoints.wait()
        assert checkpoints.steps() == [8, 10]


def test_a_step_that_exists(tmp_path, params):
    other = train(params)[0]
    with Checkpoints(tmp_path, config=RUN) as checkpoints:
        checkpoints.save(4, params)
        checkpoints.save(4, params)  # the final save of a run that has just saved
        checkpoints.save(6, params)
    with Checkpoints(tmp_path, config=RUN) as checkpoints:
        checkpoints.restore(params=params)
        checkpoints.save(6, params)  # resumed from it
    with Checkpoints(tmp_path, config=RUN) as checkpoints:
        checkpoints.restore(4, params=params)
        checkpoints.save(5, other)  # older than the newest, and still saved
        checkpoints.save(6, other)  # another run got there
        assert checkpoints.restore(params=params).step == 6
        assert_same(checkpoints.restore(6, params=params).params, other)
        assert_same(checkpoints.restore(5, params=params).params, other)


def test_what_is_not_there_is_named(tmp_path, params):
    checkpoints = Checkpoints(tmp_path / "none", config=RUN)
    with pytest.raises(CheckpointError, match="none holds no checkpoint"):
        checkpoints.restore(params=params)
    assert not (tmp_path / "none").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is a file"):
        Checkpoints(tmp_path / "file", config=RUN)
    with Checkpoints(tmp_path / "ck", config=RUN) as checkpoints:
        checkpoints.save(1, params)
        checkpoints.save(2, params)
        checkpoints.wait()
        with pytest.raises(CheckpointError, match="holds no step 5; it holds 1, 2"):
            checkpoints.restore(5, params=params)
        with pytest.raises(CheckpointError, match="holds no opt_state"):
            checkpoints.restore(**abstract())
        with pytest.raises(CheckpointError, match="holds no state of a data iterator"):
            checkpoints.restore(params=params, data_iterator=iterator())


def test_a_model_of_another_shape_is_named_and_nothing_called_damaged(tmp_path, params):
    wide = abstract_model(dataclasses.replace(CONFIG, intermediate_size=32))[1]
    long = abstract_model(dataclasses.replace(CONFIG, horizon_lengths=(1, 4)))[1]
    with Checkpoints(tmp_path, config=RUN) as checkpoints:
        checkpoints.save(1, params)
        with pytest.raises(
            CheckpointError, match=r"ffn\S+ is \(2, 2, 16, 8\), not \(2, 2, 32, 8\)"
        ):
            checkpoints.restore(params=wide)
        with pytest.raises(CheckpointError, match=r"heads.4.kernel is missing; heads.8.\w+ is une"):
            checkpoints.restore(params=long)


def test_a_write_that_fails_is_one_line(tmp_path, params):
    (tmp_path / "file").write_text("")
    checkpoints = Checkpoints(tmp_path / "file" / "ck", config=RUN)
    with pytest.raises(CheckpointError, match=r"step 1.* could not be written") as caught:
        checkpoints.save(1, params)
    assert "\n" not in str(caught.value)


# Damage.


@pytest.fixture(scope="module")
def run(tmp_path_factory, params) -> Path:
    """A run with steps 20, 40 and 60."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    data = iterator()
    with Checkpoints(folder, config=RUN) as checkpoints:
        for i, step in enumerate((20, 40, 60)):
            next(data)
            checkpoints.save(step, *train(params, i + 1), data, {"tokens": step})
    return folder


def files_of(step: Path) -> list[Path]:
    return sorted(f.relative_to(step) for f in step.rglob("*") if f.is_file())


def flip(at: float):
    def damage(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[min(int(at * len(content)), len(content) - 1)] ^= 0x04
        file.write_bytes(content)

    return damage


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


DAMAGES = {
    **{f"flip at {at}": flip(at) for at in (0.0, 0.4, 1.0)},
    "truncate": truncate,
    "empty": lambda file: file.write_bytes(b""),
    "delete": lambda file: file.unlink(),
    "garbage": lambda file: file.write_bytes(os.urandom(file.stat().st_size)),
}


def restore(folder: Path):
    with Checkpoints(folder, config=RUN) as checkpoints:
        data = iterator()
        return checkpoints.restore(**abstract(), data_iterator=data), next(data)


@pytest.fixture(scope="module")
def restored_run(run):
    return restore(run)


@pytest.mark.parametrize("damage", DAMAGES)
def test_no_damage_of_a_file_goes_unnoticed(tmp_path, run, restored_run, damage):
    """Each file in turn; where nothing is reported, every value must be right."""
    expected, batch = restored_run
    noticed = set()
    folder = tmp_path / "checkpoints"
    shutil.copytree(run / "60", folder / "60")
    for file in files_of(run / "60"):
        DAMAGES[damage](folder / "60" / file)
        try:
            restored, next_batch = restore(folder)
        except CheckpointError as error:
            message = str(error)
            noticed.add(file.parts[0])
            assert "\n" not in message
            assert len(message) < 1000
            assert f"step 60 in {folder} is damaged: " in message
            assert message.endswith("; there is no other good checkpoint")
        else:
            assert (restored.step, restored.extra) == (60, {"tokens": 60}), file
            assert_same(restored[1:3], expected[1:3])
            np.testing.assert_array_equal(next_batch, batch)
        finally:
            (folder / "60" / file).write_bytes((run / "60" / file).read_bytes())
    assert noticed >= ITEMS


def test_every_byte_of_the_json_counts(tmp_path, run):
    folder = tmp_path / "checkpoints"
    shutil.copytree(run / "60", folder / "60")
    file = folder / "60" / "config" / "metadata"
    content = file.read_text()
    for old, new in (('"seed": 3', '"seed": 4'), ('"tokens": 60', '"tokens": 61')):
        file.write_text(content.replace(old, new))
        assert file.read_text() != content
        with pytest.raises(CheckpointError, match="does not match its checksum; there is no other"):
            Checkpoints(folder).restore(params=abstract_params())


@pytest.mark.parametrize("item", sorted(ITEMS))
@pytest.mark.parametrize("empty", [False, True])
def test_a_missing_or_empty_item_is_noticed(tmp_path, run, item, empty):
    folder = tmp_path / "checkpoints"
    shutil.copytree(run, folder)
    shutil.rmtree(folder / "60" / item)
    if empty:
        (folder / "60" / item).mkdir()
    with pytest.raises(CheckpointError) as caught:
        restore(folder)
    message = str(caught.value)
    assert f"step 60 in {folder} is damaged: " in message
    assert "; the newest good checkpoint is step 40; restore it with step=40 or load" in message
    assert message.endswith(f"or delete {folder / '60'} to resume from it")


def test_the_newest_good_one_is_found_past_damaged_ones(tmp_path, run):
    folder = tmp_path / "checkpoints"
    shutil.copytree(run, folder)
    shutil.rmtree(folder / "60")
    (folder / "60").mkdir()
    for file in (folder / "40" / "opt_state").rglob("d/*"):
        flip(0.5)(file)
    with pytest.raises(CheckpointError) as caught:
        restore(folder)
    message = str(caught.value)
    assert "the newest good checkpoint is step 20; restore it with step=20" in message
    assert message.endswith(f"delete {folder / '40'} and {folder / '60'} to resume from it")
    with Checkpoints(folder, config=RUN) as checkpoints:  # what the message says works
        restored = checkpoints.restore(20, **abstract())
        assert restored.extra == {"tokens": 20}
        checkpoints.save(60, restored.params, restored.opt_state, iterator())
    assert restore(folder)[0].step == 60
    shutil.rmtree(folder / "20")
    shutil.rmtree(folder / "40")
    flip(0.5)(folder / "60" / "config" / "metadata")
    with pytest.raises(CheckpointError, match=r"there is no other good checkpoint$"):
        restore(folder)


def test_a_damaged_step_does_not_stop_saving(tmp_path, run, params):
    folder = tmp_path / "checkpoints"
    shutil.copytree(run, folder)
    for file in files_of(folder / "60"):
        (folder / "60" / file).write_bytes(b"x")
    with Checkpoints(folder, config=RUN) as checkpoints:
        checkpoints.save(80, params)
        checkpoints.wait()
        assert checkpoints.steps() == [40, 60, 80]
        assert checkpoints.restore(params=params).step == 80


def rewrite_meta(step: Path, change) -> None:
    """Changes what a step says of itself, and gives it the checksum of the change."""
    file = step / "config" / "metadata"
    meta = json.loads(file.read_text())
    del meta["crc32"]
    change(meta)
    file.write_text(json.dumps({**meta, "crc32": checksum(meta)}))


def test_another_format_is_an_error_that_says_what_to_do(run, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(run / "60", folder / "60")
    for number, end in ((1, "reads 2; `timemoe convert` of commit ffdbe94 rewrites it"), (3, "2")):
        rewrite_meta(folder / "60", lambda meta, number=number: meta.update(format=number))
        with pytest.raises(CheckpointError, match=f"has format {number}, but .*{end}$"):
            load_model(folder)


def test_the_data_state_of_other_processes(tmp_path, run, restored_run):
    """It is one for all when they agree; a part that is missing or damaged is noticed."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(run / "60", folder / "60")
    one = folder / "60" / "data" / "process_0-of-1.json"
    parts = [one.with_name(f"process_{i}-of-2.json") for i in range(2)]
    content = one.read_text()
    one.unlink()
    for part in parts:
        part.write_text(content)
    np.testing.assert_array_equal(restore(folder)[1], restored_run[1])
    other = json.loads(content)
    del other["crc32"]
    other["state"] = {"next_index": 7}
    parts[1].write_text(json.dumps({**other, "crc32": checksum(other)}))
    with pytest.raises(CheckpointError, match=r"each of 2 processes saved .* only 2 can go on"):
        restore(folder)
    flip(0.5)(parts[1])
    with pytest.raises(CheckpointError, match=r"data iterator does not match|cannot be read"):
        restore(folder)
    parts[1].unlink()
    with pytest.raises(CheckpointError, match="the state of its data iterator is missing"):
        restore(folder)


SHAPES = ((), (0,), (3,), (2, 3, 5), (300, 257))
DTYPES = ("bool", "int8", "float8_e4m3fn", "bfloat16", "float16", "float32", "int32", "uint32")


@pytest.mark.parametrize("dtype", [*DTYPES, "float64"])
def test_a_device_and_the_host_sum_alike(dtype):
    rng = np.random.default_rng(0)
    drawn = {str(shape): np.asarray(rng.normal(size=shape) * 3) for shape in SHAPES}
    arrays = {name: array.astype(jnp.dtype(dtype)) for name, array in drawn.items()}
    with jax.enable_x64(dtype == "float64"):
        found = sums_on_device({name: jnp.asarray(array) for name, array in arrays.items()})
    for name, array in arrays.items():
        assert int(found[name]) == sum_on_host(array)
        assert sum_on_host(np.asfortranarray(array)) == sum_on_host(array)


def test_a_sum_notices_what_damage_does():
    """Any bit, and any two values that change places, even where all are powers of two."""
    array = 2.0 ** np.random.default_rng(0).integers(-9, 9, 1 << 17).astype(np.float32)
    right = sum_on_host(array)
    words = array.view(np.uint32)
    for i in range(0, words.size, 9973):
        for bit in range(0, 32, 5):
            words[i] ^= 1 << bit
            assert sum_on_host(array) != right
            words[i] ^= 1 << bit
    for i, j in ((0, 1), (5, 5 + (1 << 16)), (7, 7 + (1 << 15)), (0, (1 << 17) - 1)):
        if array[i] != array[j]:
            array[[i, j]] = array[[j, i]]
            assert sum_on_host(array) != right
            array[[i, j]] = array[[j, i]]
    half = 1 << 16
    assert sum_on_host(np.roll(array, half)) != right  # two shards that have changed places
    assert sum_on_host(array) == right


def test_iterator_of_another_kind_is_named(run, params):
    class Wrong:
        def set_state(self, state):
            raise ValueError(f"expected 2 workers,\ngot {len(state)}")

    with pytest.raises(CheckpointError, match="data iterator does not fit this one: ValueError: e"):
        Checkpoints(run).restore(params=params, data_iterator=Wrong())


LOOP = """
import sys
import jax.numpy as jnp
from timemoe_jax.checkpoints.store import Checkpoints
with Checkpoints(sys.argv[1], keep=3, config={"model": {}}) as checkpoints:
    for step in range(1, 100_000):
        arrays = {f"w{i}": jnp.full((200, 200), step, jnp.float32) for i in range(20)}
        checkpoints.save(step, arrays, {"m": arrays["w0"]}, extra={"step": step})
        print(step, flush=True)
"""


def test_a_killed_run_leaves_whole_checkpoints(tmp_path):
    root = ROOT
    env = {**os.environ, "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
    target = jax.eval_shape(lambda: {f"w{i}": jnp.zeros((200, 200)) for i in range(20)})
    newest = 0
    for delay in (0.0, 0.013):
        command = [sys.executable, "-c", LOOP, str(tmp_path)]
        with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
            try:
                # Steps that are there already are saved again: pass them before the kill.
                while int(process.stdout.readline()) < newest + 4:
                    pass
                time.sleep(delay)
            finally:
                process.send_signal(signal.SIGKILL)
        with Checkpoints(tmp_path) as checkpoints:
            steps = checkpoints.steps()
            # The kill may have come while the oldest was being deleted.
            for step in steps[1:] or steps:
                state = checkpoints.restore(step, params=target, opt_state={"m": target["w0"]})
                assert state.extra == {"step": step}
                assert all((np.asarray(a) == step).all() for a in jax.tree.leaves(state[1:3]))
        assert steps[-1] > newest
        newest = steps[-1]
    with Checkpoints(tmp_path, config={}) as checkpoints:  # and the leftovers go
        checkpoints.save(newest + 100, {"w": jnp.zeros(3)})
    assert all(f.name.isdigit() for f in tmp_path.iterdir())


# Loading for inference.


def bfloat16_copy(dest: Path) -> Path:
    shutil.copytree(MOE_TINY, dest, ignore=shutil.ignore_patterns("*.npz"))
    tensors = load_file(MOE_TINY / "model.safetensors")
    save_file(
        {name: t.astype(ml_dtypes.bfloat16) for name, t in tensors.items()},
        dest / "model.safetensors",
        metadata={"format": "pt"},
    )
    config = json.loads((MOE_TINY / "config.json").read_text())
    (dest / "config.json").write_text(json.dumps({**config, "torch_dtype": "bfloat16"}, indent=2))
    return dest


def test_load_model_reads_every_kind_of_folder(tmp_path):
    published = load_model(MOE_TINY)
    assert isinstance(published, LoadedModel)
    assert published.step is None
    assert published.source == str(MOE_TINY)
    assert published.published_config == json.loads((MOE_TINY / "config.json").read_text())
    config = dataclasses.replace(published.config, dtype="bfloat16", remat="full")
    workdir = tmp_path / "run"
    folder = workdir / "checkpoints"
    with Checkpoints(folder, config={"model": dataclasses.asdict(config)}) as checkpoints:
        checkpoints.save(7, jax.tree.map(jnp.zeros_like, published.params))
        checkpoints.save(9, published.params, OPTIMIZER.init(published.params), iterator())
    for place in (workdir, folder, folder / "9", str(workdir)):
        loaded = load_model(place)
        assert_same(loaded.params, published.params)
        assert loaded.digest == published.digest
        assert loaded.config == config
        assert (loaded.step, loaded.source) == (9, str(folder / "9"))
        assert loaded.published_config is None
    assert load_model(folder / "7").digest != published.digest
    shutil.rmtree(folder / "9" / "opt_state")  # not needed
    shutil.rmtree(folder / "9" / "data")
    assert load_model(workdir).step == 9


def test_load_model_warns_of_fields_that_it_does_not_know(tmp_path):
    place = tmp_path / "model"
    shutil.copytree(MOE_TINY, place)
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, "sliding": 3, "window": 1}))
    with pytest.warns(UserWarning, match="not understood, ignored: sliding, window"):
        load_model(place)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_model(MOE_TINY)


def test_load_model_says_what_it_found(tmp_path):
    def message(place: Path) -> str:
        with pytest.raises(CheckpointError) as caught:
            load_model(place)
        text = str(caught.value)
        assert "\n" not in text
        assert str(place) in text
        return text

    accepted = "give a published folder (config.json and safetensors), a run's folder"
    (tmp_path / "file").write_text("x")
    (tmp_path / "other").mkdir()
    assert "is empty" in message(tmp_path / "other")
    for name in "abcdefg":
        (tmp_path / "other" / name).write_text("x")
    (tmp_path / "run" / "checkpoints" / "40.orbax-checkpoint-tmp").mkdir(parents=True)
    found = {
        "missing": "does not exist",
        "file": "is a file",
        "other": "holds only a, b, c, d, e and 2 more",
        "run": "checkpoints holds only 40.orbax-checkpoint-tmp",
    }
    for name, what in found.items():
        text = message(tmp_path / name)
        assert what in text
        assert accepted in text


def test_load_model_notices_damage(tmp_path, run):
    folder = tmp_path / "run" / "checkpoints"
    shutil.copytree(run, folder)
    for file in (folder / "60" / "params").rglob("d/*"):
        flip(0.5)(file)
    for place in (tmp_path / "run", folder, folder / "60"):
        with pytest.raises(CheckpointError, match=r"step 60 .* or load \S+40, or delete \S+60 to"):
            load_model(place)
    assert load_model(folder / "40").step == 40
    shutil.rmtree(folder / "60")
    (folder / "60").mkdir()
    with pytest.raises(CheckpointError, match="configuration is missing"):
        load_model(folder / "60")


def test_load_model_names_a_configuration_that_it_cannot_use(tmp_path, params):
    model = dataclasses.asdict(CONFIG)
    configs = {
        "no model": {},
        "has no field 'hidden'": {"model": {"hidden": 3}},
        "does not fit": {"model": {**model, "num_hidden_layers": 3}},
    }
    for i, (message, config) in enumerate(configs.items()):
        with Checkpoints(tmp_path / str(i), config=config) as checkpoints:
            checkpoints.save(1, params)
        with pytest.raises(CheckpointError, match=message):
            load_model(tmp_path / str(i) / "1")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_conversion_both_ways_is_bitwise(tmp_path, dtype):
    source = MOE_TINY if dtype == "float32" else bfloat16_copy(tmp_path / "bfloat16")
    line = convert(source, tmp_path / "ck")
    assert "\n" not in line
    assert "checkpoint, 21,0" in line or "parameters" in line
    assert dtype in line
    loaded = load_model(tmp_path / "ck")
    assert_same(loaded.params, read_published(source).params)
    assert loaded.step == 0
    assert {str(a.dtype) for a in jax.tree.leaves(loaded.params)} == {dtype}
    line = convert(tmp_path / "ck", tmp_path / "back", to_safetensors=True)
    assert "safetensors" in line
    before, after = (load_file(p / "model.safetensors") for p in (source, tmp_path / "back"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype
        assert tensor.tobytes() == after[name].tobytes()
    configs = [json.loads((p / "config.json").read_text()) for p in (source, tmp_path / "back")]
    assert configs[0] == configs[1]
    assert list(configs[0]) == list(configs[1])


def test_a_run_becomes_safetensors(tmp_path, run):
    model = load_model(run)
    convert(run.parent, tmp_path / "out", to_safetensors=True)
    published = read_published(tmp_path / "out")
    assert_same(published.params, model.params)
    assert published.config == CONFIG
    assert load_model(tmp_path / "out").digest == model.digest


def test_conversion_writes_nothing_where_something_is(tmp_path, params):
    (tmp_path / "dest").mkdir()
    convert(MOE_TINY, tmp_path / "dest")  # empty is fine
    before = sorted(tmp_path.rglob("*"))
    (tmp_path / "file").write_text("")
    for to_safetensors in (False, True):
        for place in ("dest", "file"):
            with pytest.raises(CheckpointError, match="not an empty folder; nothing was written"):
                convert(MOE_TINY, tmp_path / place, to_safetensors)
    with pytest.raises(CheckpointError, match="does not exist"):
        convert(tmp_path / "nothing", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "file"])
    with pytest.raises(CheckpointError, match="already holds a model"):
        save_model(tmp_path / "dest", CONFIG, params)


def test_loading_published_weights_needs_no_orbax():
    code = (
        "import sys; sys.modules['orbax'] = None; sys.modules['grain'] = None\n"
        "from timemoe_jax.checkpoints.load import load_model\n"
        f"print(load_model({str(MOE_TINY)!r}).digest)"
    )
    root = str(ROOT)
    env = {**os.environ, "PYTHONPATH": root, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.strip() == load_model(MOE_TINY).digest, done.stderr
