"""Seg-MoE and MoHETS against what the published implementations compute from the same weights."""

import json
import shutil

import numpy as np
import pytest
from places import shared_folder
from safetensors.numpy import load_file, save_file

from benchmarks.parity_encoders import BOUNDS, Case
from timemoe_jax.checkpoints.load import convert, load_model
from timemoe_jax.errors import CheckpointError

FOLDERS = (
    *("parity_seg_moe/seg_tiny", "parity_seg_moe/seg_top2"),
    *("parity_mohets/mohets_tiny", "parity_mohets/mohets_nocov"),
)


@pytest.fixture(scope="module", params=FOLDERS)
def folder(request):
    path = shared_folder() / request.param
    if not path.is_dir():
        pytest.skip(f"{path} is absent; TIMEMOE_SHARED names another place")
    return path


@pytest.fixture(scope="module")
def case(folder):
    return Case(folder)


@pytest.mark.parametrize("quantity", BOUNDS)
def test_matches_published(folder, case, quantity):
    """Of the larger models a part, which costs less to compile; the benchmark compares all."""
    costly = {"seg_top2": ("layer",), "mohets_nocov": ("layer", "forecasts")}
    if quantity in costly.get(folder.name, ()):
        pytest.skip("benchmarks/parity_encoders.py compares it")
    assert case.error(quantity) <= BOUNDS[quantity]


def test_weights_go_through_a_checkpoint_and_back_bit_by_bit(folder, tmp_path):
    """Names, bytes and config; also of weights whose names have the prefix of several devices."""
    prefixed = tmp_path / "prefixed"
    prefixed.mkdir()
    tensors = load_file(folder / "model.safetensors")
    save_file({f"module.{name}": t for name, t in tensors.items()}, prefixed / "model.safetensors")
    shutil.copy(folder / "config.json", prefixed)
    for source in (folder, prefixed):
        ours, back = tmp_path / f"{source.name}_ours", tmp_path / f"{source.name}_back"
        convert(source, ours)
        convert(ours, back, to_safetensors=True)
        written = load_file(back / "model.safetensors")
        assert written.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert written[name].tobytes() == tensor.tobytes(), name
        read = [json.loads((f / "config.json").read_text()) for f in (folder, back)]
        assert read[0] == read[1]


def test_a_derived_config_is_read_as_the_same_model(folder, tmp_path):
    """Of a model that did not begin as a published one, such as one that was trained here."""
    from timemoe_jax.checkpoints.published import read_published, write_published

    held = read_published(folder)
    write_published(tmp_path / "model", held.config, held.params)
    again = read_published(tmp_path / "model")
    assert again.config == held.config
    assert not again.unknown_fields


def test_a_changed_weight_is_noticed(folder):
    if folder.name != "seg_tiny":
        pytest.skip("one folder shows it")
    case = Case(folder)
    kernel = case.params["head"]["out"]["kernel"]
    kernel[...] = kernel[...] * 1.01
    assert case.error("output") > BOUNDS["output"]


def test_pickles_are_refused_with_the_way_out(tmp_path):
    file = tmp_path / "model.pth"
    file.write_bytes(b"\x80\x04.")
    for place in (file, tmp_path):
        with pytest.raises(CheckpointError, match=r"is a pickle.*weights_only=True") as caught:
            load_model(place)
        assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"), [("bias", True), ("is_causal", True), ("norm_type", "layer")]
)
def test_what_cannot_be_computed_is_refused(folder, tmp_path, field, value):
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, field: value}))
    with pytest.raises(CheckpointError, match=rf"config\.json: {field} is .*can be computed"):
        load_model(copy)


def test_the_bounds_hold_for_what_the_fixtures_say(case):
    """Every array of the fixture is compared."""
    known = ("input", "target", "short_input", "seconds", "marks", "marks_future", "cross_out_0")
    prefixes = ("grad.", "router_logits_", "expert_", "forecast_", "short_forecast_")
    named = {"output", "output_weight_one", "output_no_marks", "output_top1", "hidden", "moe_in"}
    named |= {"moe_out", "shared_out", "mixed", "covariate_tokens", "grad_norms"}
    named |= {"loss", "loss_huber", "loss_balance", *known}
    assert not {n for n in case.expected if n not in named and not n.startswith(prefixes)}
    assert all(np.isfinite(a).all() for a in case.expected.values())
