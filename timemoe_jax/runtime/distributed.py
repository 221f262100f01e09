"""Several processes as one program: how they start, and how they agree.

JAX runs the same program in one process on each host (or on each accelerator). If something happens
in one process alone, the others wait for it. So a failure that only some of them may meet, such as
a file that cannot be read, must become a failure of all.
"""

import os
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np

from timemoe_jax.errors import TimeMoeError

FLAGS = (
    ("distributed", "auto: one of several processes, as the cluster or JAX_* variables say."),
    ("coordinator", "One of several processes: host:port of process 0, the same for all."),
    ("num_processes", "One of several processes: how many there are, the same for all."),
    ("process_id", "One of several processes: the number of this one, from 0."),
)
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
TIMEOUT_SECONDS = 300
LONGEST_TEXT = 1024  # bytes of what one process tells the others


class DistributedError(TimeMoeError, RuntimeError):
    """The arguments of the processes are wrong, or the processes do not find one another."""


def start(
    distributed: str | None = None,
    coordinator: str | None = None,
    num_processes: str | None = None,
    process_id: str | None = None,
) -> None:
    """Calls `initialize` with the texts of a program's `FLAGS`; prints how many processes run."""
    if distributed not in (None, "auto"):
        raise DistributedError(f"--distributed is {distributed!r}; its one value is auto")
    initialize(
        coordinator,
        _whole("--num_processes", num_processes),
        _whole("--process_id", process_id),
        auto=distributed == "auto",
    )
    if is_distributed() and is_primary():
        print(f"{jax.process_count()} processes, {jax.device_count()} devices", flush=True)


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    auto: bool = False,
    timeout_seconds: int = TIMEOUT_SECONDS,
) -> None:
    """Joins this process to the others of its run, before any use of a device.

    Without arguments, or for one process, it does nothing. With `auto`, missing arguments come from
    the variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, else from the
    cluster, as JAX detects it: SLURM, Open MPI, Kubernetes, TPU pods. It is an error if there is no
    cluster either: hosts that each take themselves for the only one would spoil the folder that
    they share.

    Args:
      coordinator: host:port of process 0, which listens there.
      num_processes: how many there are.
      process_id: the index of this process, from 0.
      auto: whether to detect the arguments that are missing.
      timeout_seconds: how long to wait for the others.

    Raises:
      DistributedError: only some of the three are given, a value is out of its range, a device is
        in use, or the processes do not find one another.
    """
    if auto:
        address, count, number = (os.environ.get(name) or None for name in VARIABLES)
        coordinator = coordinator or address
        if num_processes is None:
            num_processes = _whole(VARIABLES[1], count)
        if process_id is None:
            process_id = _whole(VARIABLES[2], number)
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given) and not auto:
        return
    _check(given, [] if auto else missing)
    if num_processes == 1 and not missing:
        return
    if jax.distributed.is_initialized():
        raise DistributedError("the processes of this run have been started already")
    if coordinator and process_id:
        _wait_for(coordinator, timeout_seconds)
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            # Detection would leave one device visible under SLURM, so it is off if nothing is
            # missing.
            cluster_detection_method=None if missing else "deactivate",
            initialization_timeout=timeout_seconds,
        )
    except Exception as error:
        raise DistributedError(_explain(error, coordinator, missing)) from error


def is_primary() -> bool:
    """Whether this process prints and writes for all; asks no device if none were started."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def is_distributed() -> bool:
    """Whether this is one of several processes; asks no device if none were started."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def process_index_and_count() -> tuple[int, int]:
    """The index of this process, and how many there are."""
    return (jax.process_index(), jax.process_count()) if is_distributed() else (0, 1)


