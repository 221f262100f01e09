"""Checkpoints of a run: saved in the background, checked when they are read.

A step of a run is a folder `<step>/` that is renamed into place once complete, so that a killed
run leaves either a whole checkpoint or none. It holds the items

    params, opt_state    Orbax arrays, a flat dictionary {"blocks.attention.key.bias": array}
    data                 the state of the data iterator, one JSON file per process
    config               JSON: format, step, the full configuration, and a checksum per array

Everything carries a checksum of its own, because storage formats notice truncation but not every
flipped bit, and a resumed run must never go on from wrong numbers. The checksum of an array is the
same however it is divided over devices and processes.

With several processes each makes its own `Checkpoints` of one folder, which they share, and all of
them save, restore, wait and close together. Arrays that each process has by itself count as the
same in all. A failure to read or write in one process is an error in every one.
"""

import os
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from timemoe_jax.checkpoints.checksums import DamagedError, array_records, checksum
from timemoe_jax.checkpoints.step import (
    FORMAT,
    FrozenIterator,
    as_path,
    damage_report,
    import_orbax,
    is_full_disk,
    list_steps,
    one_line,
    read_data,
    read_meta,
    restore_tree,
    set_state,
)
from timemoe_jax.checkpoints.trees import flatten, json_copy
from timemoe_jax.errors import CheckpointError
from timemoe_jax.runtime import distributed

CHECKPOINTS = "checkpoints"  # the folder in a run's folder
SHARED_SECONDS = 60  # after which a file that another process has written must have appeared


class Restored(NamedTuple):
    """What a run goes on from."""

    step: int
    params: nnx.State
    opt_state: Any  # None if not asked for
    extra: dict[str, int]


