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
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from timemoe_jax.checkpoints.checksums import DamagedError, check_crc32, checksum, checksums_of
from timemoe_jax.checkpoints.trees import flatten, json_copy, unflatten
from timemoe_jax.errors import CheckpointError, listed
from timemoe_jax.runtime import distributed

FORMAT = 2
READABLE = (1, 2)  # 1 has the CRC-32 of each array, which takes all of its bytes in order


class FrozenIterator:
    """The state of an iterator at one moment, looking to Grain's handler like an iterator."""

    def __init__(self, iterator: Any):
        state = iterator.get_state()
        text = state.decode() if isinstance(state, bytes) else state
        content = {"is_bytes": isinstance(state, bytes), "state": json_copy(text)}
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
    index, count = distributed.process_index_and_count()
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
        raise DamagedError(f"{what} cannot be read ({one_line(error)})") from None
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
    return unflatten(tree, {name: values[name] for name in wanted})


def _check_fit(where: str, records: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    problems = [f"{name} is missing" for name in wanted if name not in records]
    problems += [f"{name} is unexpected" for name in records if name not in wanted]
    problems += [
        f"{name} is {tuple(records[name]['shape'])}, not {tuple(np.shape(leaf))}"
        for name, leaf in wanted.items()
        if name in records and tuple(records[name]["shape"]) != tuple(np.shape(leaf))
    ]
    if problems:
        raise CheckpointError(f"{where}: {listed(problems, 5, '; ')}")


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
    with distributed.fail_together(DamagedError) if collective else nullcontext():
        if not (folder / item).is_dir():
            raise DamagedError(f"{item} is missing")
        values = _restore_arrays(folder / item, targets)
        if old:
            check_crc32(item, records, values)
    if old:
        return {name: _place(value, shardings.get(name)) for name, value in values.items()}
    with distributed.fail_together(DamagedError) if collective else nullcontext():
        sums = checksums_of(values)
        for name, record in records.items():
            if sums[name] != {record["words"]}:
                raise DamagedError(f"{item}: {name} does not match its checksum")
    return values


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
        index, _ = distributed.process_index_and_count()
        alone = ocp.options.MultiprocessingOptions(primary_host=index, active_processes={index})
        handler = ocp.StandardCheckpointHandler()
        with ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:
            return reader.restore(path, args=ocp.args.StandardRestore(targets))
    except Exception as error:
        raise DamagedError(f"{path.name} cannot be read ({one_line(error)})") from None


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
            f"{folder}: the state of its data iterator does not fit this one: {one_line(error)}"
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


def one_line(error: BaseException, most: int = 160) -> str:
    """The kind of an error and the beginning of what it says, on one line."""
    text = " ".join(str(error).split())
    text = text if len(text) <= most else text[:most] + "..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
