"""`timemoe score`: a model on the series of a folder."""

import json
import subprocess
import sys

import numpy as np
import pytest

from timemoe_jax.cli import main as cli
from timemoe_jax.data.formats.time300b.folder import write_time_moe_folder


@pytest.fixture
def corpus(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("energy/load", "energy/wind", "web/hits"):
        series = [rng.normal(size=60) for _ in range(5)]
        write_time_moe_folder(tmp_path / "corpus" / name, series)
    return tmp_path / "corpus"


def _score(*argv):
    cli.main(["score", *map(str, argv)])


def test_the_command(golden, corpus, tmp_path, capsys):
    out = tmp_path / "scores.json"
    options = ["--context=16", "--horizons=1,2", "--read=9", "--max-windows=4", f"--json={out}"]
    _score(f"--checkpoint={golden}", f"--path={corpus}", *options)
    printed = capsys.readouterr().out
    assert "| energy/load | 2 | 4 |" in printed
    assert "| mean of 3 sources | 1 |" in printed
    assert "clipped at 10 (" in printed
    found = json.loads(out.read_text())
    assert found["digest"]
    assert (found["context_length"], found["num_read"]) == (16, 9)
    assert found["average"]["2"]["model"]["mse"] > 0


def test_some_sources_without_a_model(corpus, capsys):
    options = ["--context=16", "--horizons=1,2", "--sources=web/hits", "--clip=3"]
    _score(f"--path={corpus}", *options)
    printed = capsys.readouterr().out
    assert "| source | horizon | windows | naive | context mean |" in printed
    assert "clipped at 3 (" in printed
    assert "energy" not in printed


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "the following arguments are required: --path; see timemoe score --help"),
        (["--path={corpus}", "--horizons=many"], "--horizons must be whole numbers"),
        (["--path={corpus}", "--sources=web/none"], "web/none is none of the sources: energy/load"),
        (["--path={corpus}"], "no series has a context of 512 points"),
        (["--path=/nowhere"], "/nowhere"),
        (["--path={corpus}", "--context=9", "--horizons=2", "--clip=0"], "clip must be above 0"),
        (
            ["--path={corpus}", "--context=9", "--horizons=2", "--checkpoint=/none"],
            "/none",
        ),
    ],
)
def test_mistakes_are_one_line(corpus, capsys, argv, message):
    with pytest.raises(SystemExit) as ended:
        _score(*(a.format(corpus=corpus) for a in argv))
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_a_mistake_does_not_wait_for_jax(corpus):
    program = (
        "import sys; from timemoe_jax.cli import main as cli\n"
        f"try: cli.main(['score', '--path={corpus}', '--horizons=many'])\n"
        "except SystemExit as ended: assert ended.code == 2\n"
        "assert 'jax' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
