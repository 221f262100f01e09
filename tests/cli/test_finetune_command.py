"""`timemoe finetune` and the config of `train_main.py`: two doors to the same code."""

import json

import numpy as np
import pandas as pd
import pytest
from processes import run_here
from tiny_model import TUNABLE

from timemoe_jax.checkpoints.load import load_model, save_model
from timemoe_jax.cli import main as cli
from timemoe_jax.models.base import create_params


@pytest.fixture(scope="module")
def csv(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "load.csv"
    t = np.arange(150)
    times = pd.date_range("2024-03-01", periods=150, freq="h")
    pd.DataFrame({"date": times, "north": np.sin(t / 4), "south": 5 + np.cos(t / 4)}).to_csv(
        path, index=False
    )
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "model"
    save_model(folder, TUNABLE, create_params(TUNABLE, 0))
    return folder


def test_both_doors_find_the_same(checkpoint, csv, tmp_path, capsys):
    few = {"learning_rate": 1e-3, "num_steps": 2, "batch_size": 8, "horizon": 4}
    command = ["finetune", csv, "--checkpoint", checkpoint, "--out", tmp_path / "a"]
    command += ["--horizon", 4, "--learning-rate", 1e-3, "--steps", 2, "--batch-size", 8]
    cli.main([str(each) for each in command])
    said = capsys.readouterr().out
    assert "fine-tuning: 2 series, 240 points" in said
    assert "zero-shot: MSE" in said
    assert "timemoe forecast FILE --checkpoint" in said
    flags = [f"--config.finetune.{name}={value}" for name, value in few.items()]
    config = ["--config=configs/finetune.py", f"--config.checkpoint={checkpoint}"]
    config += [f"--config.data.path={csv}", f"--workdir={tmp_path / 'b'}"]
    done = run_here("train_main.py", *config, *flags)
    assert done.returncode == 0, done.stderr
    reports = [json.loads((tmp_path / n / "report.json").read_text()) for n in "ab"]
    for name in ("zero_shot", "tuned", "kept", "history"):
        assert reports[0][name] == reports[1][name]
    assert load_model(tmp_path / "a").digest == load_model(tmp_path / "b").digest
    cli.main(["forecast", str(csv), "--checkpoint", str(tmp_path / "a"), "--horizon", "4"])
    assert "predictions" in capsys.readouterr().out


def test_mistakes_are_one_line(csv, checkpoint, tmp_path, capsys):
    for arguments, message in (
        (["--learning-rate", "best"], "--learning-rate must be a number or auto"),
        (["--horizon", "40", "--checkpoint", str(checkpoint)], "contexts of"),
    ):
        with pytest.raises(SystemExit) as caught:
            cli.main(["finetune", str(csv), "--out", str(tmp_path / "x"), *arguments])
        assert caught.value.code == 2
        assert message in capsys.readouterr().err
