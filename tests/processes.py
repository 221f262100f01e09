"""Programs run by tests as users run them: in processes of their own, with emulated devices."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from places import ROOT, TESTS

from timemoe_jax.runtime import distributed


def start_processes(
    args: Sequence[str | os.PathLike], count: int, devices: int
) -> list[subprocess.Popen]:
    """Starts `python args` once for each of several processes of one program.

    Args:
      args: of the interpreter: a program and its arguments. More than one process finds its place
        by `distributed.initialize(auto=True)`, or the flag --distributed=auto.
      count: the processes.
      devices: the emulated CPU devices of each.
    """
    command = [sys.executable, *map(os.fspath, args)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [
        subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)
        for environment in environments(count, devices)
    ]


def run_processes(
    args: Sequence[str | os.PathLike], count: int, devices: int, timeout: float = 100
) -> list[subprocess.CompletedProcess[str]]:
    """What becomes of `start_processes`, with its output; all are killed after `timeout` s."""
    running = start_processes(args, count, devices)
    try:
        with ThreadPoolExecutor(count) as pool:
            outputs = list(pool.map(lambda p: p.communicate(timeout=timeout), running))
    finally:
        for process in running:
            process.kill()
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *output)
        for process, output in zip(running, outputs, strict=True)
    ]


def environments(count: int, devices: int) -> list[dict[str, str]]:
    """Of each process: its devices, and its place if there are several."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = [f for f in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in f]
    common = {
        **{name: value for name, value in os.environ.items() if name not in distributed.VARIABLES},
        "XLA_FLAGS": " ".join([*flags, f"--xla_force_host_platform_device_count={devices}"]),
        # Queued steps of many emulated devices on few cores can wait for one another for ever.
        "JAX_CPU_ENABLE_ASYNC_DISPATCH": "false",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(TESTS)]),
    }
    if count == 1:
        return [common]
    places = ((f"localhost:{port}", str(count), str(index)) for index in range(count))
    return [{**common, **dict(zip(distributed.VARIABLES, p, strict=True))} for p in places]
