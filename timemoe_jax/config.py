"""The one place where an `ml_collections` config becomes typed, and every value is checked.

`configs/*.py` return plain `ConfigDict`s, in which the command line can override any field. They
start from the defaults of the frozen dataclasses (`as_config_dict`), and the first line of a run
turns them into these (`from_mapping`); everything behind that line sees only dataclasses. Model
fields are named as in the published `config.json`, which therefore maps one to one.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from timemoe_jax.errors import ConfigError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

DTYPES = ("float32", "bfloat16")
NORMALIZATIONS = ("none", "instance")


def as_config_dict(cls: type[Any]) -> "ConfigDict":
    """The defaults of a configuration class as a locked `ConfigDict`, for `configs/*.py`.

    Every field is there with its type, so that the command line can override it. A field that is
    itself a configuration becomes a section with the defaults of its class. A field of text tuples
    becomes one text with commas, which a path on the command line needs; an optional field, and one
    without a default, becomes a placeholder of its type.
    """
    from ml_collections import ConfigDict, FieldReference

    cls = _class_of(cls, {}, "config")
    config, hints = ConfigDict(), typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint, default = hints[field.name], field.default
        if dataclasses.is_dataclass(hint):
            config[field.name] = as_config_dict(typing.cast(type, hint))
        elif isinstance(default, tuple) and typing.get_args(hint)[0] is str:
            config[field.name] = ",".join(default)
        elif default is None or default is dataclasses.MISSING:
            item = typing.get_args(hint)[0] if typing.get_args(hint) else hint
            config[field.name] = FieldReference(None, field_type=item)
        else:
            config[field.name] = default
    return config.lock()


def from_mapping(cls: type[Any], mapping: Mapping[str, Any], where: str = "config") -> Any:
    """Builds a frozen configuration from nested mappings, checking every name, type and value.

    The mapping is a `ConfigDict` or a plain dictionary, called `where` in an error.

    Raises:
      ConfigError: a field is unknown, missing or of the wrong type, or a value is impossible.
    """
    if not isinstance(mapping, Mapping) and not hasattr(mapping, "items"):
        raise ConfigError(f"{where} must be a mapping of fields, but is {mapping!r}")
    cls = _class_of(cls, mapping, where)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for name, value in mapping.items():
        if name in getattr(cls, "RENAMED", {}):
            raise ConfigError(f"{where} has no field {name!r}: it is now {cls.RENAMED[name]!r}")
        if name not in fields:
            close = difflib.get_close_matches(name, fields, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(fields)}"
            raise ConfigError(f"{where} has no field {name!r}; {hint}")
        values[name] = _typed(hints[name], value, f"{where}.{name}")
    for name, field in fields.items():
        required = field.default is field.default_factory is dataclasses.MISSING
        if name not in values and required:
            raise ConfigError(f"{where} lacks the field {name!r}")
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _class_of(cls: type[Any], mapping: Any, where: str) -> type[Any]:
    """The class of a section: that of a model's family depends on what the section holds."""
    return cls.class_of(mapping, where) if hasattr(cls, "class_of") else cls


def _typed(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type `hint`, where that loses nothing."""
    if dataclasses.is_dataclass(hint):
        return from_mapping(typing.cast(type, hint), value, where)
    if typing.get_origin(hint) is types.UnionType:
        return None if value is None else _typed(typing.get_args(hint)[0], value, where)
    if typing.get_origin(hint) is tuple:
        return _typed_tuple(typing.get_args(hint)[0], value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not hint:
        raise ConfigError(f"{where} must be of type {hint.__name__}, but is {value!r}")
    if hint is float and not math.isfinite(value):
        raise ConfigError(f"{where} must be finite, but is {value!r}")
    return value


def _typed_tuple(item: type, value: Any, where: str) -> tuple[Any, ...]:
    """A tuple of `item` from a sequence or, as on a command line, a comma-separated string."""
    if isinstance(value, str):
        parts: list[Any] = [part.strip() for part in value.split(",") if part.strip()]
        try:
            parts = [item(part) for part in parts]
        except ValueError:
            raise ConfigError(
                f"{where} must be {item.__name__} values separated by commas, but is {value!r}"
            ) from None
    elif isinstance(value, Sequence):
        parts = list(value)
    else:
        raise ConfigError(f"{where} must be a sequence, but is {value!r}")
    return tuple(_typed(item, part, f"{where}[{i}]") for i, part in enumerate(parts))


def require(condition: bool, message: str) -> None:
    """Raises a ConfigError with a message unless a condition holds."""
    if not condition:
        raise ConfigError(message)


def require_positive(config: Any, *names: str) -> None:
    """Refuses fields that are not above 0."""
    for name in names:
        value = getattr(config, name)
        require(value > 0, f"{name} must be positive, but is {value}")


def require_not_negative(config: Any, *names: str) -> None:
    """Refuses fields below 0."""
    for name in names:
        value = getattr(config, name)
        require(value >= 0, f"{name} must not be negative, but is {value}")


def require_choice(config: Any, name: str, choices: Sequence[str]) -> None:
    """Refuses a field that holds none of the choices."""
    value = getattr(config, name)
    require(value in choices, f"{name} must be one of {', '.join(choices)}, but is {value!r}")
