"""Published weights (`config.json` and safetensors) to and from the parameters of a model.

The `PublishedFormat` of a family says what its tensors are called, in both directions. Nothing here
needs PyTorch, and nothing is unpickled.
"""

import itertools
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from timemoe_jax.checkpoints.step import read_json
from timemoe_jax.checkpoints.trees import flatten, in_shards, shapes_of, unflatten
from timemoe_jax.errors import CheckpointError, ConfigError, listed
from timemoe_jax.models.base import (
    ModelConfig,
    PublishedFormat,
    PublishedTensor,
    abstract_model,
    family_of,
    published_family,
)

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_SHARD_BYTES = 5 * 10**9


class Published(NamedTuple):
    """What a published folder holds."""

    config: ModelConfig
    params: nnx.State
    source_config: dict[str, Any]  # config.json as it stands
    unknown_fields: list[str]  # of config.json


def is_published(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder has the two things that make it a published model."""
    path = Path(folder)
    weights = (path / SINGLE_FILE).exists() or (path / INDEX_FILE).exists()
    return weights and (path / "config.json").exists()


def read_published(folder: str | os.PathLike[str]) -> Published:
    """Reads `config.json` and the safetensors of a folder, in the dtype they are stored in.

    Raises:
      CheckpointError: a file is missing or damaged, or tensors are missing, unexpected or of
        another shape than the configuration says; all of them are named.
    """
    path = Path(folder)
    source_config = read_json(path / "config.json")
    form = published_family(source_config).published
    assert form is not None
    try:
        config, unknown = form.read_config(source_config)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from None
    tensors = _Tensors(path, _tensor_files(path))
    expected = _expected_shapes(config)
    _check_names(path, expected, tensors.names - {*form.constants(config)})
    _check_shapes(path, expected, tensors)
    flat = {rule.path: _read(rule, config, tensors) for rule in form.tensors(config)}
    _, params = abstract_model(config)
    values = {name: flat[name] for name in flatten(params)}
    return Published(config, unflatten(params, values), source_config, unknown)


def write_published(
    folder: str | os.PathLike[str],
    config: ModelConfig,
    params: nnx.State,
    source_config: Mapping[str, Any] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> list[Path]:
    """Writes `config.json` and safetensors that the published implementation loads.

    It returns the paths of the files. Each tensor keeps its dtype. A given `source_config` is
    repeated in place of one derived from the config. Weights of more than `max_shard_bytes` are cut
    into files of at most this size, with an index.

    Raises:
      CheckpointError: the folder already holds a model.
      ConfigError: the published implementation does not have such a model.
    """
    path = Path(folder)
    # It refuses a model that is not published also where a source config is repeated.
    derived = _format(config).write_config(config)
    if any((path / name).exists() for name in ("config.json", SINGLE_FILE, INDEX_FILE)):
        raise CheckpointError(f"{path} already holds a model; give another folder")
    if config.default_context:
        warnings.warn(
            f"default_context {config.default_context} is left out: the published implementation "
            "reads all the context that it is given; pass no more than so many points",
            stacklevel=2,
        )
    path.mkdir(parents=True, exist_ok=True)
    tensors = _as_tensors(config, params)
    published = dict(source_config or derived)
    if "model_type" in published:  # else it holds a constructor's arguments, and nothing besides
        published.setdefault("torch_dtype", str(next(iter(tensors.values())).dtype))
    files = _write_shards(path, tensors, max_shard_bytes)
    # Last, since a folder without it is no model: an interrupted write leaves nothing that loads.
    (path / "config.json").write_text(json.dumps(published, indent=2) + "\n", encoding="utf-8")
    return [path / "config.json", *files]


def _format(config: ModelConfig) -> PublishedFormat:
    family = family_of(config)
    if family.published is None:
        raise ConfigError(f"models of the family {family.name!r} have no published format")
    return family.published


def _leading(tensor: PublishedTensor, config: ModelConfig) -> dict[str, Sequence[int]]:
    """The stacked axes of a parameter, and what each is a stack of."""
    sizes = _format(config).axis_sizes(config)
    every = {axis: range(size) for axis, size in sizes.items() if f"{{{axis}}}" in tensor.name}
    return {**every, "expert": tensor.experts} if tensor.experts else {**every}


def _names(rule: PublishedTensor, config: ModelConfig) -> list[tuple[str, ...]]:
    """The tensors a parameter is stacked from, in the order of its leading axes.

    Each is one, or two that are side by side.
    """
    axes = _leading(rule, config)
    indices = [dict(zip(axes, i, strict=True)) for i in itertools.product(*axes.values())]
    both = (rule.name, rule.second) if rule.second else (rule.name,)
    return [tuple(name.format(**index) for name in both) for index in indices]


def _read(rule: PublishedTensor, config: ModelConfig, tensors: "_Tensors") -> np.ndarray:
    """One parameter, from the tensors that it is stacked from."""

    def read(name: str) -> np.ndarray:
        tensor = tensors.read(name)
        return tensor.T if rule.transpose else tensor

    parts = [
        read(names[0]) if len(names) == 1 else np.concatenate([read(n) for n in names], axis=-1)
        for names in _names(rule, config)
    ]
    leading = [len(axis) for axis in _leading(rule, config).values()]
    return np.stack(parts).reshape(*leading, *parts[0].shape) if leading else parts[0]


def _widths(rule: PublishedTensor, size: int) -> tuple[int, ...]:
    """How much of a parameter's last axis each of its tensors has."""
    return (rule.first_size, size - rule.first_size) if rule.second else (size,)


def _expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that a model of this configuration has, and its shape."""
    shapes = shapes_of(flatten(abstract_model(config)[1]))
    expected = {}
    for rule in _format(config).tensors(config):
        *inner, last = shapes.pop(rule.path)[len(_leading(rule, config)) :]
        for names in _names(rule, config):
            for name, width in zip(names, _widths(rule, last), strict=True):
                shape = (*inner, width)
                expected[name] = shape[::-1] if rule.transpose else shape
    assert not shapes, f"parameters without a published name: {sorted(shapes)}"
    return expected


def _as_tensors(config: ModelConfig, params: nnx.State) -> dict[str, np.ndarray]:
    """The published tensors of a model, by name."""
    flat = {name: np.asarray(array) for name, array in flatten(params).items()}
    tensors: dict[str, np.ndarray] = {}
    for rule in _format(config).tensors(config):
        value = flat[rule.path]
        parts = value.reshape(-1, *value.shape[len(_leading(rule, config)) :])
        for names, whole in zip(_names(rule, config), parts, strict=True):
            ends = np.cumsum(_widths(rule, whole.shape[-1]))[:-1]
            for name, part in zip(names, np.split(whole, ends, axis=-1), strict=True):
                tensors[name] = np.ascontiguousarray(part.T if rule.transpose else part)
    return tensors | _format(config).constants(config)


def _tensor_files(path: Path) -> dict[str, Path]:
    """Which file holds each tensor: by the index where there is one, else the single file."""
    if (path / INDEX_FILE).exists():
        weight_map = read_json(path / INDEX_FILE).get("weight_map")
        if not isinstance(weight_map, dict):
            raise CheckpointError(f"{path / INDEX_FILE} has no weight_map")
        return {name: path / file for name, file in weight_map.items()}
    file = path / SINGLE_FILE
    if not file.exists():
        raise CheckpointError(f"{path} holds neither {SINGLE_FILE} nor {INDEX_FILE}")
    return dict.fromkeys(_open(file).keys(), file)


def _open(file: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, "np").__enter__()
    except SafetensorError as error:
        raise CheckpointError(f"{file} is damaged: {error}") from None


class _Tensors:
    """The tensors of a folder, each file opened once and read tensor by tensor."""

    def __init__(self, folder: Path, files: Mapping[str, Path]):
        self._files = files
        self._open = {}
        for file in sorted(set(files.values())):
            if not file.exists():
                raise CheckpointError(f"{folder}: the index names {file.name}, not there")
            self._open[file] = _open(file)
        absent = [n for n, file in files.items() if n not in set(self._open[file].keys())]
        if absent:
            raise CheckpointError(
                f"{folder}: the index names tensors not there: {listed(absent, 20)}"
            )

        # Weights that were trained on several devices have one more level in their names.
        self._stored = {name.removeprefix("module."): name for name in files}
        self.names = {*self._stored}

    def shape(self, name: str) -> tuple[int, ...]:
        stored = self._stored[name]
        return tuple(self._open[self._files[stored]].get_slice(stored).get_shape())

    def read(self, name: str) -> np.ndarray:
        stored = self._stored[name]
        return self._open[self._files[stored]].get_tensor(stored)


def _check_names(path: Path, expected: Mapping[str, Any], found: set[str]) -> None:
    missing, unexpected = sorted(set(expected) - found), sorted(found - set(expected))
    problems = [f"missing tensors: {listed(missing, 20)}"] if missing else []
    problems += [f"unexpected tensors: {listed(unexpected, 20)}"] if unexpected else []
    if problems:
        raise CheckpointError(f"{path} does not fit its config.json; {'; '.join(problems)}")


def _check_shapes(path: Path, expected: Mapping[str, tuple[int, ...]], tensors: _Tensors) -> None:
    wrong = [
        f"{name} is {tensors.shape(name)}, not {shape}"
        for name, shape in expected.items()
        if tensors.shape(name) != shape
    ]
    if wrong:
        raise CheckpointError(
            f"{path} does not fit its config.json; misshapen: {listed(wrong, 20)}"
        )


def _write_shards(path: Path, tensors: dict[str, np.ndarray], most: int) -> list[Path]:
    """Writes one file, or several and an index where one would be larger than `most` bytes."""
    from safetensors.numpy import save_file

    shards = in_shards(tensors.items(), most)
    if len(shards) == 1:
        save_file(tensors, path / SINGLE_FILE, metadata={"format": "pt"})
        return [path / SINGLE_FILE]
    files = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    for file, shard in zip(files, shards, strict=True):
        save_file(shard, path / file, metadata={"format": "pt"})
    total = sum(tensor.nbytes for tensor in tensors.values())
    weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (path / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return [*(path / file for file in files), path / INDEX_FILE]
