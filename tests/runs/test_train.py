"""Whole runs: real processes, really killed, resumed, stopped and given nonsense."""

import dataclasses
import errno
import functools
import gzip
import json
import os
import re
import shutil
import signal
from unittest import mock

import jax
import numpy as np
import orbax.checkpoint
import pytest
from places import ROOT
from processes import run_here, run_processes
from tensorboardX.proto import event_pb2
from tiny_model import training_program

from timemoe_jax.checkpoints import store as checkpoint
from timemoe_jax.checkpoints.load import load_model
from timemoe_jax.config import from_mapping
from timemoe_jax.data.formats.time300b.folder import write_time_moe_folder
from timemoe_jax.errors import CheckpointError
from timemoe_jax.training import loop
from timemoe_jax.training import run as train
from timemoe_jax.training.config import RunConfig
from timemoe_jax.training.metrics_log import MetricsLog, read_metrics
from timemoe_jax.training.start import _check_same_model
from timemoe_jax.training.workdir import LOCK, claimed_workdir

STEPS, EVERY = 30, 5
RUN = {"train__num_steps": STEPS, "train__checkpoint_every": EVERY, "train__eval_every": STEPS // 2}
SENT = ROOT / "tests/runs/send_itself.py"


@pytest.fixture(autouse=True, scope="module")
def _a_program_is_made_once():
    """Runs of one config share their update and their validation."""
    with (
        mock.patch.object(train, "compile_train_step", functools.cache(train.compile_train_step)),
        mock.patch.object(loop, "make_validation", functools.cache(loop.make_validation)),
    ):
        yield


def _result(done):
    return done.returncode, done.stdout, done.stderr


def _ended_by(name, step, workdir, **fields):
    """A run in a process of its own that gets a signal after a step."""
    command = [SENT, name, str(step), *training_program(workdir, **RUN | fields)]
    return _result(*run_processes(command, 1, 1, timeout=240))


def _run(workdir, **fields):
    """A run in this process, which computes the same bits."""
    return _result(run_here(*training_program(workdir, **RUN | fields)))


class _Ended(BaseException):
    """What ends a run as an interrupt does."""


def _run_until(last, workdir, **fields):
    """A run in this process that ends without a word after a step."""
    write = MetricsLog.write

    def write_and_end(self, step, values):
        write(self, step, values)
        if step == last:
            raise _Ended

    with mock.patch.object(MetricsLog, "write", write_and_end), pytest.raises(_Ended):
        _run(workdir, **fields)


def _parameters(workdir):
    return [np.asarray(p) for p in jax.tree.leaves(load_model(workdir).params)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A run that nothing happens to, and what it printed."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    code, out, err = _run(workdir)
    assert code == 0, err
    return workdir, out, err


def test_what_a_run_prints_and_writes(uninterrupted):
    workdir, out, err = uninterrupted
    for text in (
        "parameters, ",
        "attention: tiled (auto)",
        "experts: blocked (auto)",
        "devices: 1 x cpu",
        "memory per device: ",
        "36 sequences",
        "windows",
        "updates per epoch",
        "total updates: 30",
        "step 30/30",
    ):
        assert text in out
    for text in ("loss", "lr", "points/s", "30/30"):
        assert text in err  # the progress bar
    records = read_metrics(workdir / "metrics.jsonl")
    steps = [r for r in records if "loss" in r]
    assert [r["step"] for r in steps] == list(range(1, STEPS + 1))
    names = {"loss", "loss_1", "loss_8", "balancing_loss", "expert_load", "router_entropy"}
    names |= {"dropped_share", "dead_expert_share", "router_z_loss"}
    names |= {"gradient_norm", "learning_rate", "points_per_second", "skipped_updates"}
    assert names <= set(steps[-1])
    np.testing.assert_allclose(np.sum(steps[-1]["expert_load"], axis=1), 1.0, rtol=1e-5)
    validations = [r for r in records if "validation_loss" in r]
    assert [r["step"] for r in validations] == [15, 30]
    assert json.loads((workdir / "config.json").read_text())["train"]["num_steps"] == STEPS


def test_tensorboard_reads_the_events(uninterrupted):
    (events,) = (uninterrupted[0] / "tensorboard").glob("events.*")
    scalars = _scalars(events.read_bytes())
    logged = {
        r["step"]: r["loss"]
        for r in read_metrics(uninterrupted[0] / "metrics.jsonl")
        if "loss" in r
    }
    assert scalars["loss"].keys() == logged.keys()
    for step, loss in logged.items():
        np.testing.assert_allclose(scalars["loss"][step], loss, rtol=1e-6)
    assert "expert_load/0/3" in scalars


def _scalars(data):
    """Tag -> step -> value, from the record framing of an event file: length, crc, bytes, crc."""
    found = {}
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 8], "little")
        event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
        for value in event.summary.value:
            found.setdefault(value.tag, {})[event.step] = value.simple_value
        at += 12 + size + 4
    return found


