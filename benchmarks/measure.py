"""What the speed benchmarks share: timing in turns, the matrix product peak, rows and their table.

A machine's clock, caches and other users make a time alone worth little, so every time is taken
beside a reference's in the same run: both take turns, several rounds, and each one's minimum
counts. Where other programs use the same cores, `--clock cpu` counts the processor's time instead,
of all threads of a process. A row of the JSON has a name, a value and its unit; where there is a
reference, its name and the ratio, the value over that of the reference. MB are 10^6 bytes.
"""

import argparse
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from timemoe_jax.models.base import count_parameters

# The programs of PyTorch, by the flags that say where they run: what `PublishedProcess` is of.
PROGRAMS = {
    "published": Path(__file__).with_name("published.py"),
    "peer": Path(__file__).with_name("peers.py"),
}
ENOUGH_SECONDS = 0.05  # of calls per turn: a short call is made more than once
MOST_CALLS = 20

# By what a call is timed: the wall's time, or what the threads of the process took of the cores.
CLOCKS = {"wall": "perf_counter", "cpu": "process_time"}

Side = Callable[[int], list[float]]  # calls -> the seconds of each


class PublishedError(RuntimeError):
    """The published program could not do what it was asked for."""


class Timing(NamedTuple):
    """What the turns of one side took."""

    best: float  # seconds
    spread: float  # by how much the slowest turn exceeds the best
    rounds: int


class Report:
    """Prints rows as they come, and keeps them.

    Args:
      path: where `write` writes them; None: nowhere.
    """

    def __init__(self, path: Path | None):
        self.path = path
        self.rows: list[dict[str, Any]] = []

    def add(
        self,
        name: str,
        value: float,
        unit: str,
        reference: str | None = None,
        of: float | None = None,
    ) -> None:
        """Keeps a row; `of` is the value of the reference."""
        ratio = value / of if of else None
        row = {"name": name, "value": value, "unit": unit}
        self.rows.append({**row, "reference": reference if of else None, "ratio": ratio})

    def write(self) -> None:
        """Writes the rows, if there is a path."""
        if self.path:
            self.path.write_text(json.dumps(self.rows, indent=2) + "\n", encoding="utf-8")


