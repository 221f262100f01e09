"""Bundled models: their folder, its checksums, and every way to load one by its name.

The tests have bundles of their own; `test_bundled_models.py` is about those of the library.
"""

import dataclasses
import functools
import json
import shutil
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from places import ROOT
from tiny_model import TINY, TWO_BLOCKS

from timemoe_jax import Forecaster
from timemoe_jax.checkpoints import bundle, bundled
from timemoe_jax.checkpoints.bundle import read_bundle, read_verified, write_bundle
from timemoe_jax.checkpoints.checksums import weights_digest
from timemoe_jax.checkpoints.load import load_model, save_model
from timemoe_jax.checkpoints.make_bundle import make_bundle
from timemoe_jax.checkpoints.store import Checkpoints
from timemoe_jax.checkpoints.trees import flatten
from timemoe_jax.cli import main as cli
from timemoe_jax.config import from_mapping
from timemoe_jax.data.config import DataConfig
from timemoe_jax.errors import CheckpointError, ConfigError
from timemoe_jax.evaluation import long_horizon as evaluate
from timemoe_jax.evaluation.config import EvalConfig
from timemoe_jax.models.base import create_params
from timemoe_jax.runtime import partitioning
from timemoe_jax.training.config import RunConfig, TrainConfig
from timemoe_jax.training.start import start_or_resume

FILES = ("model.json", "weights-1.safetensors")


@functools.cache
def params_of(config):
    return create_params(config, seed=1)


PARAMS = params_of(TINY)


def later(step: int):
    """The parameters of that model at some step, all of them other numbers."""
    return jax.tree.map(lambda a: a * (1 + step / 100) + step / 7, PARAMS)


def halves(params):
    return jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A package with the model "pico"; the working directory is an empty one."""
    package = tmp_path / "package"
    write_bundle(package / "pico", TINY, PARAMS)
    monkeypatch.setattr(bundled, "FOLDER", package)
    monkeypatch.setattr(bundled, "NAMES", ("pico",))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return package / "pico"


def verify(name: str) -> None:
    """Checks every byte of a bundled model, as loading it does."""
    read_verified(bundled.find(name))


def error_of(call, *args) -> str:
    with pytest.raises(CheckpointError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# The folder


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"router_bias": True, "horizon_lengths": (1, 8), "forecast_plan": "covering"},
        {"use_dense": True, "rope_theta": 500.0, "quantile_levels": (0.1, 0.5, 0.9)},
    ],
)
def test_a_model_comes_back(tmp_path, change):
    """All of its configuration but how to compute it, and every bit in the dtype it is kept in."""
    config = dataclasses.replace(TINY, **change)
    params = params_of(config)
    computed = dataclasses.replace(config, dtype="bfloat16", remat="full")
    write_bundle(tmp_path / "exact", computed, params, "float32")
    assert read_bundle(tmp_path / "exact").config == config
    assert load_model(tmp_path / "exact").digest == weights_digest(params)
    write_bundle(tmp_path / "half", computed, params)
    loaded = load_model(str(tmp_path / "half"))
    assert loaded.digest == weights_digest(halves(params))
    assert (loaded.config, loaded.source) == (config, str(tmp_path / "half"))
    assert loaded.step is loaded.published_config is None


def test_the_same_model_gives_the_same_bytes(tmp_path):
    for name in ("one", "other"):
        sizes = write_bundle(tmp_path / name, TINY, PARAMS, steps=(7,))
    for file in (*FILES, "checksums.json"):
        data = (tmp_path / "one" / file).read_bytes()
        assert data == (tmp_path / "other" / file).read_bytes()
        assert len(data) == sizes[file]
    assert set(sizes) == {path.name for path in (tmp_path / "one").iterdir()}
    assert json.loads((tmp_path / "one" / "model.json").read_text())["steps"] == [7]


@pytest.mark.parametrize("most", [1600, 4000])
def test_no_file_is_larger_than_the_limit(tmp_path, monkeypatch, most):
    """Arrays that are themselves larger are cut, and put together again."""
    monkeypatch.setattr(bundle, "MAX_FILE_BYTES", most + 3000)
    monkeypatch.setattr(bundle, "_HEADER_BYTES", 3000)
    params = params_of(TWO_BLOCKS)
    sizes = write_bundle(tmp_path / "model", TWO_BLOCKS, params)
    assert max(sizes.values()) <= most + 3000
    arrays = [2 * p.size for p in jax.tree.leaves(params)]
    assert (max(arrays) > most) == (most == 1600)
    assert sum(name.startswith("weights-") for name in sizes) >= sum(arrays) / most
    assert load_model(tmp_path / "model").digest == weights_digest(halves(params))


def test_a_row_that_no_file_holds_is_refused(tmp_path, monkeypatch):
    """A layer's experts are the first row of their array, 4 * 16 * 12 of them."""
    monkeypatch.setattr(bundle, "MAX_FILE_BYTES", 1500)
    monkeypatch.setattr(bundle, "_HEADER_BYTES", 1000)
    text = error_of(write_bundle, tmp_path / "model", TINY, PARAMS)
    assert "too large to come with the library; nothing was written" in text
    assert not (tmp_path / "model").exists()