def test_killed_twice_and_resumed_the_parameters_are_the_same_bits(uninterrupted, tmp_path):
    workdir = tmp_path / "killed"
    for step in (13, 23):
        code, _, err = _ended_by("SIGKILL", step, workdir)
        assert code == -signal.SIGKILL, err
    code, out, err = _run(workdir)
    assert code == 0, err
    # Saving step 20 waits until step 15 is saved.
    assert re.search(r"resuming at step (15|20)\b", out)
    for a, b in zip(_parameters(uninterrupted[0]), _parameters(workdir), strict=True):
        assert a.tobytes() == b.tobytes()
    records = [r for r in read_metrics(workdir / "metrics.jsonl") if "loss" in r]
    assert [r["step"] for r in records] == list(range(1, STEPS + 1))
    whole = [r for r in read_metrics(uninterrupted[0] / "metrics.jsonl") if "loss" in r]
    assert [r["loss"] for r in records] == [r["loss"] for r in whole]


def test_sigterm_saves_and_exits_0(uninterrupted, tmp_path):
    workdir = tmp_path / "stopped"
    code, out, err = _ended_by("SIGTERM", 3, workdir, train__checkpoint_every=1000)
    assert code == 0, err
    assert "stopped by SIGTERM at step" in out
    (step,) = checkpoint.Checkpoints(workdir / "checkpoints").steps()
    assert 3 <= step < STEPS
    code, _, err = _run(workdir)
    assert code == 0, err
    for a, b in zip(_parameters(uninterrupted[0]), _parameters(workdir), strict=True):
        assert a.tobytes() == b.tobytes()


def test_ctrl_c_saves_says_one_line_and_exits_130(uninterrupted, tmp_path):
    workdir, write = tmp_path / "interrupted", MetricsLog.write

    def write_and_interrupt(self, step, values):
        write(self, step, values)
        if step == 3:
            signal.raise_signal(signal.SIGINT)

    with mock.patch.object(MetricsLog, "write", write_and_interrupt):
        code, _, err = _run(workdir, train__checkpoint_every=1000)
    assert code == 130
    assert "Traceback" not in err
    last = err.strip().splitlines()[-1]
    (step,) = checkpoint.Checkpoints(workdir / "checkpoints").steps()
    assert last == f"stopped by SIGINT at step {step}; saved; run the same command again to resume"
    assert read_metrics(workdir / "metrics.jsonl")[-1]["step"] == step
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    code, out, err = _run(workdir)
    assert code == 0, err
    assert f"the model is in {workdir}; use it: timemoe forecast FILE --checkpoint" in out
    for a, b in zip(_parameters(uninterrupted[0]), _parameters(workdir), strict=True):
        assert a.tobytes() == b.tobytes()


def test_the_last_update_is_logged_whatever_the_interval(tmp_path):
    code, out, err = _run(tmp_path, train__log_every=50, train__num_steps=7)
    assert code == 0, err
    assert "step 7/7: loss" in out
    records = [r for r in read_metrics(tmp_path / "metrics.jsonl") if "loss" in r]
    assert [r["step"] for r in records] == [7]


def test_ctrl_c_before_the_first_update_is_one_line(tmp_path):
    with mock.patch.object(train, "open_training_data", side_effect=KeyboardInterrupt):
        code, _, err = _run(tmp_path / "run")
    assert (code, _only_line(err)) == (130, "interrupted")