class PublishedProcess:
    """The published implementation in its own interpreter, see `published.py`; or a peer.

    Args:
      python: the interpreter.
      code: a checkout of the published code.
      program: of PROGRAMS.
      name: what its lines and rows call it.

    Raises:
      PublishedError: it does not run there.
    """

    def __init__(self, python: str, code: str, program: str = "published", name: str = "pytorch"):
        self.name = name
        device = "cuda" if jax.default_backend() == "gpu" else "cpu"
        self._process = subprocess.Popen(
            [python, str(PROGRAMS[program]), code, device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        described = self.ask("describe")
        if not described["usable"]:
            raise PublishedError(f"its PyTorch ({described['text']}) cannot use the GPU")
        self.text: str = described["text"]

    def ask(self, command: str, **fields: Any) -> dict[str, Any]:
        """Sends a command, and waits for the answer."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps({"command": command, **fields}) + "\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise PublishedError(f"the program ended with code {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise PublishedError(answer["error"])
        return answer

    def side(self, work: str, clock: str = "wall") -> Side:
        """What `interleave` takes; a clock of CLOCKS."""
        asked = {"work": work, "clock": CLOCKS[clock]}
        return lambda calls: self.ask("time", calls=calls, **asked)["seconds"]

    def close(self) -> None:
        """Ends the program."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def update_flops(model: Any, batch: int, length: int) -> float:
    """Operations that one update of a model stands for, without any that are done twice.

    6 for each activated parameter and point (2 forward, 4 backward), and for attention's two
    products, over the causal half, 6 L T D per point: L layers, T points, D the hidden size.
    """
    _, active = count_parameters(model)
    attention = model.num_hidden_layers * length * model.hidden_size
    return 6.0 * (active + attention) * batch * length


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that every speed benchmark takes."""
    parser.add_argument("--quick", action="store_true", help="less than a minute; says little")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, help="turns of each side; default 5, 2 if quick")
    add_program_flags(parser, "published", "the published code")


def add_program_flags(parser: argparse.ArgumentParser, program: str, code: str) -> None:
    """The flags that say where a program of PROGRAMS runs; `code` is what it runs, in words."""
    for part, what in (
        ("python", f"an interpreter that runs {code}"),
        ("code", "a checkout of it"),
    ):
        variable = f"TIMEMOE_{program}_{part}".upper()
        default = os.environ.get(variable)
        parser.add_argument(f"--{program}-{part}", default=default, help=f"{what} (${variable})")


def names(text: str) -> list[str]:
    """A flag's comma-separated names."""
    return [name.strip() for name in text.split(",") if name.strip()]


def start_published(
    args: argparse.Namespace, program: str = "published", name: str = "pytorch"
) -> PublishedProcess | None:
    """The other side, or None and a line that says why not; see `PublishedProcess`."""
    python, code = getattr(args, f"{program}_python"), getattr(args, f"{program}_code")
    if not (python and code):
        print(f"{name}: skipped, --{program}-python and --{program}-code are not both given")
        return None
    backend = jax.default_backend()
    if backend not in ("cpu", "gpu") or (backend == "cpu" and args.dtype != "float32"):
        print(f"{name}: skipped, it is not compared in {args.dtype} on {backend}")
        return None
    try:
        published = PublishedProcess(python, code, program, name)
    except (OSError, PublishedError) as error:
        what = "published implementation" if program == "published" else program
        raise SystemExit(f"the {what} does not run: {error}") from None
    print(f"{name}: {published.text}")
    return published


def describe_machine() -> str:
    """Cores, processor, backend, device and version, on a line."""
    device = jax.devices()[0]
    processor = platform.machine()
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.exists():
        lines = cpu_info.read_text(encoding="utf-8").splitlines()
        models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        processor = models[0] if models else processor
    cores = f"{os.cpu_count()} cores of {processor}"
    backend = f"{jax.default_backend()} ({jax.device_count()} x {device.device_kind})"
    return f"{cores}, {backend}, jax {jax.__version__}"


def prepare() -> None:
    """Before anything is computed: what would distort a comparison is turned off."""
    # Both sides need the memory of a GPU, and compile times are those of a first start.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    jax.config.update("jax_enable_compilation_cache", False)


def timed(run: Callable[[], Any], clock: str = "wall") -> Side:
    """The side of something that JAX computes; a clock of CLOCKS."""
    now = getattr(time, CLOCKS[clock])

    def side(calls: int) -> list[float]:
        seconds = []
        for _ in range(calls):
            start = now()
            jax.block_until_ready(run())
            seconds.append(now() - start)
        return seconds

    return side


def interleave(sides: Mapping[str, Side], rounds: int, budget: float = 120) -> dict[str, Timing]:
    """Times all sides in turns.

    Args:
      sides: by name.
      rounds: how many turns each takes, after a first call that does not count.
      budget: seconds after which no further round starts, once there were two.
    """
    start, calls = time.perf_counter(), {}
    turns: dict[str, list[float]] = {name: [] for name in sides}
    for name, side in sides.items():
        first = side(1)[0]
        if first < 1:
            first = side(1)[0]
        calls[name] = min(MOST_CALLS, max(1, int(ENOUGH_SECONDS / first)))
    for done in range(rounds):
        if done >= 2 and time.perf_counter() - start > budget:
            break
        # Back and forth, so that no side always comes after the same other.
        for name in list(sides)[:: 1 if done % 2 == 0 else -1]:
            time.sleep(0.01)  # threads of the side before may still wait for more work
            turns[name].append(min(sides[name](calls[name])))
    return {
        name: Timing(min(each), max(each) / min(each) - 1, len(each))
        for name, each in turns.items()
    }


class MatrixPeak:
    """The machine's peak in a dtype: the best rate of one large matrix product, seen so far.

    Args:
      dtype: of the matrices.
      quick: a smaller product.
      clock: of CLOCKS.
    """

    def __init__(self, dtype: str, quick: bool, clock: str = "wall"):
        size = 512 if quick else 2048 if jax.default_backend() == "cpu" else 8192
        self.flops = 2 * size**3
        self.rate = 0.0  # per second
        matrix = jnp.ones((size, size), dtype)
        product = jax.jit(jnp.matmul).lower(matrix, matrix).compile()
        self.side = timed(lambda: product(matrix, matrix), clock)
        self.see(interleave({"peak": self.side}, rounds=2)["peak"])

    def see(self, timing: Timing) -> None:
        """Takes note of what the side took."""
        self.rate = max(self.rate, self.flops / timing.best)


def temporaries(compiled: Any) -> int:
    """Bytes a compiled function needs beside its arguments and results."""
    return int(compiled.memory_analysis().temp_size_in_bytes)


def device_memory() -> int:
    """Bytes there are: of the device, or of the machine where the device is its processor."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