def test_what_cannot_be_written_is_said(tmp_path):
    with pytest.raises(ConfigError, match="float32 or bfloat16, but is 'float16'"):
        write_bundle(tmp_path / "model", TINY, PARAMS, "float16")
    wrong = jax.tree.map(lambda a: a.at[(0,) * a.ndim].set(np.nan), PARAMS)
    assert "not finite; nothing was written" in error_of(write_bundle, tmp_path / "m", TINY, wrong)
    assert not any(tmp_path.iterdir())
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("taken", "file"):
        assert "not an empty folder" in error_of(write_bundle, tmp_path / name, TINY, PARAMS)
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["notes"]
    (tmp_path / "empty").mkdir()
    write_bundle(tmp_path / "empty", TINY, PARAMS)
    assert "already holds a model" in error_of(save_model, tmp_path / "empty", TINY, PARAMS)


# Its checksums


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(st.sampled_from(FILES), st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_one_wrong_byte_is_noticed(folder, name, place, change):
    file = folder / name
    whole = file.read_bytes()
    data = bytearray(whole)
    data[int(place * len(data))] ^= change
    file.write_bytes(data)
    try:
        for call in (load_model, verify):
            assert f"{name} does not match its SHA-256" in error_of(call, "pico")
    finally:
        file.write_bytes(whole)
    verify("pico")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model.json").unlink(), "model.json is missing"),
        (lambda f: (f / "weights-1.safetensors").unlink(), "weights-1.safetensors is missing"),
        (lambda f: (f / "checksums.json").unlink(), "checksums.json is missing"),
        (lambda f: (f / "notes.txt").write_text(""), "notes.txt is one too many"),
        (lambda f: (f / "inner").mkdir(), "inner is one too many"),
        (lambda f: (f / "model.json").write_text("{}"), "model.json has 2 bytes instead of"),
        (lambda f: (f / "checksums.json").write_text("{"), "checksums.json is not readable JSON"),
        (lambda f: (f / "checksums.json").write_text("[]"), "must hold a JSON object"),
        (
            lambda f: (f / "checksums.json").write_text('{"model.json": "ab"}'),
            "must give sha256 and bytes of 'model.json'",
        ),
        (lambda f: relist(f, "../away"), "../away is missing"),
        (lambda f: relist(f, "inner", Path.mkdir), "inner cannot be read"),
    ],
)
def test_damage_is_named(folder, damage, message):
    (folder.parent / "away").write_text("")
    damage(folder)
    for call in (load_model, verify):
        text = error_of(call, "pico")
        assert message in text
        assert str(folder) in text


def relist(folder, name, make=None):
    """Lists one more file, and makes it."""
    listed = json.loads((folder / "checksums.json").read_text())
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    entry = {name: {"sha256": empty, "bytes": 0}}
    (folder / "checksums.json").write_text(json.dumps(listed | entry))
    if make:
        make(folder / name)


