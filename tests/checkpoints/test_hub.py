"""Published models by name: found in the hub's cache, fetched by its package, checked."""

import hashlib
import shutil
import sys
import types

import pytest

from timemoe_jax import CheckpointError
from timemoe_jax.checkpoints import hub
from timemoe_jax.checkpoints.load import load_model

NAME = "Maple728/TimeMoE-50M"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the hub."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub" / "models--Maple728--TimeMoE-50M"


def fill(cache, golden, change=b""):
    """Puts the published model of the tests into the cache, as the hub's package does."""
    snapshot = cache / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0123abc")
    shutil.copy(golden / "config.json", snapshot)
    weights = (golden / "model.safetensors").read_bytes()
    blob = cache / "blobs" / hashlib.sha256(weights).hexdigest()
    blob.write_bytes(weights + change)
    (snapshot / "model.safetensors").symlink_to(blob)
    return snapshot


def test_a_model_in_the_cache_is_loaded_by_its_name(cache, golden, monkeypatch, tmp_path):
    fill(cache, golden)
    monkeypatch.chdir(tmp_path)
    assert load_model(NAME).digest == load_model(golden).digest


def test_what_is_not_there_says_how_to_fetch_it(cache, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=f"is fetched by: timemoe download {NAME}$"):
        load_model(NAME)


def test_a_download_is_checked(cache, golden, monkeypatch):
    package = types.ModuleType("huggingface_hub")
    package.snapshot_download = lambda name, allow_patterns: str(fill(cache, golden))
    monkeypatch.setitem(sys.modules, "huggingface_hub", package)
    assert hub.download(NAME) == hub.find(NAME)
    shutil.rmtree(cache)
    package.snapshot_download = lambda name, allow_patterns: str(fill(cache, golden, b"!"))
    with pytest.raises(CheckpointError, match="is damaged: its SHA-256 is"):
        hub.download(NAME)


def test_what_cannot_be_fetched(monkeypatch):
    def refuse(name, allow_patterns):
        raise OSError("no route to the hub\nand more")

    package = types.ModuleType("huggingface_hub")
    package.snapshot_download = refuse
    monkeypatch.setitem(sys.modules, "huggingface_hub", package)
    with pytest.raises(CheckpointError, match=r"50M cannot be fetched: no route to the hub$"):
        hub.download(NAME)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match="pip install huggingface_hub"):
        hub.download(NAME)
    with pytest.raises(CheckpointError, match="give OWNER/NAME"):
        hub.download("TimeMoE-50M")


def test_an_address_is_no_path():
    with pytest.raises(CheckpointError, match=r"https://example.org/model cannot be opened"):
        load_model("https://example.org/model")
