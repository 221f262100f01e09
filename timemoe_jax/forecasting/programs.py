"""Compiled programs of one function, one for each shape; the oldest are dropped beyond a bound."""

import collections
import math
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

import jax

# Each takes some megabytes of memory; few processes forecast at as many shapes.
MOST_PROGRAMS = 32
# The multiplications and additions that a device does while it compiles one program: about a second
# and a half of two cores, some seconds of an accelerator.
PROGRAM_OPERATIONS = {"cpu": 8e10}
PROGRAM_OPERATIONS_ACCELERATOR = 2e13
# For a batch of fewer operations a CPU's program is compiled with less effort: in half of the time.
# The program then takes a tenth longer, which is less than that for ten calls of the largest of
# these, and for hundreds of one series. The sums that the pass rewrites are a tenth of what there
# is to compile, and no faster by it.
SMALL_OPERATIONS = 1e11
LESS_EFFORT = {
    "xla_cpu_use_fusion_emitters": False,
    "xla_backend_optimization_level": 1,
    "xla_disable_hlo_passes": "tree_reduction_rewriter",
}
_unknown: set[str] = set()  # options that this version of XLA has refused: newer ones lack some


class Programs:
    """`function(params, x, mask, *more, horizon)`, compiled for each shape of x and horizon.

    Args:
      function: of arrays [B, ...], but for the horizon, a whole number that its shape depends on.
      operations: of the function, for each point of x.
      most: how many programs are kept; of more, those that were not used for longest are dropped.
    """

    def __init__(
        self, function: Callable[..., Any], operations: float, most: int = MOST_PROGRAMS
    ) -> None:
        self._jitted = jax.jit(function, static_argnames="horizon")
        self._operations = operations
        self._most = most
        self._kept: collections.OrderedDict[Any, Any] = collections.OrderedDict()
        self._lock, self._compiling = threading.Lock(), threading.Lock()

    def __call__(self, params: Any, x: Any, mask: Any, *more: Any, horizon: int) -> Any:
        """The function's result; compiles first where no program for the shapes is kept."""
        key = _key(x, more, horizon)
        with self._lock:
            program = self._kept.get(key)
        if program is None:
            program = self._compiled(key, params, x, mask, *more)
        with self._lock:
            self._kept[key] = self._kept.pop(key, program)  # the newest is the last
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return program(params, x, mask, *more)

    def _compiled(self, key: Any, params: Any, x: Any, mask: Any, *more: Any) -> Any:
        """One thread compiles at a time, so that no program is compiled twice."""
        with self._compiling:
            with self._lock:
                if key in self._kept:
                    return self._kept[key]
            lowered = self._jitted.lower(params, x, mask, *more, horizon=key[-1])
            program = compile_with(lowered, compiler_options(math.prod(x.shape) * self._operations))
            with self._lock:
                self._kept[key] = program
            return program

    def holds(self, x: Any, *more: Any, horizon: int) -> bool:
        """Whether a call would find its program compiled."""
        return _key(x, more, horizon) in self._kept

    def lower(self, params: Any, x: Any, mask: Any, horizon: int) -> Any:
        """As `lower` of a function that JAX compiles: for a look at the program."""
        return self._jitted.lower(params, x, mask, horizon=horizon)

    def _cache_size(self) -> int:
        return len(self._kept)


def _key(x: Any, more: tuple[Any, ...], horizon: int) -> tuple[Any, ...]:
    return (x.shape, str(x.dtype), *(each.shape for each in more), horizon)


def compiler_options(operations: float) -> Mapping[str, Any]:
    """How to compile a program of so many operations; empty is as JAX does by itself.

    Whoever set options in XLA_FLAGS gets those.
    """
    small = operations <= SMALL_OPERATIONS and jax.default_backend() == "cpu"
    flags = os.environ.get("XLA_FLAGS", "")
    return LESS_EFFORT if small and not any(name in flags for name in LESS_EFFORT) else {}


def compile_with(lowered: Any, options: Mapping[str, Any]) -> Any:
    """Compiles with those of some options that this version of XLA knows."""
    while True:
        known = {name: value for name, value in options.items() if name not in _unknown}
        try:
            return lowered.compile(known or None)
        except jax.errors.JaxRuntimeError as error:
            refused = [name for name in known if f"No such compile option: '{name}'" in str(error)]
            if not refused:
                raise
            _unknown.update(refused)


def program_points(operations: float) -> float:
    """The points that take as long to compute as a program takes to compile."""
    backend = jax.default_backend()
    return PROGRAM_OPERATIONS.get(backend, PROGRAM_OPERATIONS_ACCELERATOR) / max(operations, 1.0)
