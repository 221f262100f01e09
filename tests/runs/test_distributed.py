"""Several processes: how they start, agree and stop, and checkpoints from one number to another.

The functions at the end run in processes of their own, each with a few emulated devices.
"""

import json
import os
import re
import shutil
import signal
import socket
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from processes import run_here, run_processes

from timemoe_jax.checkpoints import store as checkpoint
from timemoe_jax.checkpoints.store import Checkpoints
from timemoe_jax.cli import programs as entry
from timemoe_jax.data.pipeline.batches import make_dataset
from timemoe_jax.data.pipeline.windows import WindowIndex, WindowSource
from timemoe_jax.data.series_source import ArraySource
from timemoe_jax.errors import CheckpointError, TimeMoeError
from timemoe_jax.runtime import distributed


def run_function(name: str, count: int, devices: int, *args: os.PathLike | str) -> list[dict]:
    """What a function of this file returns in each process."""
    done = run_processes([__file__, name, *args], count, devices)
    assert all(process.returncode == 0 for process in done), done
    return [json.loads(process.stdout.splitlines()[-1]) for process in done]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[Path, list[dict]]:
    """The checkpoints that two processes of two devices made, and what each of them saw."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    return folder, run_function("save", 2, 2, folder)


def test_processes_see_one_another(saved):
    for process, seen in enumerate(saved[1]):
        assert seen["devices"] == 4
        assert seen["primary"] == (process == 0)
        assert seen["sum"] == 0 + 1 + 2 + 3
        assert seen["told"] == ["I am 0", "I am 1"]


def test_what_fails_in_one_fails_in_all(saved):
    assert saved[1][0]["failed"] == "1 cannot read (in process 1)"
    assert saved[1][1]["failed"] == "1 cannot read"


def test_a_sigterm_to_one_stops_all_after_the_same_step(saved):
    steps = [seen["stopped"] for seen in saved[1]]
    assert steps[0] == steps[1] >= 3


def test_saved_by_two_restored_by_them(saved):
    """Under another sharding, with only the newest steps kept, and a step written anew."""
    for seen in saved[1]:
        assert seen["equal"]
        assert seen["steps"] == [4, 6]
        assert seen["wider"] == 6


def test_saved_by_two_restored_by_one(saved):
    """Here on one device; the next test has four."""
    with Checkpoints(saved[0]) as checkpoints:
        batches = iterator()
        restored = checkpoints.restore(**example(abstract), data_iterator=batches)
    assert (restored.step, restored.extra) == (6, {"skipped": 2})
    assert differing(restored) == []
    together = sorted(i for seen in saved[1] for i in seen["next"])
    assert together == sorted(next(batches)["sequence"].tolist())


def test_saved_by_one_restored_by_two(saved, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved[0], folder)
    seen = save_again(folder)  # here, on four devices
    assert seen["equal"]
    parts = run_function("restore", 2, 2, folder)
    assert [part["step"] for part in parts] == [8, 8]
    assert all(part["equal"] for part in parts)
    assert sorted(i for part in parts for i in part["next"]) == sorted(seen["next"])


def flip(folder: Path) -> None:
    """One bit of the values of each array, as far as files can tell."""
    for file in folder.rglob("d/*"):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 0x04
        file.write_bytes(content)


@pytest.mark.parametrize("item", ["params", "opt_state"])
@pytest.mark.parametrize("process", [0, 1])
def test_a_flipped_bit_in_the_part_of_either_process_is_noticed(saved, tmp_path, item, process):
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved[0], folder)
    flip(folder / "6" / item / f"ocdbt.process_{process}")
    with pytest.raises(CheckpointError, match=rf"is damaged: {item}.*good checkpoint is step 4"):
        Checkpoints(folder).restore(**example(abstract))


def test_damage_ends_every_process_with_one_line(saved, tmp_path):
    """The sum that is off is one that no process can form alone."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved[0], folder)
    flip(folder / "6" / "params" / "ocdbt.process_1")
    done = run_processes([__file__, "restore", folder], 2, 2)
    for process in done:
        assert process.returncode == entry.USER_ERROR, process
        lines = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        assert "step 6 in" in lines[0]
        assert "the newest good checkpoint is step 4" in lines[0]
        assert "Traceback" not in process.stderr


def test_folders_that_are_not_shared_are_named(saved):
    for seen in saved[1]:
        assert "is not shared: process 0 sees there no step, process 1 1, 2" in seen["seen"]
        assert "is not shared: what process 0 writes there" in seen["written"]


# One process: nothing is started.