def test_a_full_disk_is_one_line_and_the_earlier_checkpoint_whole(tmp_path):
    save = orbax.checkpoint.CheckpointManager.save

    def save_until_full(self, step, *args, **options):
        if step > EVERY:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x/10.tmp/params")
        return save(self, step, *args, **options)

    workdir = tmp_path / "full"
    with mock.patch.object(orbax.checkpoint.CheckpointManager, "save", save_until_full):
        code, _, err = _run(workdir)
    assert code == 2
    assert "Traceback" not in err
    (error,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "the disk is full; step 5 is whole; free some space" in error
    assert checkpoint.Checkpoints(workdir / "checkpoints").steps() == [EVERY]
    assert load_model(workdir).params


def test_a_second_run_in_a_workdir_is_refused_while_the_first_goes_on(tmp_path):
    workdir = tmp_path / "run"
    with claimed_workdir(workdir):
        code, _, err = _run(workdir)
        assert code == 2
        assert f"workdir {workdir} is in use" in _only_line(err)
        assert os.listdir(workdir) == [LOCK]


def _corpus(folder):
    """Two domains, of one long series and of many short ones."""
    rng = np.random.default_rng(0)
    for name, count, length in (("energy/load", 6, 400), ("web/views", 60, 30)):
        write_time_moe_folder(folder / name, [rng.normal(size=length) for _ in range(count)])
    return folder


@pytest.mark.parametrize("policy", ["windows", "packing"])
def test_a_mixed_run_is_logged_and_when_interrupted_ends_with_the_same_bits(policy, tmp_path):
    fields = {
        "data__path": _corpus(tmp_path / "corpus"),
        "data__synthetic_sequences": 0,
        "data__policy": policy,
        "data__mixing": "fixed",
        "data__mixing_weights": "energy:1,web:3",
        "data__max_epochs_per_source": 100.0,
        "data__validation_fraction": 0.0,
        "train__num_steps": 60,
        "train__checkpoint_every": 20,
        "train__log_every": 5,
        "train__eval_every": 0,
    }
    code, out, err = _run(tmp_path / "whole", **fields)
    assert code == 0, err
    # Of so few draws whole numbers are shared out.
    assert re.search(r"mixture: fixed: web 7[45]\.\d\d% \(", out)
    _run_until(25, tmp_path / "ended", **fields)
    code, out, err = _run(tmp_path / "ended", **fields)
    assert code == 0, err
    assert "resuming at step 20" in out
    for a, b in zip(*(_parameters(tmp_path / name) for name in ("whole", "ended")), strict=True):
        np.testing.assert_array_equal(a, b)
    logs = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "ended")]
    shares = [[(r["step"], r["share_web"]) for r in log if "loss" in r] for log in logs]
    assert shares[0] == shares[1]
    assert len(shares[0]) == 60 // 5
    assert all(abs(r["share_energy"] + r["share_web"] - 1) < 1e-6 for r in logs[0] if "loss" in r)
    assert abs(np.mean([share for _, share in shares[0]]) - 0.75) < 0.06


def test_a_finished_run_stays_as_it_is(uninterrupted):
    workdir = uninterrupted[0]
    before = (workdir / "metrics.jsonl").read_text()
    code, out, err = _run(workdir)
    assert code == 0, err
    assert "resuming at step 30" in out
    assert (workdir / "metrics.jsonl").read_text() == before


def test_another_model_is_not_resumed(uninterrupted):
    code, _, err = _run(uninterrupted[0], model__num_experts=8)
    assert code == 2
    assert _only_line(err).startswith("error: ")
    assert "num_experts 4 but 8" in err


