"""The configs that come along: found by name, in a clone and in an installed package.

In a clone they lie in `configs/` beside the package, in a wheel in `timemoe_jax/configs`. They
import one another as `configs`, which has to be found from any folder.
"""

import difflib
import importlib
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

from timemoe_jax.errors import ConfigError

_PACKAGE = Path(__file__).parents[1]
FOLDER = next(
    (f for f in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if (f / "smoke.py").is_file()),
    _PACKAGE / "configs",
)


class ConfigFileError(ConfigError, FileNotFoundError):
    """There is no config of a name."""


def config_names() -> list[str]:
    """The configs that come along, without `.py`."""
    return sorted(path.stem for path in FOLDER.glob("*.py"))


def find_config(name: str) -> Path:
    """The file of a config: a path, or the name of one that comes along.

    A file of the caller's goes first; `smoke`, `smoke.py` and `configs/smoke.py` are names.

    Raises:
      ConfigFileError: there is no such file and no such name.
    """
    path = Path(name)
    if path.is_file():
        return path
    parts = path.with_suffix("").parts if path.suffix == ".py" else path.parts
    known = config_names()
    if parts in {(stem,) for stem in known} | {("configs", stem) for stem in known}:
        return FOLDER / f"{parts[-1]}.py"
    close = difflib.get_close_matches(parts[-1] if parts else "", known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise ConfigFileError(
        f"--config {name!r} is no file, and no config that comes along; {hint}"
        f"those are {', '.join(known)}"
    )


def load_config(name: str, *arguments: str) -> Any:
    """The `ConfigDict` that `get_config` of a file returns, which is found as by `find_config`."""
    path = find_config(name)
    make_importable()
    spec = importlib.util.spec_from_file_location(f"_config_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"{path} is no config: it has no function get_config()")
    return module.get_config(*arguments)


def make_importable() -> None:
    """Lets configs import those that come along as `configs.NAME`, after the caller's own."""
    try:
        package: Any = importlib.import_module("configs")
    except ModuleNotFoundError:
        package = sys.modules["configs"] = types.ModuleType("configs")
        package.__path__ = []
    if str(FOLDER) not in [*package.__path__]:
        package.__path__.append(str(FOLDER))