def test_all_that_is_wrong_is_said_at_once(folder):
    (folder / "model.json").unlink()
    (folder / "weights-1.safetensors").write_bytes(b"x")
    (folder / "notes.txt").write_text("")
    text = error_of(verify, "pico")
    assert "model.json is missing; notes.txt is one too many" in text
    assert "weights-1.safetensors has 1 bytes instead of" in text
    for i in range(9):
        (folder / f"more{i}").write_text("")
    assert "and 7 more" in error_of(verify, "pico")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "has format 2, but this version reads 1"),
        ({"model": {}}, "the weights do not fit model.json"),
        ({"model": {"hidden_size": "large"}}, "model.hidden_size must be of type int"),
        ({"model": {"depth": 3}}, "has no field 'depth'"),
        ({"model": [3]}, "must be a mapping"),
    ],
)
def test_a_configuration_that_does_not_fit_is_named(folder, monkeypatch, change, message):
    """With checksums that are right, as of a later version or another hand."""
    content = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(content | change))
    files = {name: (folder / name).read_bytes() for name in FILES}
    monkeypatch.setattr(bundle, "read_verified", lambda _: files)
    text = error_of(load_model, "pico")
    assert message in text
    assert str(folder) in text


# By name


def test_a_model_is_loaded_by_its_name(folder):
    loaded = load_model("pico")
    assert loaded.source == str(folder)
    assert loaded.digest == weights_digest(halves(PARAMS)) == load_model(folder).digest
    assert load_model(Path("pico")).digest == loaded.digest
    assert bundled.find("pico") == folder
    forecaster = Forecaster.from_pretrained("pico")
    assert forecaster.digest == loaded.digest
    series = np.sin(np.arange(60) / 3)
    expected = Forecaster(TINY, halves(PARAMS)).forecast(series, 4).point
    np.testing.assert_array_equal(forecaster.forecast(series, 4).point, expected)


def test_what_is_there_under_that_name_is_taken_and_said(folder, caplog):
    save_model("pico", TINY, later(9))
    loaded = load_model("pico")
    assert loaded.digest == weights_digest(later(9))
    here = Path("pico").absolute()
    assert f"reading {here}, not the bundled model pico" in caplog.text
    shutil.rmtree("pico")
    caplog.clear()
    assert load_model("pico").source == str(folder)
    assert not caplog.text


def test_an_unknown_name_lists_those_there_are(folder, monkeypatch):
    assert "no bundled model 'piko'; the bundled ones are pico" in error_of(bundled.find, "piko")
    text = error_of(load_model, "piko")
    assert "piko does not exist; give a published folder" in text
    assert text.endswith("or the name of a bundled model; the bundled ones are pico")
    monkeypatch.setattr(bundled, "NAMES", ())
    assert "no model came with this installation" in error_of(load_model, "pico")


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "/", "../pico", "../package/pico/", "pico/", "./pico", "pico/../pico"),
        *("pico.json", "pico/model.json", "PICO", " pico", "pico\n", "__pycache__", "*", "~"),
    ],
)
def test_only_a_name_is_a_name(folder, name):
    text = error_of(bundled.find, name)
    assert "no bundled model" in text.replace("\\n", "")
    with pytest.raises(CheckpointError):
        verify(name)
    if name != "../package/pico/":  # from the working directory, that is the path of the folder
        with pytest.raises(CheckpointError):
            load_model(name)


def test_names_are_those_of_the_folders(folder):
    package = bundled.FOLDER
    for name in ("__pycache__", ".hidden", "Upper", "two words", "nano-2"):
        (package / name).mkdir()
    (package / "bundle.py").write_text("")
    (package / "plain").write_text("")
    assert bundled._names(package) == ("nano-2", "pico")


def test_the_command_line_forecasts_with_it(folder, tmp_path, capsys):
    frame = pd.DataFrame({"value": np.arange(60) % 7 + 0.5})
    frame.to_csv(tmp_path / "data.csv", index=False)
    arguments = ["forecast", str(tmp_path / "data.csv"), "--horizon", "4", "--checkpoint"]
    outputs = []
    for checkpoint in ("pico", str(folder)):
        cli.main([*arguments, checkpoint])
        outputs.append(capsys.readouterr().out)
    assert len(outputs[0].splitlines()) == 5
    assert outputs[0] == outputs[1]
    with pytest.raises(SystemExit) as caught:
        cli.main([*arguments, "piko"])
    assert caught.value.code == 2
    assert "the bundled ones are pico" in capsys.readouterr().err


