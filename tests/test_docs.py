"""What the README shows runs, and what the examples write is there."""

import re
import subprocess
import sys

from places import ROOT


def test_the_readme_program_runs():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    program = blocks[0] + blocks[1]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "(2, 96)" in done.stdout


def test_the_example_draws_every_sample(golden, tmp_path):
    picture = tmp_path / "samples.png"
    command = [sys.executable, "examples/forecast_samples.py", str(golden), str(picture)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
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


def test_the_layout_in_the_docs_is_the_layout():
    layout = (ROOT / "docs/architecture.md").read_text().split("```")[1]
    for file in (ROOT / "timemoe_jax").rglob("*.py"):
        assert file.name == "__init__.py" or file.name in layout, file
