"""Published weights to parameters and back, and every way in which a folder can be wrong."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from timemoe_jax.checkpoints.published import is_published, read_published, write_published
from timemoe_jax.errors import CheckpointError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(golden: Path, tmp_path: Path) -> Path:
    """A copy of the embedded model, to be damaged."""
    copy = tmp_path / "model"
    copy.mkdir()
    for name in ("config.json", WEIGHTS):
        shutil.copy(golden / name, copy / name)
    return copy


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(folder: Path, change) -> dict[str, np.ndarray]:
    """Applies a function to the dictionary of tensors; returns it as written."""
    tensors = load_file(folder / WEIGHTS)
    tensors = change(tensors) or tensors
    save_file(tensors, folder / WEIGHTS)
    return tensors


def error_of(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_published(folder)
    message = str(caught.value)
    assert str(folder) in message
    assert "\n" not in message
    return message


def as_bytes(tensors: dict[str, np.ndarray]) -> dict[str, tuple]:
    return {name: (t.dtype.name, t.shape, t.tobytes()) for name, t in tensors.items()}


def all_tensors(folder: Path) -> dict[str, np.ndarray]:
    return {n: t for file in folder.glob("*.safetensors") for n, t in load_file(file).items()}


def test_every_tensor_stands_where_it_belongs(golden):
    """Spot checks against the published names, a transposition each."""
    tensors, published = load_file(golden / WEIGHTS), read_published(golden)
    params, name = published.params, "model.layers.1.ffn_layer.experts.5.down_proj.weight"
    np.testing.assert_array_equal(params["blocks"]["ffn"]["experts"]["down"][1, 5], tensors[name].T)
    name = "model.layers.0.self_attn.k_proj.bias"
    np.testing.assert_array_equal(params["blocks"]["attention"]["key"]["bias"][0], tensors[name])
    name = "lm_heads.2.out_layer.weight"
    np.testing.assert_array_equal(params["heads"]["32"]["kernel"][...], tensors[name].T)
    assert sum(p.size for p in jax.tree.leaves(params)) == sum(t.size for t in tensors.values())
    assert published.config.num_experts == 8
    assert published.unknown_fields == []
    assert published.source_config == json.loads((golden / "config.json").read_text())


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_round_trip_is_bitwise(folder, tmp_path, dtype):
    written = edit_tensors(folder, lambda tensors: {n: t.astype(dtype) for n, t in tensors.items()})
    published = read_published(folder)
    assert {p.dtype for p in jax.tree.leaves(published.params)} == {jnp.dtype(dtype)}
    files = write_published(
        tmp_path / "out", published.config, published.params, published.source_config
    )
    assert [f.name for f in files] == ["config.json", WEIGHTS]
    assert as_bytes(load_file(tmp_path / "out" / WEIGHTS)) == as_bytes(written)
    again = read_published(tmp_path / "out")
    assert again.config == published.config
    assert again.source_config == published.source_config
    jax.tree.map(np.testing.assert_array_equal, again.params, published.params)


def test_round_trip_with_a_derived_config(golden, tmp_path):
    published = read_published(golden)
    write_published(tmp_path / "out", published.config, published.params)
    again = read_published(tmp_path / "out")
    assert again.config == published.config
    assert again.unknown_fields == []
    assert again.source_config["torch_dtype"] == "float32"


def test_what_is_left_out_is_said(golden, tmp_path):
    published = read_published(golden)
    config = dataclasses.replace(published.config, default_context=16)
    with pytest.warns(UserWarning, match="default_context 16 is left out"):
        write_published(tmp_path / "out", config, published.params)
    assert read_published(tmp_path / "out").config == published.config


def test_not_a_number_and_negative_zero_survive(folder, tmp_path):
    """Bitwise means that even a payload of NaN is kept."""

    def change(tensors):
        odd = np.array([0x7FC01234, 0x80000000, 0xFFC00001], np.uint32).view(np.float32)
        tensors["model.norm.weight"][:3] = odd

    written = edit_tensors(folder, change)
    published = read_published(folder)
    write_published(tmp_path / "out", published.config, published.params)
    assert as_bytes(load_file(tmp_path / "out" / WEIGHTS)) == as_bytes(written)


@pytest.fixture
def sharded(golden: Path, tmp_path: Path) -> Path:
    published = read_published(golden)
    out = tmp_path / "sharded"
    write_published(out, published.config, published.params, max_shard_bytes=20_000)
    return out


def test_sharded_round_trip(golden, sharded):
    original = load_file(golden / WEIGHTS)
    index = json.loads((sharded / INDEX).read_text())
    files = sorted(sharded.glob("*.safetensors"))
    assert len(files) > 2
    assert not (sharded / WEIGHTS).exists()
    assert all(sum(t.nbytes for t in load_file(f).values()) <= 20_000 for f in files)
    assert files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in original.values())
    assert set(index["weight_map"]) == set(original)
    assert as_bytes(all_tensors(sharded)) == as_bytes(original)
    params = read_published(golden).params
    jax.tree.map(np.testing.assert_array_equal, read_published(sharded).params, params)


def test_a_tensor_larger_than_a_shard_has_one_of_its_own(golden, tmp_path):
    published = read_published(golden)
    write_published(tmp_path / "out", published.config, published.params, max_shard_bytes=1)
    tensors = load_file(golden / WEIGHTS)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == len(tensors)
    assert as_bytes(all_tensors(tmp_path / "out")) == as_bytes(tensors)


def test_sharded_folder_lacks_a_file(sharded):
    file = sorted(sharded.glob("*.safetensors"))[1]
    file.unlink()
    assert file.name in error_of(sharded)


def test_sharded_index_names_what_is_not_there(sharded):
    index = json.loads((sharded / INDEX).read_text())
    moved = dict(index["weight_map"])
    name = next(iter(moved))
    moved[name] = sorted(set(moved.values()))[-1]
    (sharded / INDEX).write_text(json.dumps({**index, "weight_map": moved}))
    assert name in error_of(sharded)


@pytest.mark.parametrize("index", ["{}", '{"weight_map": []}', "[]", "nonsense"])
def test_sharded_index_is_no_index(sharded, index):
    (sharded / INDEX).write_text(index)
    assert INDEX in error_of(sharded)


def test_missing_tensors_are_all_named(folder):
    gone = ("model.norm.weight", "lm_heads.0.out_layer.weight")
    edit_tensors(folder, lambda t: {name: v for name, v in t.items() if name not in gone})
    message = error_of(folder)
    assert "missing tensors: lm_heads.0.out_layer.weight, model.norm.weight" in message
    assert "unexpected" not in message


def test_unexpected_tensors_are_all_named(folder):
    extra = {"lm_heads.9.out_layer.weight": np.zeros(3), "other": np.zeros(2)}
    edit_tensors(folder, lambda t: {**t, **extra})
    message = error_of(folder)
    assert "unexpected tensors: lm_heads.9.out_layer.weight, other" in message
    assert "missing" not in message


def test_misshapen_tensors_are_all_named(folder):
    def change(tensors):
        tensors["model.norm.weight"] = np.zeros(17, np.float32)
        gate = "model.layers.0.ffn_layer.gate.weight"
        tensors[gate] = np.ascontiguousarray(tensors[gate].T)

    edit_tensors(folder, change)
    message = error_of(folder)
    assert "model.norm.weight is (17,), not (16,)" in message
    assert "model.layers.0.ffn_layer.gate.weight is (16, 8), not (8, 16)" in message


def test_a_config_of_another_depth_names_the_layer(folder):
    edit_config(folder, num_hidden_layers=3)
    message = error_of(folder)
    assert "model.layers.2." in message
    assert " more" in message


def test_truncated_weights(folder):
    whole = (folder / WEIGHTS).read_bytes()
    for size in (0, 4, 100, len(whole) - 1):
        (folder / WEIGHTS).write_bytes(whole[:size])
        assert WEIGHTS in error_of(folder)
        assert "damaged" in error_of(folder)


def test_corrupted_header(folder):
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[8:40] = b"x" * 32
    (folder / WEIGHTS).write_bytes(data)
    assert "damaged" in error_of(folder)


def test_no_weights(folder):
    (folder / WEIGHTS).unlink()
    message = error_of(folder)
    assert WEIGHTS in message
    assert INDEX in message


def test_no_config(folder):
    (folder / "config.json").unlink()
    assert "config.json does not exist" in error_of(folder)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "not readable JSON"),
        ("", "not readable JSON"),
        ("[1, 2]", "must hold a JSON object, but holds a list"),
        ("null", "must hold a JSON object, but holds a NoneType"),
        ("{}", "lacks hidden_size"),
    ],
)
def test_config_that_is_none(folder, text, expected):
    (folder / "config.json").write_text(text)
    assert expected in error_of(folder)


def test_config_that_is_not_text(folder):
    (folder / "config.json").write_bytes(b"\xff\xfe\x00")
    assert "not readable JSON" in error_of(folder)


def test_unknown_config_fields_are_reported(folder):
    edit_config(folder, surprise=1, another=[2])
    assert read_published(folder).unknown_fields == ["another", "surprise"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_act", "gelu"),
        ("tie_word_embeddings", True),
        ("attention_dropout", 0.1),
        ("input_size", 2),
        ("model_type", "llama"),
    ],
)
def test_what_cannot_be_computed_is_refused(folder, field, value):
    edit_config(folder, **{field: value})
    message = error_of(folder)
    assert f"{field} is {value!r}" in message


@pytest.mark.parametrize(("field", "value"), [("hidden_size", "16"), ("num_experts", 1.5)])
def test_config_values_of_the_wrong_type(folder, field, value):
    edit_config(folder, **{field: value})
    assert field in error_of(folder)


@pytest.mark.parametrize("kept", ["config.json", WEIGHTS, INDEX])
def test_writing_refuses_to_overwrite(golden, tmp_path, kept):
    """Any one file of a model is enough: half of an old one beside a new one is worse."""
    published = read_published(golden)
    (tmp_path / kept).write_text("kept")
    with pytest.raises(CheckpointError, match="already holds a model"):
        write_published(tmp_path, published.config, published.params)
    assert [f.name for f in tmp_path.iterdir()] == [kept]
    assert (tmp_path / kept).read_text() == "kept"


def test_is_published(golden, sharded, tmp_path):
    assert is_published(golden)
    assert is_published(str(sharded))
    assert not is_published(tmp_path)
    shutil.copy(golden / "config.json", tmp_path / "config.json")
    assert not is_published(tmp_path)


def test_parameters_are_those_of_the_model(golden):
    """The tree that comes back is the one the model merges with."""
    from timemoe_jax.models.base import abstract_model

    published = read_published(golden)
    _, abstract = abstract_model(published.config)
    found = {path: p.shape for path, p in nnx.to_flat_state(published.params)}
    assert found == {path: p.shape for path, p in nnx.to_flat_state(abstract)}


def test_reading_needs_no_torch(golden):
    """In a fresh interpreter, where an import of it would show."""
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from timemoe_jax.checkpoints.published import read_published\n"
        f"published = read_published({str(golden)!r})\n"
        "assert published.config.hidden_size == 16\n"
        "assert sys.modules['torch'] is None\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
