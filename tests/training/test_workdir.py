"""The folder of a run: claimed by one run, and errors of the disk in one line."""

import os
import signal
import subprocess
import sys
from contextlib import nullcontext

import pytest
from places import ROOT

from timemoe_jax.errors import DataError
from timemoe_jax.runtime import distributed
from timemoe_jax.training import workdir as workdirs
from timemoe_jax.training.loop import StopSignal
from timemoe_jax.training.metrics_log import MetricsLog
from timemoe_jax.training.workdir import WorkdirError, claimed_workdir, what_next, writing


def test_a_folder_is_claimed_once_and_free_again(tmp_path):
    folder = tmp_path / "runs" / "a"
    with claimed_workdir(folder):
        with (
            pytest.raises(WorkdirError, match=f"workdir {folder} is in use"),
            claimed_workdir(folder),
        ):
            pass
        with claimed_workdir(tmp_path / "runs" / "b"):
            pass
    with claimed_workdir(folder):
        pass


def test_a_process_that_is_killed_frees_its_folder(tmp_path):
    code = (
        "import os, sys, pathlib\n"
        "from timemoe_jax.data.corpus.staging import claimed\n"
        "with claimed(pathlib.Path(sys.argv[1]), 'run.lock') as is_ours:\n"
        "    print(is_ours, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as other:
        assert other.stdout.readline() == "True\n"
        with pytest.raises(WorkdirError, match="in use"), claimed_workdir(tmp_path):
            pass
        other.kill()
        other.wait()
        with claimed_workdir(tmp_path):
            pass


def test_the_first_process_of_a_run_claims_for_all(tmp_path, monkeypatch):
    with claimed_workdir(tmp_path):
        monkeypatch.setattr(distributed, "is_primary", lambda: False)
        with claimed_workdir(tmp_path):  # another process of the same run
            pass
        monkeypatch.setattr(distributed, "gather", lambda line: ["workdir is in use", line])
        of_another_run = pytest.raises(WorkdirError, match=r"in use \(in process 0\)")
        with of_another_run, claimed_workdir(tmp_path):
            pass


def test_errors_of_the_disk_name_the_file(tmp_path):
    (tmp_path / "file").write_text("")
    refused = pytest.raises(WorkdirError, match=r"cannot be written: (File exists|Not a dir)")
    with refused, claimed_workdir(tmp_path / "file"):
        pass
    with pytest.raises(DataError), writing(tmp_path):
        raise DataError("of another kind")


@pytest.mark.skipif(not workdirs.Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_log_that_the_disk_does_not_take_is_an_error_of_one_line(tmp_path):
    for ended_by in (OSError, None):
        log = MetricsLog(tmp_path, 0)
        log._file.close()
        log._file = open("/dev/full", "a")  # noqa: SIM115
        with pytest.raises(WorkdirError, match=r"metrics.jsonl cannot be written: No space left"):
            log.write(1, {"loss": 1.0})
        # It does not hide the error that ended the run.
        with pytest.raises(WorkdirError) if ended_by is None else nullcontext():
            log.close_after(ended_by, None, None)


def test_the_command_that_comes_next_can_be_pasted(tmp_path):
    assert what_next(workdirs.Path("a run")).endswith("timemoe forecast FILE --checkpoint 'a run'")


def test_ctrl_c_in_one_of_several_processes_reaches_all(monkeypatch):
    monkeypatch.setattr(distributed, "is_distributed", lambda: True)
    sent = []
    monkeypatch.setattr(os, "kill", lambda *signal: sent.append(signal))
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.interrupted
        assert sent == [(os.getpid(), signal.SIGTERM)]  # which all of them agree about
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)  # at once
