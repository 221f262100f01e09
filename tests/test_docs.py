"""What the README shows runs, and what the examples write is there."""

import re
import subprocess
import sys

from places import ROOT
from processes import run_here


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
