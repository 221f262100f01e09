"""One step of a checkpoint on disk: its items, their checksums, and how damage is noticed.

Everything read here is verified: JSON carries a checksum of itself, and the config item one of
every array. What does not match is a `DamagedError`, which `checkpoint` turns into advice.
"""

import json
import logging
import os
import sys
import time
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from timemoe_jax.errors import CheckpointError

FORMAT = 1


class DamagedError(Exception):
    """What is wrong with a step, without saying which."""


class FrozenIterator:
    """The state of an iterator at one moment, looking to Grain's handler like an iterator."""

    def __init__(self, iterator: Any):
        state = iterator.get_state()
        text = state.decode() if isinstance(state, bytes) else state
        content = {"is_bytes": isinstance(state, bytes), "state": plain(text)}
        self._state = json.dumps({**content, "crc32": checksum(content)}).encode()

    def get_state(self) -> bytes:
        """The state at the time of construction."""
        return self._state


def import_orbax() -> Any:
    """Orbax, imported late, as inference from published weights does without it."""
    import orbax.checkpoint

    logger = logging.getLogger("absl")
    if _is_not_chatter not in logger.filters:
        logger.addFilter(_is_not_chatter)
    return orbax.checkpoint


def _is_not_chatter(record: logging.LogRecord) -> bool:
    """Orbax tells of every step it takes; its errors arrive as exceptions."""
    return record.levelno >= logging.ERROR or f"{os.sep}orbax{os.sep}" not in record.pathname


def as_path(path: str | os.PathLike[str]) -> Any:
    """A local path made absolute, or one of a bucket, which `pathlib` would mangle."""
    if "://" not in os.fspath(path):
        return Path(path).expanduser().absolute()
    from etils import epath  # type: ignore[import-untyped]

    return epath.Path(path)


def list_steps(folder: Any) -> list[int]:
    """The steps in a folder. A step being written has another name or, in a bucket, no marker."""
    if not folder.is_dir():
        return []
    found = [f for f in folder.iterdir() if is_step_name(f.name) and f.is_dir()]
    if "://" in str(folder):
        found = [f for f in found if (f / "commit_success.txt").exists()]
    return sorted(int(f.name) for f in found)


def is_step_name(name: str) -> bool:
    """Whether a folder of this name can be a step: a plain number, as it is written."""
    return name.isascii() and name.isdigit() and name == str(int(name))


def _is_variable(node: Any) -> bool:
    return isinstance(node, nnx.Variable)


def flatten(tree: Any) -> dict[str, Any]:
    """{dotted path: array}, the same whatever Flax makes of a variable inside a tree."""
    flat = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_variable)[0]:
        value = leaf.get_value() if _is_variable(leaf) else leaf
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        flat[name] = value if hasattr(value, "dtype") else np.asarray(value)
    return flat


def _unflatten(tree: Any, values: Mapping[str, Any]) -> Any:
    """`tree` with other arrays, given in the order of `flatten`."""
    leaves, structure = jax.tree.flatten(tree, is_leaf=_is_variable)
    new = [
        leaf.replace(value) if _is_variable(leaf) else value
        for leaf, value in zip(leaves, values.values(), strict=True)
    ]
    return jax.tree.unflatten(structure, new)


def plain(value: Any) -> Any:
    """A copy as it will be read back from JSON."""
    return json.loads(json.dumps(value))


def checksum(content: Any) -> int:
    """CRC-32 of a JSON value, whatever the order of its keys."""
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def array_bytes(array: Any) -> Any:
    """The values of an array as unsigned bytes."""
    # bfloat16 has no buffer of its own to hand out, hence the view.
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _crc32(array: Any) -> int | None:
    """The checksum of an array; None where other hosts hold parts of it."""
    if isinstance(array, jax.Array) and not (
        array.is_fully_addressable or array.is_fully_replicated
    ):
        return None
    return zlib.crc32(array_bytes(array))


