"""Published Time-MoE weights (safetensors) to and from the parameters of `models.time_moe`.

`_RULES` is the whole correspondence: a parameter, the published tensors it is stacked from, and
whether each is transposed (PyTorch keeps linear maps as [out, in]). Both directions read it.
Nothing here needs PyTorch, and nothing is unpickled.
"""

import itertools
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from timemoe_jax.errors import CheckpointError, ConfigError, listed
from timemoe_jax.models.time_moe.config import ModelConfig
from timemoe_jax.models.time_moe.model import abstract_model
from timemoe_jax.models.time_moe.published import (
    Rule,
    model_config_from_published,
    model_config_to_published,
    rules_of,
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
    source_config = _read_json(path / "config.json")
    try:
        config, unknown = model_config_from_published(source_config)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from None
    files = _tensor_files(path)
    expected = _expected_shapes(config)
    _check_names(path, expected, files)
    tensors = _Tensors(path, files)
    _check_shapes(path, expected, tensors)
    flat = {}
    for rule in rules_of(config):
        parts = [tensors.read(name) for name in _names(rule, config)]
        parts = [part.T if rule.transpose else part for part in parts]
        leading = _leading(rule, config)
        flat[rule.path] = (
            np.stack(parts).reshape(*leading, *parts[0].shape) if leading else parts[0]
        )
    return Published(config, _as_state(config, flat), source_config, unknown)


def write_published(
    folder: str | os.PathLike[str],
    config: ModelConfig,
    params: nnx.State,
    source_config: Mapping[str, Any] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> list[Path]:
    """Writes `config.json` and safetensors that the published implementation loads.

    Args:
      folder: made if needed; one that already holds a model is refused.
      config: of the model.
      params: its parameters; each tensor keeps its dtype.
      source_config: a published `config.json` to repeat instead of one derived from `config`.
      max_shard_bytes: weights larger than this are cut into files of at most this size, with an
        index.

    Returns:
      the files written.

    Raises:
      CheckpointError: the folder already holds a model.
      ConfigError: the published implementation does not have such a model.
    """
    path = Path(folder)
    derived = model_config_to_published(config)  # refuses, also where a source config is repeated
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
    published.setdefault("torch_dtype", str(next(iter(tensors.values())).dtype))
    files = _write_shards(path, tensors, max_shard_bytes)
    # Last, since a folder without it is no model: an interrupted write leaves nothing that loads.
    (path / "config.json").write_text(json.dumps(published, indent=2) + "\n")
    return [path / "config.json", *files]


def _leading(rule: Rule, config: ModelConfig) -> tuple[int, ...]:
    """The sizes of the stacked axes, in the order layer, expert."""
    sizes = {"{layer}": config.num_hidden_layers, "{expert}": config.num_experts}
    return tuple(size for key, size in sizes.items() if key in rule.name)


def _names(rule: Rule, config: ModelConfig) -> list[str]:
    """The tensors a parameter is stacked from, in the order of its leading axes."""
    leading = itertools.product(*(range(n) for n in _leading(rule, config)))
    keys = ("layer", "expert")
    return [rule.name.format(**dict(zip(keys, index, strict=False))) for index in leading]


def _expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that a model of this configuration has, and its shape."""
    _, params = abstract_model(config)
    shapes = {".".join(map(str, keys)): p.shape for keys, p in nnx.to_flat_state(params)}
    expected = {}
    for rule in rules_of(config):
        shape = shapes.pop(rule.path)[len(_leading(rule, config)) :]
        for name in _names(rule, config):
            expected[name] = shape[::-1] if rule.transpose else shape
    assert not shapes, f"parameters without a published name: {sorted(shapes)}"
    return expected


def _as_state(config: ModelConfig, flat: Mapping[str, np.ndarray]) -> nnx.State:
    """Puts arrays at their places in the parameter tree of a model."""
    _, params = abstract_model(config)
    return nnx.from_flat_state(
        [
            (keys, p.replace(jax.numpy.asarray(flat[".".join(map(str, keys))])))
            for keys, p in nnx.to_flat_state(params)
        ]
    )


def _as_tensors(config: ModelConfig, params: nnx.State) -> dict[str, np.ndarray]:
    """The published tensors of a model, by name."""
    flat = {".".join(map(str, keys)): np.asarray(p[...]) for keys, p in nnx.to_flat_state(params)}
    tensors: dict[str, np.ndarray] = {}
    for rule in rules_of(config):
        value = flat[rule.path]
        parts = value.reshape(-1, *value.shape[len(_leading(rule, config)) :])
        for name, part in zip(_names(rule, config), parts, strict=True):
            tensors[name] = np.ascontiguousarray(part.T if rule.transpose else part)
    return tensors


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} is not readable JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object, but holds a {type(value).__name__}")
    return value


def _tensor_files(path: Path) -> dict[str, Path]:
    """Which file holds each tensor: by the index where there is one, else the single file."""
    from safetensors import SafetensorError, safe_open

    if (path / INDEX_FILE).exists():
        weight_map = _read_json(path / INDEX_FILE).get("weight_map")
        if not isinstance(weight_map, dict):
            raise CheckpointError(f"{path / INDEX_FILE} has no weight_map")
        return {name: path / file for name, file in weight_map.items()}
    file = path / SINGLE_FILE
    try:
        with safe_open(file, "np") as opened:
            return dict.fromkeys(opened.keys(), file)
    except FileNotFoundError:
        raise CheckpointError(f"{path} holds neither {SINGLE_FILE} nor {INDEX_FILE}") from None
    except SafetensorError as error:
        raise CheckpointError(f"{file} is damaged: {error}") from None


class _Tensors:
    """The tensors of a folder, each file opened once and read tensor by tensor."""

    def __init__(self, folder: Path, files: Mapping[str, Path]):
        from safetensors import SafetensorError, safe_open

        self._files = files
        self._open = {}
        for file in sorted(set(files.values())):
            try:
                self._open[file] = safe_open(file, "np").__enter__()
            except FileNotFoundError:
                raise CheckpointError(f"{folder}: the index names {file.name}, not there") from None
            except SafetensorError as error:
                raise CheckpointError(f"{file} is damaged: {error}") from None
        absent = [n for n, file in files.items() if n not in set(self._open[file].keys())]
        if absent:
            raise CheckpointError(f"{folder}: the index names tensors not there: {_list(absent)}")

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._open[self._files[name]].get_slice(name).get_shape())

    def read(self, name: str) -> np.ndarray:
        return self._open[self._files[name]].get_tensor(name)


def _check_names(path: Path, expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    missing, unexpected = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    problems = [f"missing tensors: {_list(missing)}"] if missing else []
    problems += [f"unexpected tensors: {_list(unexpected)}"] if unexpected else []
    if problems:
        raise CheckpointError(f"{path} does not fit its config.json; {'; '.join(problems)}")


def _check_shapes(path: Path, expected: Mapping[str, tuple[int, ...]], tensors: _Tensors) -> None:
    wrong = [
        f"{name} is {tensors.shape(name)}, not {shape}"
        for name, shape in expected.items()
        if tensors.shape(name) != shape
    ]
    if wrong:
        raise CheckpointError(f"{path} does not fit its config.json; misshapen: {_list(wrong)}")


def _list(items: list[str], most: int = 20) -> str:
    return listed(items, most)


def _write_shards(path: Path, tensors: dict[str, np.ndarray], most: int) -> list[Path]:
    """Writes one file, or several and an index where one would be larger than `most` bytes."""
    from safetensors.numpy import save_file

    shards: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > most:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        save_file(tensors, path / SINGLE_FILE, metadata={"format": "pt"})
        return [path / SINGLE_FILE]
    files = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    for file, shard in zip(files, shards, strict=True):
        save_file(shard, path / file, metadata={"format": "pt"})
    total = sum(tensor.nbytes for tensor in tensors.values())
    weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (path / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")
    return [*(path / file for file in files), path / INDEX_FILE]
