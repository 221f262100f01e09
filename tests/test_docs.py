"""What the README shows runs, and what the examples write is there."""

import ast
import importlib
import importlib.util
import json
import re
import subprocess
import sys

import pytest
from places import ROOT
from processes import run_here

from timemoe_jax.forecasting.adapters.loading import MissingPackageError


def test_the_readme_program_runs():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    program = blocks[0] + blocks[1]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "(2, 96)" in done.stdout


def test_the_example_draws_every_sample(golden, tmp_path):
    picture = tmp_path / "samples.png"
    done = run_here("examples/forecast_samples.py", golden, picture)
    assert done.returncode == 0, done.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_every_file_that_the_docs_name_is_there():
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    assert len(documents) > 5
    for document in (str(path.relative_to(ROOT)) for path in documents):
        text = (ROOT / document).read_text()
        links = re.findall(r"\]\(([^)#]+)\)", text)
        for link in (link for link in links if "://" not in link):
            assert (ROOT / document).parent.joinpath(link).exists(), f"{document}: {link}"
        for name in re.findall(r"`((?:tests|configs|examples|benchmarks)/[\w/]+\.py)`", text):
            assert (ROOT / name).exists(), f"{document}: {name}"


def test_the_rooms_in_the_docs_are_the_rooms():
    layout = (ROOT / "docs/architecture.md").read_text().split("```")[1]
    package = ROOT / "timemoe_jax"
    folders = {path.parent for path in package.glob("*/*.py")} - {package}
    for room in folders:
        assert re.search(rf"^  {room.name}/ ", layout, re.MULTILINE), room
    for name in re.findall(r"^  (\w+/|\w+\.py) ", layout, re.MULTILINE):
        assert (package / name).exists(), name
    for room, inner in re.findall(r"^  (\w+)/.*\n((?:    \w+/.*\n)+)", layout, re.MULTILINE):
        for name in re.findall(r"^    (\w+)/ ", inner, re.MULTILINE):
            assert (package / room / name).is_dir(), f"{room}/{name}"


def test_every_import_that_the_docs_show_works():
    shown = 0
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for block in re.findall(r"```python\n(.*?)```", document.read_text(), re.DOTALL):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom) and node.module.startswith("timemoe_jax"):
                    check_import(node, document.name)
                    shown += 1
    assert shown > 10


def check_import(node: ast.ImportFrom, document: str) -> None:
    try:
        module = importlib.import_module(node.module)
    except MissingPackageError:  # of an adapter, whose package is not there
        return
    for name in (alias.name for alias in node.names):
        known = hasattr(module, name) or importlib.util.find_spec(f"{node.module}.{name}")
        assert known, f"{document}: from {node.module} import {name}"


def test_the_tutorial_of_a_family_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs/tutorial_research.md").read_text()
    program = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    # Classes are looked up in their module, so the program is one.
    path = tmp_path / "linear_map.py"
    path.write_text(program)
    spec = importlib.util.spec_from_file_location("linear_map", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "linear_map", module)
    spec.loader.exec_module(module)
    assert capsys.readouterr().out.endswith("(1, 8)\n")


def test_the_page_of_config_fields_is_that_of_the_classes():
    path = ROOT / "docs/make_config_page.py"
    spec = importlib.util.spec_from_file_location("make_config_page", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text() == module.page(), "run python docs/make_config_page.py"
    assert "|  |" not in module.page(), "a field has no comment in its class"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "examples/notebooks").glob("*.ipynb")), ids=lambda path: path.stem
)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TIMEMOE_QUICK", "1")
    cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in cells), "a notebook is kept without its outputs"
    names: dict[str, object] = {"__name__": path.stem}
    for cell in cells:
        exec(compile("".join(cell["source"]), path.name, "exec"), names)
    pictures = list(tmp_path.glob("*.png"))
    assert pictures or "run_tuned" in {folder.name for folder in tmp_path.iterdir()}
