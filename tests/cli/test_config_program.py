"""Programs that a config drives: configs by name, fields by name, and the commands of `timemoe`."""

import subprocess
import sys
from types import ModuleType

import pytest
from places import ROOT
from processes import as_before

from timemoe_jax.cli import config_commands, config_files, main
from timemoe_jax.cli.config_files import FOLDER, config_names, find_config, load_config
from timemoe_jax.errors import ConfigError
from timemoe_jax.evaluation import long_horizon
from timemoe_jax.training import run as training


@pytest.mark.parametrize("name", ["smoke", "smoke.py", "configs/smoke.py", "configs/smoke"])
def test_a_config_is_found_by_name_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config(name) == FOLDER / "smoke.py"


def test_a_file_of_the_callers_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smoke.py").write_text("def get_config():\n    return 'mine'\n")
    assert load_config("smoke.py") == "mine"
    assert load_config("smoke").train.num_steps == 600


@pytest.mark.parametrize("name", ["smok", "configs/smok.py", "elsewhere/smok.py"])
def test_an_unknown_name_is_an_error_with_the_known_ones(name):
    with pytest.raises(ConfigError, match=r"did you mean smoke.*time_moe_nano"):
        find_config(name)


def test_what_is_no_config_is_named(tmp_path):
    (tmp_path / "a.py").write_text("")
    with pytest.raises(ConfigError, match=r"a\.py is no config: it has no function get_config"):
        load_config(str(tmp_path / "a.py"))


def test_configs_import_one_another_where_configs_is_no_package(monkeypatch):
    """As in a wheel; a package of that name that the caller has keeps its own modules."""
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(ROOT))])
    for name in [n for n in sys.modules if n.split(".")[0] == "configs"]:
        monkeypatch.delitem(sys.modules, name)
    assert load_config("time_moe_nano").model.hidden_size == 128
    own = ModuleType("configs")
    own.__path__ = ["/elsewhere"]
    monkeypatch.setitem(sys.modules, "configs", own)
    config_files.make_importable()
    assert own.__path__ == ["/elsewhere", str(FOLDER)]


@pytest.mark.parametrize("name", config_names())
def test_every_config_loads(name):
    assert load_config(name)


def _start(monkeypatch, capsys, *arguments):
    with as_before(1), pytest.raises(SystemExit) as end:
        main.main(list(arguments))
    return end.value.code, capsys.readouterr()


def test_train_evaluate_and_study_are_commands(monkeypatch, capsys, tmp_path):
    seen = []
    monkeypatch.setattr(training, "run", lambda config, workdir: seen.append((config, workdir)))
    monkeypatch.setattr(long_horizon, "run", seen.append)
    code, _ = _start(
        monkeypatch,
        capsys,
        *("train", "--config=smoke", f"--workdir={tmp_path}", "--config.train.num_steps=77"),
    )
    assert not code
    (config, workdir) = seen.pop()
    assert (config.train.num_steps, workdir) == (77, str(tmp_path))
    code, _ = _start(monkeypatch, capsys, "evaluate", "--config", "eval_samples")
    assert not code
    assert seen.pop().horizons == (48,)
    code, shown = _start(monkeypatch, capsys, "study", "--config=scaling:smoke")
    assert (code, shown.err) == (2, "error: missing --workdir; see --help\n")


@pytest.mark.parametrize("name", sorted(config_commands.PROGRAMS))
def test_each_says_how_it_is_called(name, monkeypatch, capsys):
    code, shown = _start(monkeypatch, capsys, name, "--help")
    assert not code
    assert f"timemoe {name} --config=" in shown.out


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (
            "train.num_step=20",
            "config.train has no field 'num_step'; did you mean config.train.num_steps?",
        ),
        ("trian.num_steps=20", "config has no field 'trian'; did you mean config.train?"),
        ("seed.first=1", "config.seed is one value and has no fields, such as 'first'"),
        ("train.zzz=1", "config.train has no field 'zzz'; known: batch_size, "),
        ("batch_size=8", "config has no field 'batch_size'; did you mean config.train.batch_size?"),
        ("train.num_steps=many", "config.train.num_steps"),
    ],
)
def test_a_field_that_is_not_there_is_one_line_with_its_full_name(
    field, message, monkeypatch, capsys, tmp_path
):
    arguments = ("train", "--config=smoke", f"--workdir={tmp_path}", f"--config.{field}")
    code, shown = _start(monkeypatch, capsys, *arguments)
    assert code == 2
    (line,) = shown.err.splitlines()
    assert message in line
    assert "\\n" not in line


def test_the_doors_are_the_same_programs(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "eval_main.py", "--help"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        check=True,
    )
    assert done.stdout.startswith(config_commands.EVALUATE)