def array_records(flat: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The dtype, shape and checksum of every array."""
    with ThreadPoolExecutor() as pool:
        checksums = list(pool.map(_crc32, flat.values()))
    return {
        name: {"dtype": str(array.dtype), "shape": list(array.shape), "crc32": checksum}
        for (name, array), checksum in zip(flat.items(), checksums, strict=True)
    }


def read_meta(folder: Any) -> dict[str, Any]:
    """The config item of a step."""
    meta = _read_checked(folder / "config" / "metadata", "its configuration")
    if meta.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder} has format {meta.get('format')!r}, but this version reads {FORMAT}"
        )
    if str(meta["step"]) != folder.name:
        raise DamagedError(f"it says that it is step {meta['step']}")
    return meta


def read_data(folder: Any, meta: Mapping[str, Any]) -> Any:
    """The state of the data iterator in a step."""
    if not meta["data"]:
        raise CheckpointError(f"{folder} holds no state of a data iterator")
    name = f"process_{jax.process_index()}-of-{jax.process_count()}.json"
    others = [f.name for f in (folder / "data").glob("process_*")]
    if others and name not in others and f"-of-{jax.process_count()}." not in others[0]:
        raise CheckpointError(
            f"{folder}: the data iterator was saved by another number of processes, as "
            f"{others[0]}; this run needs {name}"
        )
    content = _read_checked(folder / "data" / name, "the state of its data iterator")
    return content["state"].encode() if content["is_bytes"] else content["state"]


def _read_checked(path: Any, what: str) -> dict[str, Any]:
    """A JSON object that carries its checksum."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DamagedError(f"{what} is missing") from None
    except (OSError, ValueError) as error:
        raise DamagedError(f"{what} cannot be read ({short(error)})") from None
    if not isinstance(content, dict) or content.pop("crc32", None) != checksum(content):
        raise DamagedError(f"{what} does not match its checksum")
    return content


def restore_tree(folder: Any, item: str, meta: Mapping[str, Any], tree: Any) -> Any:
    """An item of a step in the form of `tree`."""
    records, wanted = meta["digests"].get(item), flatten(tree)
    if records is None:
        raise CheckpointError(f"{folder} holds no {item}")
    _check_fit(f"{folder} does not fit, {item}", records, wanted)
    shardings = {name: getattr(leaf, "sharding", None) for name, leaf in wanted.items()}
    values = _read_arrays(folder, item, records, shardings)
    for name, leaf in wanted.items():
        if not isinstance(leaf, np.ndarray):
            values[name] = jax.numpy.asarray(values[name])
    return _unflatten(tree, {name: values[name] for name in wanted})


def _check_fit(where: str, records: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    problems = [f"{name} is missing" for name in wanted if name not in records]
    problems += [f"{name} is unexpected" for name in records if name not in wanted]
    problems += [
        f"{name} is {tuple(records[name]['shape'])}, not {tuple(np.shape(leaf))}"
        for name, leaf in wanted.items()
        if name in records and tuple(records[name]["shape"]) != tuple(np.shape(leaf))
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(f"{where}: {'; '.join(problems[:5])}{more}")


def _read_arrays(
    folder: Any, item: str, records: Mapping[str, Any], shardings: Mapping[str, Any]
) -> dict[str, Any]:
    """The arrays of an item, their checksums checked; on the host where they have no sharding."""
    if not records:
        return {}
    if not (folder / item).is_dir():
        raise DamagedError(f"{item} is missing")
    targets = {}
    for name, record in records.items():
        shape, dtype = tuple(record["shape"]), jax.numpy.dtype(record["dtype"])
        sharding = shardings.get(name)
        targets[name] = (
            np.empty(shape, dtype)
            if sharding is None
            else jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        )
    values = _restore_arrays(folder / item, targets)
    with ThreadPoolExecutor() as pool:
        checksums = dict(zip(values, pool.map(_crc32, values.values()), strict=True))
    for name, record in records.items():
        if None not in (record["crc32"], checksums[name]) and checksums[name] != record["crc32"]:
            raise DamagedError(f"{item}: {name} does not match its checksum")
    return values


def _restore_arrays(path: Any, targets: Mapping[str, Any]) -> dict[str, Any]:
    """An Orbax item; raises `DamagedError`, and nothing else is printed.

    Reads that end after one has failed report to an event loop that is closed by then, and Python
    would print a traceback of each such attempt.
    """
    ocp = import_orbax()
    failure, hook, asyncio_log = "", sys.unraisablehook, logging.getLogger("asyncio")
    sys.unraisablehook = lambda u: None if "loop is closed" in str(u.exc_value) else hook(u)
    asyncio_log.addFilter(_is_retrieved)
    try:
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
            return reader.restore(path, args=ocp.args.StandardRestore(targets))
    except Exception as error:
        failure = short(error)
        time.sleep(0.02)  # for reads still going on
    finally:
        sys.unraisablehook = hook
        asyncio_log.removeFilter(_is_retrieved)
    raise DamagedError(f"{path.name} cannot be read ({failure})")


def _is_retrieved(record: logging.LogRecord) -> bool:
    return "never retrieved" not in record.getMessage()


def set_state(iterator: Any, state: Any, folder: Any) -> None:
    """Sets a data iterator; a state of another kind of iterator is an error that says so."""
    try:
        iterator.set_state(state)
    except Exception as error:
        raise CheckpointError(
            f"{folder}: the state of its data iterator does not fit this one: {short(error)}"
        ) from error


def _is_good(folder: Any) -> bool:
    """Whether everything in a step can be read and matches its checksum."""
    try:
        meta = read_meta(folder)
        for item, records in meta["digests"].items():
            _read_arrays(folder, item, records, {})
        if meta["data"]:
            read_data(folder, meta)
    except (DamagedError, CheckpointError):
        return False
    return True


def damage_report(folder: Any, step: int, damage: DamagedError) -> CheckpointError:
    """One line: what is wrong with a step, and where to go on from."""
    message = f"step {step} in {folder} is damaged: {damage}"
    others = [s for s in reversed(list_steps(folder)) if s != step]
    good = next((s for s in others if _is_good(folder / str(s))), None)
    if good is None:
        return CheckpointError(f"{message}; there is no other good checkpoint")
    message += f"; the newest good checkpoint is step {good}; restore it with step={good}"
    message += f" or load {folder / str(good)}"
    if newer := [str(folder / str(s)) for s in list_steps(folder) if s > good]:
        message += f", or delete {' and '.join(newer)} to resume from it"
    return CheckpointError(message)


def short(error: BaseException, most: int = 160) -> str:
    """The kind of an error and the beginning of what it says, on one line."""
    text = " ".join(str(error).split())
    text = text if len(text) <= most else text[:most] + "..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
