"""One step of a checkpoint on disk: its items, their checksums, and how damage is noticed.

Everything read here is verified: JSON carries a checksum of itself, and the config item one of
every array. What does not match is a `DamagedError`, which `checkpoint` turns into advice.
"""

import functools
import json
import logging
import os
import re
import sys
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from timemoe_jax import distributed
from timemoe_jax.errors import CheckpointError

FORMAT = 2
READABLE = (1, 2)  # 1 has the CRC-32 of each array, which takes all of its bytes in order
_CHUNK = 1 << 16  # words of an array that the host looks at together: those stay in its cache


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
    """Whether a node holds an array; an optimiser that works on a part leaves the others empty."""
    return isinstance(node, nnx.Variable) and bool(jax.tree.leaves(node))


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


def _scramble(words: Any, positions: Any) -> Any:
    """Mixes 32-bit words with their positions; at one position no two words give the same."""
    mixed = words + positions * np.uint32(0x9E3779B1)
    mixed = (mixed ^ (mixed >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return mixed ^ (mixed >> np.uint32(16))


def sum_on_host(array: Any) -> int:
    """The sum modulo 2**32 of the scrambled words of an array.

    An element of four bytes or fewer is a word, a larger one several. The sum of the parts is the
    sum of the whole, however the array is divided, and one wrong word always changes it.
    """
    flat = np.ascontiguousarray(array).reshape(-1)
    words = flat.view({1: np.uint8, 2: np.uint16}.get(flat.itemsize, np.uint32))
    places = np.arange(min(_CHUNK, words.size), dtype=np.uint32)
    total = 0
    for start in range(0, words.size, _CHUNK):
        part = words[start : start + _CHUNK].astype(np.uint32, copy=False)
        positions = places[: part.size] + np.uint32(start % 2**32)
        total += int(_scramble(part, positions).sum(dtype=np.uint64))
    return total % 2**32


@jax.jit
def sums_on_device(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """`sum_on_host` of each, without moving more than the sums."""

    def one(array: jax.Array) -> jax.Array:
        if array.dtype == jnp.bool_:
            array = array.astype(jnp.uint8)
        kind = {1: jnp.uint8, 2: jnp.uint16}.get(array.dtype.itemsize, jnp.uint32)
        words = jax.lax.bitcast_convert_type(array, kind).astype(jnp.uint32)
        positions, stride = jnp.zeros(words.shape, jnp.uint32), 1
        for axis in reversed(range(words.ndim)):
            along = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
            positions, stride = positions + along * np.uint32(stride), stride * words.shape[axis]
            stride %= 2**32
        return _scramble(words, positions).sum(dtype=jnp.uint32)

    return {name: one(array) for name, array in arrays.items()}


def _is_shared(array: Any) -> bool:
    """Whether other processes hold parts, or copies, of an array."""
    return isinstance(array, jax.Array) and not array.is_fully_addressable


def _sums(flat: Mapping[str, Any]) -> dict[str, set[int]]:
    """The checksum of every array: of each of the copies that this process has, so one if well.

    All processes must call this together where arrays are shared.
    """
    host: dict[str, Any] = {}
    groups: dict[Any, dict[str, jax.Array]] = {}
    for name, array in flat.items():
        devices: set[Any] = array.sharding.device_set if isinstance(array, jax.Array) else set()
        if not _is_shared(array) and all(device.platform == "cpu" for device in devices):
            host[name] = array
        else:  # a compiled function takes arrays of one mesh
            mesh = getattr(array.sharding, "mesh", frozenset(devices))
            groups.setdefault(mesh, {})[name] = array
    with ThreadPoolExecutor() as pool:
        found = dict(zip(host, ({n} for n in pool.map(sum_on_host, host.values())), strict=True))
    for group in groups.values():
        for name, total in sums_on_device(group).items():
            found[name] = {int(np.asarray(copy.data)) for copy in total.addressable_shards}
    return found


def array_records(flat: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The dtype, shape and checksum of every array; all processes must call this together."""
    sums = _sums(flat)
    return {
        name: {"dtype": str(array.dtype), "shape": list(array.shape), "words": min(sums[name])}
        for name, array in flat.items()
    }


def read_meta(folder: Any) -> dict[str, Any]:
    """The config item of a step."""
    meta = _read_checked(folder / "config" / "metadata", "its configuration")
    if meta.get("format") not in READABLE:
        known = " and ".join(map(str, READABLE))
        raise CheckpointError(
            f"{folder} has format {meta.get('format')!r}, but this version reads {known}"
        )
    if str(meta["step"]) != folder.name:
        raise DamagedError(f"it says that it is step {meta['step']}")
    return meta


def read_data(folder: Any, meta: Mapping[str, Any]) -> Any:
    """The state of the data iterator in a step.

    Where another number of processes saved it, what each of them saved must be the same, as it is
    when a state only counts batches: then it is also the state of the processes of this run.
    """
    if not meta["data"]:
        raise CheckpointError(f"{folder} holds no state of a data iterator")
    found = {f.name for f in (folder / "data").glob("process_*")}
    counts = {int(m[1]) for name in found if (m := re.search(r"-of-(\d+)\.json$", name))}
    index, count = distributed.place()
    if len(counts) != 1 or count in counts:
        return _read_state(folder, index, count)
    (count,) = counts
    with ThreadPoolExecutor() as pool:
        states = list(pool.map(lambda i: _read_state(folder, i, count), range(count)))
    if any(state != states[0] for state in states):
        raise CheckpointError(
            f"{folder}: each of {count} processes saved another state of its data iterator, so "
            f"that only {count} can go on from it"
        )
    return states[0]


def _read_state(folder: Any, index: int, count: int) -> Any:
    name = f"process_{index}-of-{count}.json"
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


def restore_tree(
    folder: Any, item: str, meta: Mapping[str, Any], tree: Any, collective: bool = False
) -> Any:
    """An item of a step in the form of `tree`; `collective` where all processes do this."""
    records, wanted = meta["digests"].get(item), flatten(tree)
    if records is None:
        raise CheckpointError(f"{folder} holds no {item}")
    _check_fit(f"{folder} does not fit, {item}", records, wanted)
    shardings = {name: getattr(leaf, "sharding", None) for name, leaf in wanted.items()}
    values = _read_arrays(folder, item, records, shardings, collective)
    for name, leaf in wanted.items():
        if not isinstance(leaf, np.ndarray):
            values[name] = jnp.asarray(values[name])
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
    folder: Any,
    item: str,
    records: Mapping[str, Any],
    shardings: Mapping[str, Any],
    collective: bool = False,
) -> dict[str, Any]:
    """The arrays of an item, their checksums checked; on the host where they have no sharding."""
    if not records:
        return {}
    old = any("words" not in record for record in records.values())
    targets = {}
    for name, record in records.items():
        shape, dtype = tuple(record["shape"]), jnp.dtype(record["dtype"])
        sharding = None if old else shardings.get(name)
        targets[name] = (
            np.empty(shape, dtype)
            if sharding is None
            else jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        )
    # A process that cannot read must say so before the others wait for its part of a sum.
    with distributed.together(DamagedError) if collective else nullcontext():
        if not (folder / item).is_dir():
            raise DamagedError(f"{item} is missing")
        values = _restore_arrays(folder / item, targets)
        if old:
            _check_crc32(item, records, values)
    if old:
        return {name: _place(value, shardings.get(name)) for name, value in values.items()}
    with distributed.together(DamagedError) if collective else nullcontext():
        sums = _sums(values)
        for name, record in records.items():
            if sums[name] != {record["words"]}:
                raise DamagedError(f"{item}: {name} does not match its checksum")
    return values


def _check_crc32(item: str, records: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    with ThreadPoolExecutor() as pool:
        sums = pool.map(lambda name: zlib.crc32(array_bytes(values[name])), records)
        for (name, record), found in zip(records.items(), sums, strict=True):
            if record["crc32"] != found:
                raise DamagedError(f"{item}: {name} does not match its checksum")


def _place(value: np.ndarray, sharding: Any) -> Any:
    """An array that this process has whole, divided as it is wanted."""
    if sharding is None:
        return value
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def _restore_arrays(path: Any, targets: Mapping[str, Any]) -> dict[str, Any]:
    """An Orbax item; raises `DamagedError`, and nothing else is printed, then or later."""
    ocp = import_orbax()
    _silence_late_reads()
    try:
        # On its own: otherwise Orbax waits here for a process that has failed.
        index, _ = distributed.place()
        alone = ocp.options.MultiprocessingOptions(primary_host=index, active_processes={index})
        handler = ocp.StandardCheckpointHandler()
        with ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:
            return reader.restore(path, args=ocp.args.StandardRestore(targets))
    except Exception as error:
        raise DamagedError(f"{path.name} cannot be read ({short(error)})") from None


@functools.cache
def _silence_late_reads() -> None:
    """Keeps quiet about reads of Orbax that end after one of them has failed.

    They report to an event loop that is closed by then, or are collected with their exception at
    any time after, and Python prints a traceback of each. The first failure has been raised.
    """
    hook = sys.unraisablehook

    def report(unraisable: Any) -> None:
        code = getattr(unraisable.object, "cr_code", None)
        of_orbax = code is not None and f"{os.sep}orbax{os.sep}" in code.co_filename
        if not of_orbax and "loop is closed" not in str(unraisable.exc_value):
            hook(unraisable)

    sys.unraisablehook = report
    logging.getLogger("asyncio").addFilter(_is_retrieved)


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