def test_it_is_evaluated_by_its_name(folder, tmp_path):
    dates = pd.date_range("2024-01-01", periods=200, freq="D")
    frame = pd.DataFrame({"date": dates, "a": np.sin(np.arange(200.0))})
    frame.to_csv(tmp_path / "waves.csv", index=False)
    values = {"checkpoint": "pico", "datasets": str(tmp_path / "waves.csv"), "horizons": "4"}
    values |= {"context_length": 16, "output_dir": str(tmp_path / "out"), "data_dir": ""}
    manifest = evaluate.run(from_mapping(EvalConfig, values))
    assert manifest["checkpoint_hash"] == load_model("pico").digest
    assert manifest["cells"][0]["mse"] > 0


def test_a_run_starts_from_it(folder, tmp_path):
    config = RunConfig(
        model=TINY,
        data=DataConfig(synthetic_sequences=1, length=24),
        train=TrainConfig(num_steps=1, batch_size=4, init_from="pico"),
    )
    mesh = partitioning.make_mesh(config.mesh, jax.devices()[:1])
    state = start_or_resume(config, mesh, Checkpoints(tmp_path / "run"), batches=None)
    start, found = flatten(halves(PARAMS)), flatten(state.params)
    for name, value in found.items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, start[name].astype(np.float32))


# Made of a run


@pytest.fixture
def run(tmp_path):
    full = {"model": dataclasses.asdict(TINY)}
    with Checkpoints(tmp_path / "run" / "checkpoints", None, full) as checkpoints:
        for step in (10, 20, 30):
            checkpoints.save(step, later(step))
    return tmp_path / "run"


def test_the_newest_checkpoint_of_a_run(run, tmp_path, capsys):
    cli.main(["bundle", str(run), str(tmp_path / "model")])
    out = capsys.readouterr().out
    lines = {line.split()[2]: line.split()[0] for line in out.splitlines()}
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "model").iterdir()}
    assert {name: int(lines[name].replace(",", "")) for name in sizes} == sizes
    assert f"{sum(sizes.values()):,} bytes" in out
    count = sum(p.size for p in jax.tree.leaves(PARAMS))
    assert f"{count:,} parameters in bfloat16 of {run}" in out
    newest = halves(later(30))
    assert load_model(tmp_path / "model").digest == weights_digest(newest)
    assert json.loads((tmp_path / "model" / "model.json").read_text())["steps"] == [30]


def test_the_mean_of_a_run(run, tmp_path, capsys):
    arguments = ["bundle", str(run), str(tmp_path / "model"), "--average", "2"]
    cli.main([*arguments, "--dtype", "float32"])
    assert "in float32 of the mean of steps 20, 30" in capsys.readouterr().out
    two, three = (flatten(later(step)) for step in (20, 30))
    for name, value in flatten(load_model(tmp_path / "model").params).items():
        mean = (np.float64(two[name]) + np.float64(three[name])) / 2
        np.testing.assert_array_equal(value, mean.astype(np.float32))


def test_published_weights_are_bundled_too(golden, tmp_path):
    make_bundle(golden, tmp_path / "model", dtype="float32")
    assert load_model(tmp_path / "model").digest == load_model(golden).digest
    assert json.loads((tmp_path / "model" / "model.json").read_text())["steps"] == []


def test_a_run_that_cannot_be_bundled_leaves_nothing(run, tmp_path):
    assert "does not exist" in error_of(make_bundle, tmp_path / "absent", tmp_path / "model")
    assert "mean of 4 checkpoints" in error_of(make_bundle, run, tmp_path / "model", 4)
    with pytest.raises(ConfigError, match="must be positive, but is 0"):
        make_bundle(run, tmp_path / "model", 0)
    with pytest.raises(ConfigError, match="dtype must be"):
        make_bundle(run, tmp_path / "model", dtype="int8")
    assert not (tmp_path / "model").exists()


def test_an_installation_holds_every_file(folder):
    """What the package's data are, by pyproject.toml, takes all that a bundle is made of."""
    settings_of = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = settings_of["package-data"]["timemoe_jax"]
    for file in folder.iterdir():
        inside = Path("checkpoints", "bundled", folder.name, file.name)
        assert any(inside.match(pattern) for pattern in patterns), inside
