"""What every adapter needs: the other library, and a forecaster."""

import functools
import importlib
import os
from typing import Any

from timemoe_jax.errors import ConfigError, TimeMoeError
from timemoe_jax.forecasting.forecaster import Forecaster


class MissingPackageError(TimeMoeError, ImportError):
    """A library that an adapter is for is not installed."""


def require(module: str, extra: str) -> Any:
    """Imports a module of another library, or says how to install it.

    Args:
      module: its full name.
      extra: the optional dependencies of this package that bring it along.

    Raises:
      MissingPackageError: it cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingPackageError(
            f"timemoe_jax.forecasting.adapters.{extra} needs {module.split('.')[0]}, which cannot "
            f"be imported ({error}); install it with: pip install 'timemoe_jax[{extra}]'"
        ) from error


def forecaster_of(model: Any) -> Any:
    """The forecaster that a caller means.

    Args:
      model: a Forecaster, or a path or a name that `Forecaster.from_pretrained` takes. The newest
        is kept: until another one is asked for, it is not read again.

    Raises:
      ConfigError: it is neither.
      CheckpointError: there is no checkpoint at the path.
    """
    if isinstance(model, str | os.PathLike):
        # A name stays as it is; a path must mean the same wherever the process goes.
        return _load(os.path.abspath(model) if os.path.exists(model) else os.fspath(model))
    if callable(getattr(model, "forecast", None)):
        return model
    raise ConfigError(
        f"model must be a Forecaster or the path of a checkpoint, but is {model!r:.80}"
    )


@functools.lru_cache(maxsize=1)
def _load(path: str) -> Forecaster:
    return Forecaster.from_pretrained(path)
