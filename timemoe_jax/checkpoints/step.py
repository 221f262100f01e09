"""One step of a checkpoint on disk: its items, their checksums, and how damage is noticed.

Everything read here is verified: JSON carries a checksum of itself, and the config item one of
every array. A mismatch is a `DamagedError`, which `damage_report` turns into advice.
"""

import errno
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

from timemoe_jax.checkpoints.checksums import DamagedError, checksum, checksums_of
from timemoe_jax.checkpoints.trees import flatten, json_copy, misfits, shapes_of, unflatten
from timemoe_jax.errors import CheckpointError, listed
from timemoe_jax.runtime import distributed

FORMAT = 2


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
    """Imports Orbax, late, since inference from published weights does without it."""
    import orbax.checkpoint

    logger = logging.getLogger("absl")
    if _is_not_chatter not in logger.filters:
        logger.addFilter(_is_not_chatter)
    _silence_late_work()
    return orbax.checkpoint


def _is_not_chatter(record: logging.LogRecord) -> bool:
    """Drops the log of every step that Orbax takes, and of exceptions, which it raises, too."""
    said = record.levelno >= logging.ERROR and not record.exc_info
    return said or f"{os.sep}orbax{os.sep}" not in record.pathname


def as_path(path: str | os.PathLike[str]) -> Any:
    """A local path made absolute, or one of a bucket, which `pathlib` would mangle."""
    if "://" not in os.fspath(path):
        return Path(path).expanduser().absolute()
    from etils import epath  # type: ignore[import-untyped]

    try:
        return epath.Path(path)
    except (KeyError, ImportError) as error:
        raise CheckpointError(f"{path} cannot be opened ({error}); give a local path") from None


def new_folder(path: str | os.PathLike[str]) -> Any:
    """The path of a folder to write; refuses one that holds something."""
    folder = as_path(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists and is not an empty folder; nothing was written")
    return folder


def read_json(file: Any, data: bytes | None = None) -> dict[str, Any]:
    """The JSON object in a file, of which `data` are the bytes if they have been read already."""
    try:
        value = json.loads(file.read_bytes() if data is None else data)
    except FileNotFoundError:
        raise CheckpointError(f"{file} does not exist") from None
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{file} is not readable JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} must hold a JSON object, but holds a {type(value).__name__}")
    return value


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
    if meta.get("format") != FORMAT:
        old = "; `timemoe convert` of commit ffdbe94 rewrites it" if meta.get("format") == 1 else ""
        raise CheckpointError(
            f"{folder} has format {meta.get('format')!r}, but this version reads {FORMAT}{old}"
        )
    if str(meta["step"]) != folder.name:
        raise DamagedError(f"it says that it is step {meta['step']}")
    return meta


def read_data(folder: Any, meta: Mapping[str, Any]) -> Any:
    """Reads the state of the data iterator.

    If another number of processes saved it, all of their states must be the same, as they are when
    a state only counts batches: then that is also the state of the processes of this run.
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
    """Reads an item of a step in the form of `tree`; `collective` where all processes do this."""
    records, wanted = meta["digests"].get(item), flatten(tree)
    if records is None:
        raise CheckpointError(f"{folder} holds no {item}")
    held = {name: tuple(record["shape"]) for name, record in records.items()}
    if problems := misfits(held, shapes_of(wanted)):
        raise CheckpointError(f"{folder} does not fit, {item}: {listed(problems, 5, '; ')}")
    shardings = {name: getattr(leaf, "sharding", None) for name, leaf in wanted.items()}
    values = _read_arrays(folder, item, records, shardings, collective)
    for name, leaf in wanted.items():
        if not isinstance(leaf, np.ndarray):
            values[name] = jnp.asarray(values[name])
    return unflatten(tree, {name: values[name] for name in wanted})


def _read_arrays(
    folder: Any,
    item: str,
    records: Mapping[str, Any],
    shardings: Mapping[str, Any],
    collective: bool = False,
) -> dict[str, Any]:
    """Reads the arrays of an item and checks them; those without a sharding stay on the host."""
    if not records:
        return {}
    targets = {}
    for name, record in records.items():
        shape, dtype = tuple(record["shape"]), jnp.dtype(record["dtype"])
        sharding = shardings.get(name)
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
    with distributed.fail_together(DamagedError) if collective else nullcontext():
        sums = checksums_of(values)
        for name, record in records.items():
            if sums[name] != {record["words"]}:
                raise DamagedError(f"{item}: {name} does not match its checksum")
    return values


def _restore_arrays(path: Any, targets: Mapping[str, Any]) -> dict[str, Any]:
    """Reads an Orbax item; a failure is a `DamagedError` and prints nothing, then or later."""
    ocp = import_orbax()
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
def _silence_late_work() -> None:
    """Keeps quiet about reads and writes by Orbax that end after one has failed and been reported.

    They report to an event loop that is closed by then, or are collected with their exception at
    any later time; Python would print a traceback of each.
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
    """Says in one line what is wrong with a step, and from where to go on."""
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


def is_full_disk(error: BaseException) -> bool:
    """Whether an error, or one that it follows from, says that the disk or a quota is full."""
    full = (errno.ENOSPC, errno.EDQUOT)
    numbers = {str(number) for number in full}
    while True:
        said = re.search(r"os_error_code='(\d+)'", str(error))  # of TensorStore
        if getattr(error, "errno", None) in full or (said and said[1] in numbers):
            return True
        following = error.__cause__ or error.__context__
        if following is None:
            return False
        error = following


def one_line(error: BaseException, most: int = 160) -> str:
    """The kind of an error and the beginning of what it says, on one line."""
    text = " ".join(str(error).split())
    text = text if len(text) <= most else text[:most] + "..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
