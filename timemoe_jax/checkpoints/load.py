"""One loader for every kind of folder that holds a model."""

import dataclasses
import os
import warnings
from collections.abc import Mapping
from typing import Any

import jax
from absl import logging
from flax import nnx

from timemoe_jax.checkpoints import bundled, hub
from timemoe_jax.checkpoints.adapters import check_base, is_adapter, merge, read_adapter
from timemoe_jax.checkpoints.bundle import is_bundle, read_bundle
from timemoe_jax.checkpoints.checksums import DamagedError, weights_digest
from timemoe_jax.checkpoints.published import is_published, read_published, write_published
from timemoe_jax.checkpoints.step import (
    as_path,
    damage_report,
    is_step_name,
    list_steps,
    new_folder,
    read_meta,
    restore_tree,
)
from timemoe_jax.checkpoints.store import CHECKPOINTS, Checkpoints
from timemoe_jax.config import from_mapping
from timemoe_jax.errors import CheckpointError, ConfigError, listed
from timemoe_jax.models.base import ModelConfig, abstract_model

PICKLED = (".pth", ".pt", ".bin", ".ckpt")
ACCEPTED = (
    "a published folder (config.json and safetensors), a run's folder, its checkpoints folder, "
    "the folder of one step, an adapter's folder, or the name of a bundled model"
)


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """The weights of a model, in the dtype they are stored in, and where they come from."""

    config: ModelConfig
    params: nnx.State
    source: str  # the folder that was read
    digest: str  # SHA-256 of the names, dtypes, shapes and bytes of all parameters
    published_config: dict[str, Any] | None  # the published config.json, if it began as one
    step: int | None  # None for published and bundled weights
    # The section `optimizer` of the run that trained it, where the folder says so.
    optimizer: Mapping[str, Any] | None = None


def load_model(path: str | os.PathLike[str]) -> LoadedModel:
    """Loads the weights of a model from any folder that holds some, or by its name.

    Args:
      path: a published folder, a run's folder, its checkpoints folder, or one step of it; of
        several steps the newest is taken. Or the folder of an adapter, whose model is then loaded,
        too. Or one of `bundled.NAMES`; where something of that name is in the working directory,
        that is taken, and the log says so. Or OWNER/NAME of a model of the Hugging Face hub that
        was fetched before: see `checkpoints.hub`.

    Raises:
      CheckpointError: there is nothing of the kind, it is damaged, or its weights do not fit its
        configuration.
    """
    place = _named(path)
    if not place.exists():
        raise CheckpointError(_absent(os.fspath(path), place))
    if place.suffix in PICKLED:
        raise CheckpointError(_pickled(place))
    if not place.is_dir():
        raise CheckpointError(f"{place} is a file; give {ACCEPTED}")
    if is_adapter(place):
        return _load_adapted(place)
    if is_published(place):
        config, params, published, unknown = read_published(place)
        if unknown:
            names = ", ".join(unknown)
            warnings.warn(f"{place}/config.json: not understood, ignored: {names}", stacklevel=2)
        return LoadedModel(config, params, str(place), weights_digest(params), published, None)
    if is_bundle(place):
        config, params, optimizer = read_bundle(place)
        digest = weights_digest(params)
        return LoadedModel(config, params, str(place), digest, None, None, optimizer)
    folder, step = _locate(place)
    source = folder / str(step)
    try:
        meta = read_meta(source)
        config = _model_config(source, meta)
        params = restore_tree(source, "params", meta, abstract_model(config)[1])
    except DamagedError as error:
        raise damage_report(folder, step, error) from None
    digest, optimizer = weights_digest(params), meta["config"].get("optimizer")
    published = meta["published_config"]
    return LoadedModel(config, params, str(source), digest, published, step, optimizer)


def _load_adapted(place: Any) -> LoadedModel:
    """The model that an adapter belongs to, with the adapter merged into it."""
    adapter = read_adapter(place)
    try:
        base = load_model(adapter.base)
    except CheckpointError as error:
        raise CheckpointError(f"{place} is an adapter of {adapter.base}: {error}") from None
    check_base(adapter, base.digest, adapter.base)
    params = merge(base.params, adapter)
    return dataclasses.replace(
        base, params=params, source=str(place), digest=weights_digest(params), step=None
    )


def save_model(
    folder: str | os.PathLike[str],
    config: ModelConfig,
    params: nnx.State,
    published_config: Mapping[str, Any] | None = None,
) -> None:
    """Writes the weights of a model as step 0 of a checkpoints folder.

    Each parameter keeps its dtype. A `published_config` is the `config.json` to keep with them. A
    folder that already holds a model, or cannot be written, is a `CheckpointError`.
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
    """Rewrites the weights of a model in another format, bit by bit; returns a line about them.

    The source is anything that `load_model` reads, the destination a folder that is new or empty: a
    published one with `to_safetensors`, otherwise a checkpoint of this library.

    Raises:
      CheckpointError: `source` cannot be loaded, or `dest` holds something.
    """
    place = new_folder(dest)
    model = load_model(source)
    if to_safetensors:
        write_published(place, model.config, model.params, model.published_config)
    else:
        save_model(place, model.config, model.params, model.published_config)
    leaves = jax.tree.leaves(model.params)
    count, dtypes = sum(p.size for p in leaves), sorted({str(p.dtype) for p in leaves})
    kind = "safetensors" if to_safetensors else "checkpoint"
    return f"{model.source} -> {place}: {kind}, {count:,} parameters, {', '.join(dtypes)}"


def _named(path: str | os.PathLike[str]) -> Any:
    """The path; or where there is none, the folder of the bundled or fetched model of that name."""
    place = as_path(path)
    name = os.fspath(path)
    if name not in bundled.NAMES:
        found = hub.find(name) if hub.is_name(name) and not place.exists() else None
        return place if found is None else found
    if not place.exists():
        return bundled.find(name)
    logging.warning("reading %s, not the bundled model %s, since that is there", place, name)
    return place


def _pickled(file: Any) -> str:
    """What to do with weights that only unpickling would read."""
    script = (
        "import json, torch; from safetensors.torch import save_file; "
        f"held = torch.load({str(file)!r}, map_location='cpu', weights_only=True); "
        "weights = held.get('model_state_dict', held); "
        "save_file({k.removeprefix('module.'): v.contiguous() for k, v in weights.items()}, "
        "'model.safetensors'); json.dump(held.get('config', {}), open('config.json', 'w'))"
    )
    return (
        f"{file} is a pickle, which may run any code, and is not read here; turn it into "
        "safetensors where PyTorch is installed, which with weights_only=True reads tensors alone, "
        f'and give the folder of the two files: python -c "{script}"'
    )


def _absent(path: str, place: Any) -> str:
    text = f"{place} does not exist; give {ACCEPTED}; {bundled.available()}"
    if hub.is_name(path) and not place.parent.exists():
        text += f"; a model of the Hugging Face hub is fetched by: timemoe download {path}"
    return text


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
    if pickled := [name for name in names if name.endswith(PICKLED)]:
        raise CheckpointError(_pickled(place / pickled[0]))
    held = f"holds only {listed(names, 5)}" if names else "is empty"
    raise CheckpointError(f"{place} {held}, so it is no checkpoint; give {ACCEPTED}")


def _model_config(source: Any, meta: Mapping[str, Any]) -> ModelConfig:
    model = meta["config"].get("model")
    if model is None:
        raise CheckpointError(f"{source}: its configuration describes no model")
    try:
        return from_mapping(ModelConfig, model, "checkpoint config.model")
    except ConfigError as error:
        raise CheckpointError(f"{source}: {error}") from None