class Checkpoints:
    """The checkpoints of a run, in a folder with one folder per step.

    Args:
      folder: made by the first save.
      keep: how many of the newest to keep; None keeps all.
      config: the full configuration, of JSON-able values; its "model" is a `ModelConfig`.
      published_config: the published `config.json` that the model began as.

    Raises:
      CheckpointError: the folder is a file, or not the same one for every process.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        keep: int | None = 3,
        config: Mapping[str, Any] | None = None,
        published_config: Mapping[str, Any] | None = None,
    ):
        self.folder = as_path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise CheckpointError(f"{self.folder} is a file, so it cannot hold checkpoints")
        seen = distributed.gather(", ".join(map(str, self.steps())))
        for process, steps in enumerate(seen):
            if steps != seen[0]:
                raise CheckpointError(
                    f"{self.folder} is not shared: process 0 sees there {seen[0] or 'no step'}, "
                    f"process {process} {steps or 'no step'}; give a folder that all processes see"
                )
        self._keep = keep
        self._config = json_copy(config or {})
        self._published_config = None if published_config is None else json_copy(published_config)
        self._manager: Any = None
        self._known: set[int] = set()  # steps that this object wrote or read

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def steps(self) -> list[int]:
        """The complete steps, oldest first."""
        return list_steps(self.folder)

    def stored_config(self) -> dict[str, Any]:
        """The configuration that the newest checkpoint was saved under."""
        step = self._choose(None)
        try:
            return read_meta(self.folder / str(step))["config"]
        except DamagedError as error:
            raise damage_report(self.folder, step, error) from None

    def save(
        self,
        step: int,
        params: nnx.State,
        opt_state: Any = None,
        data_iterator: Any = None,
        extra: Mapping[str, int] | None = None,
    ) -> None:
        """Saves the state as it is now, in the background; waits for a save still going on.

        A step that this object saved or restored is left as it is; another one of that number, of
        an earlier run or damaged, is replaced. The optimizer state is any tree of arrays, the data
        iterator has `get_state()` as Grain's do, and `extra` are numbers to get back from
        `restore`.

        Raises:
          CheckpointError: this save, or the one before, could not be written.
        """
        if step in self._known:
            return
        arrays = {"params": _common(flatten(params))}
        if opt_state is not None:
            arrays["opt_state"] = _common(flatten(opt_state))
        items = self._items(step, arrays, data_iterator, extra or {})
        with self._writing(step):
            manager = self._writer()
            manager.wait_until_finished()
            # As process 0 sees it: another may look when it has deleted the step already.
            if distributed.gather("yes" if step in self.steps() else "")[0]:
                manager.delete(step)
            manager.save(step, args=import_orbax().args.Composite(**items), force=True)
        self._known.add(step)

    def restore(
        self,
        step: int | None = None,
        *,
        params: nnx.State,
        opt_state: Any = None,
        data_iterator: Any = None,
    ) -> Restored:
        """Restores a step, by default the newest, bit by bit, after checking every checksum.

        The parameters and the optimizer state are given as arrays or `jax.ShapeDtypeStruct`s; where
        they have a sharding, arrays come back with it, in the dtypes that were saved. A data
        iterator is set to its state at the time of the save. An optimizer state or a data iterator
        of None leaves it unread.

        Raises:
          CheckpointError: there is no such checkpoint, it is damaged (the message says where the
            newest good one is), or it is of a model or an optimizer of another shape.
        """
        self.wait()
        step = self._choose(step)
        folder = self.folder / str(step)
        try:
            with distributed.fail_together(DamagedError):
                meta = read_meta(folder)
                state = None if data_iterator is None else read_data(folder, meta)
            restored = restore_tree(folder, "params", meta, params, collective=True)
            optimizer = None
            if opt_state is not None:
                optimizer = restore_tree(folder, "opt_state", meta, opt_state, collective=True)
        except DamagedError as error:
            raise damage_report(self.folder, step, error) from None
        if data_iterator is not None:
            set_state(data_iterator, state, folder)
        self._known.add(step)
        return Restored(step, restored, optimizer, meta["extra"])

    def wait(self) -> None:
        """Waits until what was saved is on disk; a `CheckpointError` if it could not be written."""
        if self._manager is not None:
            with self._writing(None):
                self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and ends the background threads."""
        try:
            self.wait()
        finally:
            if self._manager is not None:
                manager, self._manager = self._manager, None
                with self._writing(None):
                    manager.close()

    def _items(
        self,
        step: int,
        arrays: Mapping[str, Mapping[str, Any]],
        data_iterator: Any,
        extra: Mapping[str, int],
    ) -> dict[str, Any]:
        """What Orbax is to write; all but the arrays is copied here and now."""
        meta = {
            "format": FORMAT,
            "step": int(step),
            "config": self._config,
            "published_config": self._published_config,
            "digests": {item: array_records(flat) for item, flat in arrays.items()},
            "data": data_iterator is not None,
            "extra": {name: int(value) for name, value in extra.items()},
        }
        args = import_orbax().args
        # Orbax refuses a tree without arrays, which plain gradient descent has as its state.
        items = {item: args.StandardSave(flat) for item, flat in arrays.items() if flat}
        items["config"] = args.JsonSave({**meta, "crc32": checksum(meta)})
        if data_iterator is not None:
            from grain.checkpoint import CheckpointSave

            items["data"] = CheckpointSave(FrozenIterator(data_iterator))
        return items

    def _choose(self, step: int | None) -> int:
        steps = self.steps()
        if not steps:
            raise CheckpointError(f"{self.folder} holds no checkpoint")
        if step is not None and step not in steps:
            held = ", ".join(map(str, steps))
            raise CheckpointError(f"{self.folder} holds no step {step}; it holds {held}")
        return steps[-1] if step is None else step

    def _writer(self) -> Any:
        """The manager, made late: reading must neither create a folder nor tidy one up."""
        if self._manager is None:
            ocp = import_orbax()
            _check_shared(self.folder)
            options = ocp.CheckpointManagerOptions(
                max_to_keep=self._keep,
                cleanup_tmp_directories=True,  # what a killed run left behind
                lightweight_initialize=True,  # does not read, so a damaged step cannot stop it
            )
            self._manager = ocp.CheckpointManager(str(self.folder), options=options)
        return self._manager

    @contextmanager
    def _writing(self, step: int | None) -> Iterator[None]:
        try:
            yield
        except CheckpointError:
            raise
        except Exception as error:
            which = "a checkpoint" if step is None else f"step {step}, or the one before,"
            why = one_line(error)
            if is_full_disk(error):
                newest = self.steps()[-1:]
                whole = f"step {newest[0]} is whole" if newest else "no earlier one is there"
                why = f"the disk is full; {whole}; free some space and run the same command again"
            message = f"{self.folder}: {which} could not be written: {why}"
            raise CheckpointError(message) from error


def _common(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Copies the arrays that each of several processes has by itself to the host.

    Process 0 writes its own.
    """
    if not distributed.is_distributed():
        return dict(flat)
    own = {n: a for n, a in flat.items() if isinstance(a, jax.Array) and a.is_fully_addressable}
    return {**flat, **{name: np.asarray(array) for name, array in own.items()}}


def _check_shared(folder: Any) -> None:
    """Makes sure that all processes see what process 0 writes in a folder, and makes it."""
    if not distributed.is_distributed():
        return
    name = distributed.gather(f".shared-{uuid.uuid4().hex}")[0]
    with distributed.fail_together(CheckpointError):
        if distributed.is_primary():
            try:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / name).write_text("", encoding="utf-8")
            except OSError as error:
                raise CheckpointError(f"{folder} cannot be written: {one_line(error)}") from error
    try:
        with distributed.fail_together(CheckpointError):
            end = time.monotonic() + SHARED_SECONDS
            while not (folder / name).exists():
                if time.monotonic() > end:
                    raise CheckpointError(
                        f"{folder} is not shared: what process 0 writes there is not to be seen; "
                        "give a folder that all processes see"
                    )
                time.sleep(0.2)
    finally:
        if distributed.is_primary():
            (folder / name).unlink()
