"""Imports the other library of an adapter, and loads its forecaster."""

import functools
import importlib
import os
from typing import Any

from timemoe_jax.errors import ConfigError, TimeMoeError
from timemoe_jax.forecasting.forecaster import Forecaster


class MissingPackageError(TimeMoeError, ImportError):
    """A library that an adapter is for is not installed."""


# What the extra of each adapter installs. Messages name these and not the extra, since that is
# installed otherwise in a clone than from a registry.
REQUIREMENTS = {
    "fev": ("datasets>=4.8", "fev>=0.10"),
    "gluonts": ("gluonts>=0.17",),
    "sktime": ("sktime>=1.2",),
}


def require(module: str, extra: str) -> Any:
    """Imports a module of another library, or says how to install what an adapter needs."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        packages = " ".join(f"'{package}'" for package in REQUIREMENTS[extra])
        raise MissingPackageError(
            f"timemoe_jax.forecasting.adapters.{extra} needs {module.split('.')[0]}, which cannot "
            f"be imported ({error}); install it with: pip install {packages}"
        ) from error


def forecaster_of(model: Any) -> Any:
    """The Forecaster that is given, or the one that `Forecaster.from_pretrained` loads.

    The last one loaded is kept, and not read again until another is asked for.
    """
    if isinstance(model, str | os.PathLike):
        # A name stays as it is; a path must mean the same in any working directory.
        return _load(os.path.abspath(model) if os.path.exists(model) else os.fspath(model))
    if callable(getattr(model, "forecast", None)):
        return model
    raise ConfigError(
        f"model must be a Forecaster or the path of a checkpoint, but is {model!r:.80}"
    )


@functools.lru_cache(maxsize=1)
def _load(path: str) -> Forecaster:
    return Forecaster.from_pretrained(path)
