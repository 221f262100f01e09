"""Runs of several processes and devices: killed, and gone on with on others."""

import functools
import shutil
import signal
import time
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
from processes import run_here, run_processes, start_processes
from tiny_model import TINY_RUN, training_program

from configs import smoke
from timemoe_jax.checkpoints.load import load_model
from timemoe_jax.checkpoints.step import list_steps
from timemoe_jax.checkpoints.store import Checkpoints
from timemoe_jax.config import from_mapping
from timemoe_jax.runtime import partitioning
from timemoe_jax.training import loop
from timemoe_jax.training import run as train
from timemoe_jax.training.config import RunConfig
from timemoe_jax.training.metrics_log import read_metrics
from timemoe_jax.training.start import start_or_resume

STEPS, KILLED_AFTER = 40, 16
RUN = {"train__num_steps": STEPS, "train__checkpoint_every": 8, "train__eval_every": STEPS}


def arguments(workdir: Path, *flags: str, **mesh: int) -> list[str]:
    sizes = {f"mesh__{axis}": size for axis, size in mesh.items()}
    return training_program(workdir, *flags, **RUN, **sizes)


def curve(workdir: Path) -> dict[int, float]:
    """{step: loss}, each step once."""
    records = [r for r in read_metrics(workdir / "metrics.jsonl") if "loss" in r]
    assert len({r["step"] for r in records}) == len(records)
    return {r["step"]: r["loss"] for r in records}


@pytest.fixture(autouse=True, scope="module")
def _a_program_is_made_once():
    """Runs of one config and mesh in this process share their update and their validation."""
    with (
        mock.patch.object(train, "compile_train_step", functools.cache(train.compile_train_step)),
        mock.patch.object(loop, "make_validation", functools.cache(loop.make_validation)),
    ):
        yield


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[int, float]:
    """The losses of one process with one device that nobody killed."""
    workdir = tmp_path_factory.mktemp("alone")
    done = run_here(*arguments(workdir))
    assert done.returncode == 0, done.stderr
    return curve(workdir)


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    """What two processes with two devices each left behind when both were killed."""
    workdir = tmp_path_factory.mktemp("killed")
    args = arguments(workdir, "--distributed=auto", fsdp=2)
    running = start_processes(args, 2, 2)
    try:
        end = time.monotonic() + 240
        while not [s for s in list_steps(workdir / "checkpoints") if s >= KILLED_AFTER]:
            assert time.monotonic() < end
            assert all(process.poll() is None for process in running), [
                process.communicate() for process in running
            ]
            time.sleep(0.02)
    finally:
        for process in running:
            process.send_signal(signal.SIGKILL)
            process.wait()
            process.stdout.close()
            process.stderr.close()
    assert KILLED_AFTER <= max(curve(workdir)) < STEPS
    return workdir


@pytest.mark.parametrize(
    ("processes", "devices", "mesh"),
    [(1, 4, {"fsdp": 2, "tensor": 2}), (1, 1, {}), (2, 2, {"expert": 4})],
    ids=["1x4", "1x1", "2x2"],
)
def test_killed_on_two_processes_and_resumed_elsewhere_the_losses_are_the_same(
    killed, alone, tmp_path, processes, devices, mesh
):
    """As one device's that was never killed, but for the order of sums in float32."""
    workdir = tmp_path / "resumed"
    shutil.copytree(killed, workdir)
    flags = ["--distributed=auto"] * (processes > 1)
    command = arguments(workdir, *flags, **mesh)
    if processes == 1:
        every = [run_here(*command, devices=devices)]
    else:
        every = run_processes(command, processes, devices, timeout=240)
    assert all(done.returncode == 0 for done in every), every
    assert f"resuming at step {list_steps(killed / 'checkpoints')[-1]}" in every[0].stdout
    found = curve(workdir)
    assert sorted(found) == sorted(alone) == list(range(1, STEPS + 1))
    np.testing.assert_allclose(
        [found[step] for step in alone], list(alone.values()), rtol=0, atol=1e-4
    )
    # Only the first of several speaks, and writes.
    assert all("step 40/40" not in done.stdout for done in every[1:])
    assert "step 40/40" in every[0].stdout


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


def test_two_processes_stop_together_at_a_sigterm(tmp_path):
    """To one of them alone; both save, say so and end with status 0."""
    workdir = tmp_path / "stopped"
    args = arguments(workdir, "--distributed=auto")
    running = start_processes([*args, "--config.train.num_steps=100000"], 2, 1)
    try:
        end = time.monotonic() + 240
        while not list_steps(workdir / "checkpoints"):
            assert time.monotonic() < end
            assert all(process.poll() is None for process in running)
            time.sleep(0.05)
        running[1].send_signal(signal.SIGTERM)
        outputs = [process.communicate(timeout=120) for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], outputs
    assert "stopped by SIGTERM at step" in outputs[0][0]
    assert "stopped by SIGTERM" not in outputs[1][0]
