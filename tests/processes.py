"""Programs run by tests as users run them: in processes with emulated devices, or in this one."""

import contextlib
import io
import logging
import os
import runpy
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import jax
from absl import app, flags
from places import ROOT, TESTS

from timemoe_jax.runtime import distributed, host_memory


def run_here(*arguments: str | os.PathLike, devices: int = 1) -> subprocess.CompletedProcess[str]:
    """What `python program arguments` does, in this process and on the first of its devices.

    It saves the seconds in which an interpreter starts and imports JAX.
    """
    argv, out, err = [os.fspath(each) for each in arguments], io.StringIO(), io.StringIO()
    status = 0
    with (
        as_before(devices),
        mock.patch.object(sys, "argv", argv),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            runpy.run_path(argv[0], run_name="__main__")
        except SystemExit as end:
            status = end.code or 0
            if isinstance(status, str):
                print(status, file=sys.stderr)
                status = 1
    return subprocess.CompletedProcess(argv, status, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def as_before(devices: int) -> Iterator[None]:
    """Undoes what a program does to its process: flags, warnings, logging and memory."""
    app.define_help_flags()
    first, handlers = jax.devices()[:devices], logging.root.handlers[:]
    own = {"workdir", *(name for name, _ in distributed.FLAGS)}
    with (
        contextlib.chdir(ROOT),
        warnings.catch_warnings(),
        mock.patch.object(host_memory, "keep_freed_memory", return_value=False),
        mock.patch.object(jax, "devices", return_value=first),
    ):
        try:
            yield
        finally:
            logging.root.handlers[:] = handlers
            for name in list(flags.FLAGS):
                if name in own or name.split(".")[0] == "config":
                    delattr(flags.FLAGS, name)


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