def test_a_damaged_checkpoint_is_not_resumed_but_named(uninterrupted, tmp_path):
    workdir = tmp_path / "damaged"
    shutil.copytree(uninterrupted[0], workdir)
    newest = workdir / "checkpoints" / str(STEPS)
    largest = max((f for f in newest.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    code, _, err = _run(workdir)
    assert code == 2
    line = _only_line(err)
    assert "step 30" in line
    assert "newest good checkpoint is step 25" in line
    shutil.rmtree(newest)
    code, out, err = _run(workdir)
    assert code == 0, err
    assert "resuming at step 25" in out


def test_fine_tuning_starts_from_a_checkpoint_to_which_a_bias_of_the_routers_is_added(
    uninterrupted, tmp_path
):
    """At a rate of nothing, the rest stays as it was."""
    source, _, _ = uninterrupted
    code, out, err = _run(
        tmp_path / "tuned",
        train__init_from=source,
        train__num_steps=3,
        optimizer__learning_rate=1e-12,
        optimizer__end_learning_rate=0,
        model__router_bias=True,
    )
    assert code == 0, err
    assert "has no parameters for model.router_bias" in out
    before, after = load_model(source), load_model(tmp_path / "tuned")
    assert after.config.router_bias
    bias = np.asarray(after.params["blocks"]["ffn"].pop("selection_bias")[...])
    assert 0 < np.abs(bias).max() <= 3e-3 + 1e-9
    leaves = zip(*(jax.tree.leaves(model.params) for model in (before, after)), strict=True)
    for a, b in leaves:
        np.testing.assert_allclose(a, b, atol=1e-9)


def test_a_profile_window_is_a_trace(tmp_path):
    """Two updates from the second on, in the formats of TensorBoard and Perfetto."""
    code, out, err = _run(
        tmp_path, train__num_steps=6, profile__start=1, profile__num_steps=2, train__eval_every=0
    )
    assert code == 0, err
    assert f"trace of 2 updates in {tmp_path / 'profile'}" in out
    (session,) = (tmp_path / "profile/plugins/profile").iterdir()
    assert list(session.glob("*.xplane.pb"))
    with gzip.open(session / "perfetto_trace.json.gz") as file:
        events = json.load(file)["traceEvents"]
    updates = {e["args"]["step_num"] for e in events if e.get("name") == "update"}
    assert updates == {"1", "2"}


def test_a_run_of_before_a_field_was_there_is_resumed(uninterrupted, tmp_path, monkeypatch):
    """What it does not say had the default."""
    workdir = tmp_path / "older"
    shutil.copytree(uninterrupted[0], workdir)
    then = checkpoint.Checkpoints(workdir / "checkpoints").stored_config()
    for field in ("router_bias", "expert_exchange"):
        del then["model"][field]
    with checkpoint.Checkpoints(workdir / "checkpoints") as saved:
        monkeypatch.setattr(saved, "stored_config", lambda: then)
        config = from_mapping(RunConfig, json.loads((workdir / "config.json").read_text()))
        _check_same_model(config, saved)
        biased = dataclasses.replace(config.model, router_bias=True)
        with pytest.raises(CheckpointError, match="router_bias False but True"):
            _check_same_model(dataclasses.replace(config, model=biased), saved)


def test_updates_that_are_not_finite_end_the_run(tmp_path):
    code, _, err = _run(
        tmp_path / "broken",
        model__initializer_range=1e30,
        train__max_nonfinite_in_row=3,
    )
    assert code == 2
    assert "step 1: update skipped" in err
    assert "3 updates in a row were not finite" in err.splitlines()[-1]
    assert "synthetic" in err.splitlines()[-1]  # it names the sequences


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.train.num_stepz=3"], "num_stepz"),
        (["--config.train.num_steps=many"], "num_steps"),
        (["--config.model.num_attention_heads=3"], "must divide hidden_size"),
        (["--config.data.synthetic_sequences=0"], "set config.data.path"),
        (["--config.data.synthetic_sequences=0", "--config.data.path=/nowhere"], "/nowhere"),
        (["--config.train.init_from=/nowhere"], "/nowhere"),
        (
            ["--config.data.mixing=fixed", "--config.data.mixing_weights=energy:1"],
            "gives no weight to synthetic/generated",
        ),
        (["--config.data.max_epochs_per_source=1e-3"], "lower train.num_steps"),
        (["surplus"], "surplus"),
    ],
)
def test_nonsense_is_one_line_and_status_2(tmp_path, arguments, message):
    command = ["train_main.py", "--config=configs/smoke.py", f"--workdir={tmp_path / 'run'}"]
    done = run_here(*command, *arguments)
    assert done.returncode == 2
    assert message in _only_line(done.stderr)


def test_a_config_that_is_not_there(tmp_path):
    done = run_here("train_main.py", "--config=configs/none.py", f"--workdir={tmp_path}")
    assert done.returncode == 2
    assert "configs/none.py" in _only_line(done.stderr)


def test_help():
    done = run_here("train_main.py", "--help")
    assert done.returncode == 0
    assert "--workdir" in done.stdout
    assert "--config=smoke" in done.stdout


def test_flags_that_are_missing():
    done = run_here("train_main.py")
    assert done.returncode == 2
    assert "--config, --workdir" in _only_line(done.stderr)


def _only_line(err):
    (line,) = [line for line in err.splitlines() if line.strip()]
    return line
