"""Runs of several processes and devices, of several sources: killed, and gone on with on others."""

import contextlib
import functools
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
from processes import run_here, start_processes
from tiny_model import TINY_RUN, training_program

from configs import smoke
from timemoe_jax.checkpoints.load import load_model
from timemoe_jax.checkpoints.step import list_steps
from timemoe_jax.checkpoints.store import Checkpoints
from timemoe_jax.config import from_mapping
from timemoe_jax.data.formats.time300b.folder import write_time_moe_folder
from timemoe_jax.runtime import partitioning
from timemoe_jax.training import loop
from timemoe_jax.training import run as train
from timemoe_jax.training.config import RunConfig
from timemoe_jax.training.metrics_log import MetricsLog, read_metrics
from timemoe_jax.training.start import start_or_resume

STEPS, KILLED_AFTER = 40, 16  # what is compared, of runs that have many more
RUN = {
    "train__num_steps": 10_000,
    "train__checkpoint_every": 8,
    "train__eval_every": 20,
    "data__synthetic_sequences": 0,
    "data__mixing": "fixed",
}
WEIGHTS = {"energy": 3, "nature": 1, "web": 1}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Most series lie where the least weight is; many are shorter than a window."""
    root = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for domain, count in (("energy", 40), ("nature", 300), ("web", 60)):
        series = (rng.normal(size=length) for length in rng.integers(20, 200, count))
        write_time_moe_folder(root / domain / "one", series)
    return root


def arguments(corpus: Path, workdir: Path, *flags: str, **mesh: int) -> list[str]:
    sizes = {f"mesh__{axis}": size for axis, size in mesh.items()}
    weights = ",".join(f"{name}:{weight}" for name, weight in WEIGHTS.items())
    data = {"data__path": corpus, "data__mixing_weights": weights}
    return training_program(workdir, *flags, **RUN, **data, **sizes)


def records(workdir: Path) -> list[dict]:
    """Those of the updates, each once."""
    found = [r for r in read_metrics(workdir / "metrics.jsonl") if "loss" in r]
    assert [r["step"] for r in found] == list(range(1, len(found) + 1))
    return found


def run_far_enough(command: list[str], devices: int) -> str:
    """In this process, until the last of the steps that are compared; returns what it prints."""
    write = MetricsLog.write

    def write_and_end(self, step, values):
        write(self, step, values)
        if step == STEPS and "loss" in values:
            raise SystemExit

    with mock.patch.object(MetricsLog, "write", write_and_end):
        done = run_here(*command, devices=devices)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(autouse=True, scope="module")
def _a_program_is_made_once():
    """Runs of one config and mesh in this process share their update and their validation."""
    with (
        mock.patch.object(train, "compile_train_step", functools.cache(train.compile_train_step)),
        mock.patch.object(loop, "make_validation", functools.cache(loop.make_validation)),
    ):
        yield


@pytest.fixture(scope="module")
def alone(corpus, tmp_path_factory) -> list[dict]:
    """What one process with one device that nobody killed logs."""
    workdir = tmp_path_factory.mktemp("alone")
    run_far_enough(arguments(corpus, workdir), 1)
    return records(workdir)


@contextlib.contextmanager
def two_processes(command: list[str]) -> Iterator[list[subprocess.Popen]]:
    """With two devices each; what is left of them is killed."""
    running = start_processes(command, 2, 2)
    try:
        yield running
    finally:
        for process in running:
            process.kill()
            process.wait()
            process.stdout.close()
            process.stderr.close()


def wait_until(running: list[subprocess.Popen], reached: Callable[[], bool]) -> None:
    """While all of them run."""
    end = time.monotonic() + 240
    while not reached():
        assert time.monotonic() < end
        assert all(process.poll() is None for process in running), [
            process.communicate() for process in running
        ]
        time.sleep(0.02)


@pytest.fixture(scope="module")
def killed(corpus, tmp_path_factory) -> Path:
    """What two processes with two devices each left behind when both were killed."""
    workdir = tmp_path_factory.mktemp("killed")
    with two_processes(arguments(corpus, workdir, "--distributed=auto", fsdp=2)) as running:
        steps = functools.partial(list_steps, workdir / "checkpoints")
        wait_until(running, lambda: max(steps(), default=0) >= KILLED_AFTER)
    assert KILLED_AFTER <= len(records(workdir)) < STEPS
    return workdir


def agree(found: list[dict], alone: list[dict]) -> None:
    """Losses but for the order of sums in float32; the same windows, whoever makes them."""
    assert len(found) >= len(alone) == STEPS
    for a, b in zip(found, alone, strict=False):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=0, atol=1e-4)
        for domain in WEIGHTS:
            share = f"share_{domain}"
            np.testing.assert_allclose(a[share], b[share], rtol=1e-6)


def test_the_shares_of_the_sources_are_the_planned_ones(alone):
    shares = {name.removeprefix("share_") for name in alone[0] if name.startswith("share_")}
    assert shares == set(WEIGHTS)
    for domain, weight in WEIGHTS.items():
        planned = weight / sum(WEIGHTS.values())
        assert abs(np.mean([r[f"share_{domain}"] for r in alone]) - planned) < 0.028
    for record in alone:
        assert sum(record[f"share_{domain}"] for domain in WEIGHTS) == pytest.approx(1)


@pytest.mark.parametrize(
    ("devices", "mesh"), [(4, {"fsdp": 2, "tensor": 2}), (1, {})], ids=["1x4", "1x1"]
)
def test_killed_on_two_processes_and_resumed_in_one_the_losses_are_the_same(
    corpus, killed, alone, tmp_path, devices, mesh
):
    """As one device's that was never killed."""
    workdir = tmp_path / "resumed"
    shutil.copytree(killed, workdir)
    out = run_far_enough(arguments(corpus, workdir, **mesh), devices)
    assert f"resuming at step {list_steps(killed / 'checkpoints')[-1]}" in out
    agree(records(workdir), alone)