@pytest.fixture
def started(monkeypatch) -> list[tuple]:
    """What would be told to JAX."""
    calls: list[tuple] = []
    for name in (*distributed.VARIABLES, "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: calls.append((*a, k)))
    monkeypatch.setattr(distributed, "_wait_for", lambda *a: None)
    return calls


def test_a_plain_command_starts_nothing(started, monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "elsewhere:1")  # of a shell that knows a cluster
    distributed.start()
    distributed.initialize()
    distributed.initialize("here:1", 1, 0)
    assert not started
    assert distributed.is_primary()
    assert not distributed.is_distributed()
    assert not distributed.stop_requested(1)
    assert distributed.gather("alone") == ["alone"]
    distributed.exit_now(SystemExit(2))
    with pytest.raises(OSError, match="as it was"), distributed.fail_together(CheckpointError):
        raise OSError("as it was")


def test_what_is_given_is_not_looked_up(started, monkeypatch):
    distributed.start(None, "here:1", "4", "3")
    assert started.pop()[:3] == ("here:1", 4, 3)
    distributed.start("auto", "here:1", "4", "3")
    address, count, number, options = started.pop()
    assert (address, count, number) == ("here:1", 4, 3)
    assert options["cluster_detection_method"] == "deactivate"
    for name, value in zip(distributed.VARIABLES, ("there:2", "8", "7"), strict=True):
        monkeypatch.setenv(name, value)
    distributed.start("auto", process_id="5")
    assert started.pop()[:3] == ("there:2", 8, 5)
    monkeypatch.delenv("JAX_NUM_PROCESSES")
    distributed.start("auto")
    address, count, number, options = started.pop()
    assert (address, count, number) == ("there:2", None, 7)
    assert options["cluster_detection_method"] is None  # JAX asks the cluster


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((None, "here:1"), "--num_processes and --process_id are missing: .*--distributed=auto"),
        ((None, "here:1", "2"), "--process_id is missing"),
        ((None, None, "2", "0"), "--coordinator is missing"),
        (("yes",), "--distributed is 'yes'; its one value is auto"),
        ((None, "here", "2", "0"), "--coordinator is 'here'; it must be host:port"),
        ((None, "here:1", "two", "0"), "--num_processes is 'two'; it must be a whole number"),
        ((None, "here:1", "0", "0"), "--num_processes is 0; it must be at least 1"),
        ((None, "here:1", "2", "2"), "--process_id is 2; it must be from 0 to 1"),
        ((None, "here:1", "2", "-1"), "--process_id is -1"),
    ],
)
def test_flags(started, flags, message):
    with pytest.raises(TimeMoeError, match=message):
        distributed.start(*flags)
    assert not started


def test_too_late(monkeypatch):
    jax.devices()
    monkeypatch.setattr(distributed, "_wait_for", lambda *a: None)
    with pytest.raises(TimeMoeError, match="must be started before anything is computed"):
        distributed.initialize("localhost:1", 2, 1)


def test_nobody_listens():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
        with pytest.raises(TimeMoeError, match=f"process 0 does not listen at {address} after 0 s"):
            distributed.initialize(address, 2, 1, timeout_seconds=0)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--distributed=auto"], "error: --distributed=auto found no cluster .SLURM, Open MPI"),
        (["--coordinator=here:1"], "error: --num_processes and --process_id are missing"),
    ],
)
def test_the_program_says_what_is_wrong_on_one_line(tmp_path, flags, message):
    command = ["train_main.py", "--config=configs/smoke.py", f"--workdir={tmp_path / 'run'}"]
    if "auto" in flags[0]:  # JAX looks for a cluster only before anything is computed
        (done,) = run_processes([*command, *flags], 1, 1)
    else:
        done = run_here(*command, *flags)
    assert done.returncode == entry.USER_ERROR
    assert re.fullmatch(f"{message}.*\n", done.stderr), done.stderr
    assert not (tmp_path / "run").exists()


# What runs in the processes.