def gather(text: str) -> list[str]:
    """The texts of all processes, cut to `LONGEST_TEXT` bytes; all must call this together."""
    if not is_distributed():
        return [text]
    from jax.experimental import multihost_utils

    buffer = np.zeros(LONGEST_TEXT, np.uint8)
    content = np.frombuffer(text.encode()[:LONGEST_TEXT], np.uint8)
    buffer[: content.size] = content
    rows = multihost_utils.process_allgather(buffer)
    return [row.tobytes().rstrip(b"\0").decode(errors="ignore") for row in rows]


@contextmanager
def fail_together(kind: type[Exception]) -> Iterator[None]:
    """Makes a failure of one process a failure of all; every process must enter and leave this.

    A process raises its own exception as it was, or `kind` with one line of another's.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    line = "" if failure is None else " ".join(f"{failure or type(failure).__name__}".split())
    lines = gather(line)
    if failure is not None:
        raise failure
    for process, text in enumerate(lines):
        if text:
            raise kind(f"{text} (in process {process})")


def stop_requested(step: int) -> bool:
    """Whether a SIGTERM to any of the processes asks all of them to stop after this many updates.

    Each of several processes must call this after every update; all get the same answer, at a step
    that none has passed. A single process gets False. JAX's own handler of SIGTERM, which
    `initialize` sets, must not be replaced later.
    """
    if not is_distributed():
        return False
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(step)


def exit_now(error: BaseException) -> None:
    """Ends this process at once if it is one of several; does nothing where it is alone.

    An ordinary exit would wait minutes for the others, which wait for this one. Launchers that end
    a job with its first failing process (srun, mpirun, Kubernetes) see the status; under any other,
    JAX ends the others within two minutes. The status is that of a `SystemExit`, which has been
    reported, or 1 for any other error, which is printed.
    """
    if not is_distributed():
        return
    status = 1
    if isinstance(error, SystemExit):
        status = error.code if isinstance(error.code, int) else 1
    else:
        traceback.print_exception(error)
    if is_primary():
        time.sleep(1)  # the others need this process while they print an error that all have
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _whole(name: str, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return int(text)
    except ValueError:
        raise DistributedError(f"{name} is {text!r}; it must be a whole number") from None


def _check(given: dict[str, str | int | None], missing: list[str]) -> None:
    if missing:
        names = " and ".join(f"--{name}" for name in missing)
        are = "is" if len(missing) == 1 else "are"
        raise DistributedError(
            f"{names} {are} missing: --coordinator, --num_processes and --process_id go together; "
            "--distributed=auto asks the cluster"
        )
    address, count, number = given.values()
    if address is not None and not str(address).rpartition(":")[2].isdigit():
        raise DistributedError(f"--coordinator is {address!r}; it must be host:port")
    if count is not None and int(count) < 1:
        raise DistributedError(f"--num_processes is {count}; it must be at least 1")
    if number is not None and not 0 <= int(number) < (int(count) if count else 2**31):
        most = f"to {int(count) - 1}" if count else "up"
        raise DistributedError(f"--process_id is {number}; it must be from 0 {most}")


def _wait_for(coordinator: str, seconds: float) -> None:
    """Waits until process 0 listens; JAX itself would give up by aborting with a stack trace."""
    host, _, port = coordinator.rpartition(":")
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
            return
        except (OSError, OverflowError) as error:
            if time.monotonic() > end:
                raise DistributedError(
                    f"process 0 does not listen at {coordinator} after {seconds:.0f} s: {error}"
                ) from None
        time.sleep(0.2)


def _explain(error: Exception, coordinator: str | None, missing: list[str]) -> str:
    text = " ".join(str(error).split())[:300]
    if missing and isinstance(error, ValueError):
        return (
            "--distributed=auto found no cluster (SLURM, Open MPI, Kubernetes, a TPU pod, or "
            f"{', '.join(VARIABLES)}): {text} Leave it out on a single host"
        )
    if "before any JAX c" in text:
        return "the processes must be started before anything is computed"
    return f"the processes did not find one another at {coordinator or 'the coordinator'}: {text}"
