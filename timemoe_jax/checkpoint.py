"""Checkpoints: the state of a run, the weights of a model, and one loader for every entry point.

A step of a run is a folder `<step>/` that is renamed into place once complete, so that a killed
run leaves either a whole checkpoint or none. It holds the items

    params, opt_state    Orbax arrays, a flat dictionary {"blocks.attention.key.bias": array}
    data                 the state of the data iterator, one JSON file per process
    config               JSON: format, step, the full configuration, and a checksum per array

Everything carries a checksum of its own, because storage formats notice truncation but not every
flipped bit, and a resumed run must never go on from wrong numbers. The checksum of an array is the
same however it is divided over devices and processes.

Of several processes each makes its own `Checkpoints` of the same folder, which they share, and all
of them save, restore, wait and close together. An array that is a process's own counts as the same
in all. What one process cannot read or write is an error in every one.
"""

import dataclasses
import hashlib
import os
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from flax import nnx

from timemoe_jax import bundled, distributed
from timemoe_jax.bundled.bundle import is_bundle, read_bundle
from timemoe_jax.checkpoint_items import (
    FORMAT,
    DamagedError,
    FrozenIterator,
    array_bytes,
    array_records,
    as_path,
    checksum,
    damage_report,
    flatten,
    import_orbax,
    is_step_name,
    list_steps,
    plain,
    read_data,
    read_meta,
    restore_tree,
    set_state,
    short,
)
from timemoe_jax.config import ModelConfig, from_mapping
from timemoe_jax.errors import CheckpointError, ConfigError
from timemoe_jax.hf_conversion import is_published, read_published, write_published
from timemoe_jax.models.time_moe import abstract_model

CHECKPOINTS = "checkpoints"  # the folder in a run's folder
SHARED_SECONDS = 60  # after which a file that another process has written must have appeared
ACCEPTED = (
    "a published folder (config.json and safetensors), a run's folder, its checkpoints folder, "
    "the folder of one step, or the name of a bundled model"
)


class Restored(NamedTuple):
    """What a run goes on from."""

    step: int
    params: nnx.State
    opt_state: Any  # None if not asked for
    extra: dict[str, int]


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """The weights of a model, in the dtype they are stored in, and where they come from."""

    config: ModelConfig
    params: nnx.State
    source: str  # the folder that was read
    digest: str  # SHA-256 of the names, dtypes, shapes and bytes of all parameters
    published_config: dict[str, Any] | None  # the published config.json, if it began as one
    step: int | None  # None for published and bundled weights


