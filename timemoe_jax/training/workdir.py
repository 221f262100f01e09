"""The folder of a run: one run at a time, errors of the disk in one line, and what comes after."""

import os
import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from timemoe_jax.data.corpus.staging import claimed
from timemoe_jax.errors import TimeMoeError
from timemoe_jax.runtime import distributed

LOCK = "run.lock"  # stays behind, and is held while a run writes


class WorkdirError(TimeMoeError, OSError):
    """A run cannot have its folder: another one writes there, or the disk takes nothing more."""


@contextmanager
def claimed_workdir(workdir: Path) -> Iterator[None]:
    """Makes the folder of a run, and keeps it from every other run until the block ends.

    Process 0 claims it for all processes of a run. The system frees it when that process ends,
    however that ends.

    Raises:
      WorkdirError: another run is writing there, or the folder cannot be made; in every process.
    """
    with ExitStack() as held:
        with distributed.fail_together(WorkdirError):
            if distributed.is_primary():
                with writing(workdir):
                    is_ours = held.enter_context(claimed(workdir, LOCK))
                if not is_ours:
                    raise WorkdirError(
                        f"workdir {workdir} is in use: another training writes there; wait until "
                        "it ends, stop it, or give another workdir"
                    )
        yield


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Makes an error of the file system a `WorkdirError` that names the file."""
    try:
        yield
    except TimeMoeError:
        raise
    except OSError as error:
        where = error.filename or path
        raise WorkdirError(f"{where} cannot be written: {error.strerror or error}") from error


def what_next(workdir: Path) -> str:
    """Says where the model of a run is, and the command that forecasts with it."""
    name = shlex.quote(os.fspath(workdir))
    return f"the model is in {workdir}; use it: timemoe forecast FILE --checkpoint {name}"
