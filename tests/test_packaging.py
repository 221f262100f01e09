"""What a wheel holds: every room, the configs, the data, and the card of the bundled model."""

import re
import runpy
import shutil
import tomllib
from unittest import mock

import pytest
import setuptools
from places import ROOT

from timemoe_jax.checkpoints import bundled
from timemoe_jax.checkpoints.bundle import read_verified

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGE = ROOT / "timemoe_jax"


@pytest.fixture(scope="module")
def setup():
    """What setup.py gives to setuptools."""
    with mock.patch.object(setuptools, "setup") as called:
        module = runpy.run_path(str(ROOT / "setup.py"))
    return module, called.call_args.kwargs


def test_every_module_is_in_a_package(setup, monkeypatch):
    monkeypatch.chdir(ROOT)
    packages = setuptools.find_packages(include=["timemoe_jax", "timemoe_jax.*"])
    folders = {path.parent.relative_to(ROOT) for path in PACKAGE.rglob("*.py")}
    assert {".".join(folder.parts) for folder in folders} == {*packages}


def test_the_configs_travel_in_the_package(setup):
    _, arguments = setup
    assert "timemoe_jax.configs" in arguments["packages"]
    assert arguments["package_dir"] == {"timemoe_jax.configs": "configs"}


def test_every_other_file_is_package_data():
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["timemoe_jax"]
    matched = {path for pattern in patterns for path in PACKAGE.glob(pattern)}
    ignored = {".py", ".pyc", ""}  # "" of .gitattributes, which is for a clone
    others = {p for p in PACKAGE.rglob("*") if p.is_file() and p.suffix not in ignored}
    assert matched == others
    assert PACKAGE / "py.typed" in matched


def test_each_card_lies_beside_its_model(setup, tmp_path, monkeypatch):
    module, _ = setup
    monkeypatch.chdir(ROOT)
    command = module["BuildWithCards"](setuptools.Distribution())
    command.build_lib, command.editable_mode = str(tmp_path), False
    shutil.copytree(bundled.FOLDER, tmp_path / bundled.FOLDER.relative_to(ROOT))
    monkeypatch.setattr(setuptools.command.build_py.build_py, "run", lambda self: None)
    command.run()
    targets = [tmp_path / place for place in module["CARDS"].values()]
    assert {target.stem for target in targets} == set(bundled.NAMES)
    for target in targets:
        assert target.read_text("utf-8").startswith(f"# Model card: {target.stem}")
        assert read_verified(target.with_suffix(""))  # the model, which no other file may join


def test_the_accelerators_come_with_a_jax_for_them():
    extras = PROJECT["project"]["optional-dependencies"]
    assert any(line.startswith("jax[cuda") for line in extras["gpu"])
    assert any(line.startswith("jax[tpu]") for line in extras["tpu"])


def test_the_versions_agree():
    version = PROJECT["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
    pins = (ROOT / "requirements.txt").read_text("utf-8")
    hooks = (ROOT / ".pre-commit-config.yaml").read_text("utf-8")
    ruff = re.search(r"^ruff==(\S+)", pins, re.MULTILINE)[1]
    assert f"rev: v{ruff}\n" in hooks


def test_the_workflow_runs_what_must_pass_here():
    workflow = (ROOT / ".github/workflows/ci.yml").read_text("utf-8")
    commands = re.findall(r"^\s*- run: (.*)$", workflow, re.MULTILINE)
    here = (ROOT / ".ci/run").read_text("utf-8").splitlines()
    assert commands == [line for line in here if line.startswith("make ")]