class Checkpoints:
    """The checkpoints of a run.

    Args:
      folder: holds one folder per step; made by the first save.
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
        self._config = plain(config or {})
        self._published_config = None if published_config is None else plain(published_config)
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
        """The configuration that the newest checkpoint was saved under.

        Raises:
          CheckpointError: there is no checkpoint, or the newest is damaged.
        """
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
        an earlier run or damaged, is replaced.

        Args:
          step: how many updates have been made.
          params: the parameters.
          opt_state: any tree of arrays, as optax makes them.
          data_iterator: with `get_state()`, as Grain's.
          extra: numbers to get back from `restore`.

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
        """Restores a checkpoint bit by bit, after checking every checksum.

        Args:
          step: which; None for the newest.
          params: arrays or `jax.ShapeDtypeStruct`s of the parameters; where they have a sharding,
            arrays come back with it. The dtypes are those saved.
          opt_state: likewise; None leaves it unread.
          data_iterator: set to its state at the time of the save; None leaves it unread.

        Raises:
          CheckpointError: there is no such checkpoint, it is damaged (the message says where the
            newest good one is), or it is of a model or an optimiser of another shape.
        """
        self.wait()
        step = self._choose(step)
        folder = self.folder / str(step)
        try:
            with distributed.together(DamagedError):
                meta = read_meta(folder)
                state = None if data_iterator is None else read_data(folder, meta)
            restored = restore_tree(folder, "params", meta, params, collective=True)
            optimiser = None
            if opt_state is not None:
                optimiser = restore_tree(folder, "opt_state", meta, opt_state, collective=True)
        except DamagedError as error:
            raise damage_report(self.folder, step, error) from None
        if data_iterator is not None:
            set_state(data_iterator, state, folder)
        self._known.add(step)
        return Restored(step, restored, optimiser, meta["extra"])

    def wait(self) -> None:
        """Waits until what was saved is on disk.

        Raises:
          CheckpointError: it could not be written.
        """
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
            raise CheckpointError(
                f"{self.folder}: {which} could not be written: {short(error)}"
            ) from error


def load_model(path: str | os.PathLike[str]) -> LoadedModel:
    """Loads the weights of a model from any folder that holds some, or by its name.

    Args:
      path: a published folder, a run's folder, its checkpoints folder, or one step of it; of
        several steps the newest is taken. Or one of `bundled.NAMES`; where something of that name
        is in the working directory, that is taken, and the log says so.

    Raises:
      CheckpointError: there is nothing of the kind, it is damaged, or its weights do not fit its
        configuration.
    """
    place = _named(path)
    if not place.exists():
        raise CheckpointError(f"{place} does not exist; give {ACCEPTED}; {bundled.available()}")
    if not place.is_dir():
        raise CheckpointError(f"{place} is a file; give {ACCEPTED}")
    if is_published(place):
        config, params, published, unknown = read_published(place)
        if unknown:
            names = ", ".join(unknown)
            warnings.warn(f"{place}/config.json: not understood, ignored: {names}", stacklevel=2)
        return LoadedModel(config, params, str(place), weights_digest(params), published, None)
    if is_bundle(place):
        config, params = read_bundle(place)
        return LoadedModel(config, params, str(place), weights_digest(params), None, None)
    folder, step = _locate(place)
    source = folder / str(step)
    try:
        meta = read_meta(source)
        config = _model_config(source, meta)
        params = restore_tree(source, "params", meta, abstract_model(config)[1])
    except DamagedError as error:
        raise damage_report(folder, step, error) from None
    digest = weights_digest(params)
    return LoadedModel(config, params, str(source), digest, meta["published_config"], step)


def save_model(
    folder: str | os.PathLike[str],
    config: ModelConfig,
    params: nnx.State,
    published_config: Mapping[str, Any] | None = None,
) -> None:
    """Writes the weights of a model as step 0 of a checkpoints folder.

    Args:
      folder: made if needed; one that already holds a model is refused.
      config: of the model.
      params: its parameters; each keeps its dtype.
      published_config: the published `config.json` to keep with them.

    Raises:
      CheckpointError: the folder already holds a model, or cannot be written.
    """
    place = as_path(folder)
    if list_steps(place) or is_published(place) or is_bundle(place):
        raise CheckpointError(f"{place} already holds a model; give another folder")
    full = {"model": dataclasses.asdict(config)}
    with Checkpoints(place, None, full, published_config) as checkpoints:
        checkpoints.save(0, params)


def convert(
    source: str | os.PathLike[str], dest: str | os.PathLike[str], to_safetensors: bool = False
) -> str:
    """Rewrites the weights of a model in another format, bit by bit.

    Args:
      source: anything that `load_model` reads.
      dest: a folder that does not exist or is empty.
      to_safetensors: write a published folder; otherwise a checkpoint of this library.

    Returns:
      one line that says what was written.

    Raises:
      CheckpointError: `source` cannot be loaded, or `dest` holds something.
    """
    place = as_path(dest)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise CheckpointError(f"{place} exists and is not an empty folder; nothing was written")
    model = load_model(source)
    if to_safetensors:
        write_published(place, model.config, model.params, model.published_config)
    else:
        save_model(place, model.config, model.params, model.published_config)
    leaves = jax.tree.leaves(model.params)
    count, dtypes = sum(p.size for p in leaves), sorted({str(p.dtype) for p in leaves})
    kind = "safetensors" if to_safetensors else "checkpoint"
    return f"{model.source} -> {place}: {kind}, {count:,} parameters, {', '.join(dtypes)}"


def weights_digest(params: nnx.State) -> str:
    """The identity of a set of weights: SHA-256 over names, dtypes, shapes and bytes, by name."""
    digest = hashlib.sha256()
    for name, array in sorted(flatten(params).items()):
        digest.update(f"{name}:{array.dtype}:{list(array.shape)}\n".encode())
        digest.update(array_bytes(array))
    return digest.hexdigest()


def _common(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Of several processes, arrays of one of them on the host: process 0 writes its own."""
    if not distributed.several():
        return dict(flat)
    own = {n: a for n, a in flat.items() if isinstance(a, jax.Array) and a.is_fully_addressable}
    return {**flat, **{name: np.asarray(array) for name, array in own.items()}}


def _check_shared(folder: Any) -> None:
    """Makes sure that all processes see what process 0 writes in a folder, and makes it."""
    if not distributed.several():
        return
    name = distributed.gather(f".shared-{uuid.uuid4().hex}")[0]
    with distributed.together(CheckpointError):
        if distributed.is_primary():
            try:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / name).write_text("")
            except OSError as error:
                raise CheckpointError(f"{folder} cannot be written: {short(error)}") from error
    try:
        with distributed.together(CheckpointError):
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


def _named(path: str | os.PathLike[str]) -> Any:
    """The path; or the folder of the bundled model of that name, where no such path exists."""
    place = as_path(path)
    name = os.fspath(path)
    if name not in bundled.NAMES:
        return place
    if not place.exists():
        return bundled.find(name)
    logging.warning("reading %s, not the bundled model %s, since that is there", place, name)
    return place


def _locate(place: Any) -> tuple[Any, int]:
    """The checkpoints folder and the step that a folder stands for."""
    if (place / CHECKPOINTS).is_dir():
        place = place / CHECKPOINTS
    elif is_step_name(place.name) and (
        place.parent.name == CHECKPOINTS or any((place / p).is_dir() for p in ("params", "config"))
    ):
        return place.parent, int(place.name)
    if steps := list_steps(place):
        return place, steps[-1]
    names = sorted(f.name for f in place.iterdir())
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    found = f"holds only {', '.join(names[:5])}{more}" if names else "is empty"
    raise CheckpointError(f"{place} {found}, so it is no checkpoint; give {ACCEPTED}")


def _model_config(source: Any, meta: Mapping[str, Any]) -> ModelConfig:
    model = meta["config"].get("model")
    if model is None:
        raise CheckpointError(f"{source}: its configuration describes no model")
    try:
        return from_mapping(ModelConfig, model, "checkpoint config.model")
    except ConfigError as error:
        raise CheckpointError(f"{source}: {error}") from None