def example(make):
    """Parameters and an optimizer's state of several dtypes, each leaf made by `make`."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(64, 48)).astype(np.float32)
    params = {
        "w": make(w, ("data", "fsdp")),
        "layers": make(rng.normal(size=(3, 32, 40)).astype(jnp.bfloat16), (None, "fsdp")),
        "everywhere": make(w[0], ()),
    }
    state = {"mu": make(w * 2, ("fsdp",)), "count": make(np.asarray(3, np.int32), ())}
    return {"params": params, "opt_state": state}


def abstract(array: np.ndarray, _: tuple) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def on_mesh(shape: tuple[int, int]):
    """Makes leaves that a mesh of that shape holds."""
    kinds = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh(shape, ("data", "fsdp"), axis_types=kinds)

    def make(array: np.ndarray, axes: tuple) -> jax.Array:
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return make


def differing(restored) -> list[str]:
    """The leaves of which some part, as far as this process has it, is not as in `example`."""
    expected = example(lambda array, _: array)
    found = {"params": restored.params, "opt_state": restored.opt_state}
    return [
        f"{item}.{name}"
        for item, leaves in expected.items()
        for name, right in leaves.items()
        for part in found[item][name].addressable_shards
        if np.asarray(part.data).tobytes() != right[part.index].tobytes()
        or part.data.dtype != right.dtype
    ]


def iterator():
    """The data of this process, at its share of eight windows in a step."""
    source = ArraySource([np.arange(5.0) + k for k in range(50)])
    index, count = distributed.process_index_and_count()
    dataset = make_dataset(
        WindowSource(source, WindowIndex(source.lengths, 4)),
        batch_size=8 // count,
        seed=1,
        shuffle=True,
        repeat=True,
        num_threads=1,
        process_index=index,
        process_count=count,
    )
    return iter(dataset)


def save(folder: str) -> dict:
    """In two processes: everything that they do together, and checkpoints."""
    distributed.initialize(auto=True)
    me = jax.process_index()
    numbers = on_mesh((2, 2))(np.arange(4.0).reshape(2, 2), ("data", "fsdp"))
    seen = {
        "devices": jax.device_count(),
        "primary": distributed.is_primary(),
        "sum": float(jax.jit(jnp.sum)(numbers)),
        "told": distributed.gather(f"I am {me}"),
        **unshared(Path(folder).parent / f"of_{me}"),
    }
    try:
        with distributed.fail_together(CheckpointError):
            if me == 1:
                raise CheckpointError("1 cannot read")
    except CheckpointError as error:
        seen["failed"] = str(error)
    batches = iterator()
    state = example(on_mesh((2, 2)))
    state["opt_state"]["count"] = jnp.asarray(3, jnp.int32)  # of each process alone
    kinds = (jax.sharding.AxisType.Auto,)
    whole = jax.make_mesh((4,), ("x",), axis_types=kinds)  # a run saves with its mesh in use
    with jax.set_mesh(whole), Checkpoints(folder, keep=2, config={"model": {}}) as checkpoints:
        for step in (2, 4, 6):
            next(batches)
            checkpoints.save(step, **state, data_iterator=batches, extra={"skipped": 2})
    with Checkpoints(folder, keep=2, config={"model": {}}) as checkpoints:
        checkpoints.save(6, **state, data_iterator=batches, extra={"skipped": 2})
        checkpoints.wait()
        seen["steps"] = checkpoints.steps()
        again = iterator()
        restored = checkpoints.restore(**example(on_mesh((1, 4))), data_iterator=again)
        seen["wider"] = restored.step
        seen["equal"] = differing(restored) == []
    seen["next"] = next(batches)["sequence"].tolist()
    assert next(again)["sequence"].tolist() == seen["next"]
    return {**seen, "stopped": stop()}


def stop() -> int:
    """The step after which all stop, process 1 having been told to."""
    for step in range(1, 1000):
        distributed.gather("as an update does")
        if step == 2 and jax.process_index() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        if distributed.stop_requested(step):
            return step
    return -1


def restore(folder: str | Path) -> dict:
    """The newest checkpoint, under another sharding than any was saved under."""
    distributed.initialize(auto=distributed.VARIABLES[0] in os.environ)
    batches = iterator()
    with Checkpoints(folder, config={"model": {}}) as checkpoints:
        restored = checkpoints.restore(**example(on_mesh((4, 1))), data_iterator=batches)
    sequences = next(batches)["sequence"].tolist()
    return {"step": restored.step, "equal": differing(restored) == [], "next": sequences}


def save_again(folder: str | Path) -> dict:
    """In one process: on from where two were, one step further."""
    seen = restore(folder)
    batches = iterator()
    with Checkpoints(folder, config={"model": {}}) as checkpoints:
        checkpoints.restore(**example(on_mesh((1, 4))), data_iterator=batches)
        checkpoints.save(8, **example(on_mesh((1, 4))), data_iterator=batches)
    return seen


def unshared(own: Path) -> dict:
    """Folders of one name on two machines."""
    if jax.process_index() == 1:
        for step in (1, 2):
            (own / "old" / str(step)).mkdir(parents=True)
    seen = {}
    try:
        Checkpoints(own / "old")
    except CheckpointError as error:
        seen["seen"] = str(error)
    usual, checkpoint.SHARED_SECONDS = checkpoint.SHARED_SECONDS, 0
    try:
        Checkpoints(own / "new").save(1, {"w": np.ones(3)})
    except CheckpointError as error:
        seen["written"] = str(error)
    checkpoint.SHARED_SECONDS = usual
    return seen


if __name__ == "__main__":
    try:
        result = entry.report_errors(lambda: globals()[sys.argv[1]](*sys.argv[2:]))
    except BaseException as error:
        distributed.exit_now(error)
        raise
    print(json.dumps(result), flush=True)
