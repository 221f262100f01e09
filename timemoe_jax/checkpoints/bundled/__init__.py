"""Models that come with the library, each loaded by its name.

`Forecaster.from_pretrained("mini")` reads the folder `mini` beside this file, as
`checkpoints.bundle` describes it. `timemoe bundle RUN FOLDER` makes such a folder of a run.
"""

import re
from pathlib import Path

from timemoe_jax.errors import CheckpointError

FOLDER = Path(__file__).parent
DEFAULT = "mini"  # the model that is used unless another is named
# Benchmark files that no model of a name has seen anything of, and "chaos" where no chaotic system
# was among what it was trained on: its card says how that was found.
_BENCHMARKS = ("ETTh1", "ETTh2", "ETTm1", "ETTm2", "weather")
NEVER_SEEN = {"mini": _BENCHMARKS, "nano": (*_BENCHMARKS, "chaos")}
_NAME = re.compile(r"[a-z][a-z0-9-]*")  # so that no name is a path, and no cache of Python is one


def _names(folder: Path) -> tuple[str, ...]:
    inner = (path for path in folder.iterdir() if path.is_dir())
    return tuple(sorted(path.name for path in inner if _NAME.fullmatch(path.name)))


NAMES = _names(FOLDER)


def find(name: str) -> Path:
    """The folder of the bundled model of this very name; a `CheckpointError` if there is none."""
    if name not in NAMES:
        raise CheckpointError(f"there is no bundled model {name!r}; {available()}")
    return FOLDER / name


def available() -> str:
    """Which models there are, as the end of an error."""
    if not NAMES:
        return "no model came with this installation"
    return f"the bundled ones are {', '.join(NAMES)}"
