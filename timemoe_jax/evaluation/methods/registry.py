"""The methods that a benchmark can be asked for, by name or by where they are imported from."""

import difflib
import importlib.util
from collections.abc import Sequence

from timemoe_jax.errors import ConfigError, TimeMoeError, listed
from timemoe_jax.evaluation.methods.base import Method
from timemoe_jax.evaluation.methods.imported import ImportedMethod
from timemoe_jax.evaluation.methods.simple import SIMPLE
from timemoe_jax.evaluation.methods.statistical import CLASSES, StatisticalMethod

_BUILT_IN = {method.name: method for method in SIMPLE}


class MissingMethodError(TimeMoeError, ImportError):
    """A method needs a package that is not installed."""


def method_names() -> list[str]:
    """All names: of the built-in methods, then of those of statsforecast."""
    return [*_BUILT_IN, *CLASSES]


def get_methods(names: str | Sequence[str]) -> tuple[Method, ...]:
    """The methods of some names, in their order, each once.

    Args:
      names: one text with commas, or several texts: names of `method_names`, or import paths
        "module:function" of what `ImportedMethod` takes.

    Raises:
      ConfigError: a name is unknown, or a module cannot be found.
      MissingMethodError: the package of a method is not installed.
    """
    every = names.split(",") if isinstance(names, str) else names
    wanted = dict.fromkeys(name.strip() for name in every if name.strip())
    return tuple(_method(name) for name in wanted)


def _method(name: str) -> Method:
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    if name in CLASSES:
        if importlib.util.find_spec("statsforecast") is None:
            raise MissingMethodError(
                f"the method {name!r} needs statsforecast, which is not installed; install it "
                "with: pip install 'statsforecast>=2.1'"
            )
        return StatisticalMethod(name)
    if ":" in name:
        return ImportedMethod(name).checked()
    close = difflib.get_close_matches(name, method_names(), n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ConfigError(
        f"there is no method {name!r}; {hint}there are {listed(method_names(), 20)}, and any "
        "module:function that gives a predictor of GluonTS or fev"
    )