def test_two_processes_go_on_elsewhere_and_stop_together_at_a_sigterm(
    corpus, killed, alone, tmp_path
):
    """To one of them alone; both save, say so and end with status 0."""
    workdir = tmp_path / "resumed"
    shutil.copytree(killed, workdir)
    command = arguments(corpus, workdir, "--distributed=auto", expert=4)
    with two_processes(command) as running:
        wait_until(running, lambda: records(workdir)[-1]["step"] >= STEPS)
        running[1].send_signal(signal.SIGTERM)
        outputs = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], outputs
    # Only the first of several speaks, and writes.
    resumed = f"resuming at step {list_steps(killed / 'checkpoints')[-1]}"
    for said in (resumed, "step 40/10,000", "stopped by SIGTERM at step"):
        assert said in outputs[0][0]
        assert said not in outputs[1][0]
    agree(records(workdir), alone)
    assert list_steps(workdir / "checkpoints")[-1] == records(workdir)[-1]["step"]


def test_fine_tuning_on_a_mesh_starts_from_a_checkpoint(killed, tmp_path):
    """With the same bits, each parameter where the mesh has it."""
    fields = TINY_RUN | {"mesh.fsdp": 2, "mesh.expert": 2, "train.init_from": str(killed)}
    config = smoke.get_config()
    config.update_from_flattened_dict(fields | {"model.horizon_lengths": (1, 8)})
    config = from_mapping(RunConfig, config)
    mesh = partitioning.make_mesh(config.mesh, jax.devices()[:4])
    with Checkpoints(tmp_path / "tuned") as none:
        params = start_or_resume(config, mesh, none, None).params
    for a, b in zip(*map(jax.tree.leaves, (load_model(killed).params, params)), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
        assert b.sharding.mesh == mesh
    experts = params["blocks"]["ffn"]["experts"]
    assert not any(kernel.sharding.is_fully_replicated for kernel in jax.tree.leaves(experts))
