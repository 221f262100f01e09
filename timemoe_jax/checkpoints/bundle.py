"""The folder of a small model: a few files that version control keeps well, and their checksums.

    model.json              the configuration, and which steps of a run the weights are of
    weights-1.safetensors   the parameters by their dotted names; further files where one is full
    checksums.json          the SHA-256 and the size of each of the other files

Every file is at most `MAX_FILE_BYTES`, and the same model gives the same bytes. A folder is read
as a whole: its bytes are checked before anything is made of them, and a file that is not listed is
as wrong as one that is missing.
"""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from timemoe_jax.checkpoints.step import as_path, new_folder, read_json
from timemoe_jax.checkpoints.trees import flatten, in_shards, misfits, shapes_of, unflatten
from timemoe_jax.config import DTYPES, from_mapping
from timemoe_jax.errors import CheckpointError, ConfigError, listed
from timemoe_jax.models.base import ModelConfig, abstract_model, family_of

FORMAT = 1
MAX_FILE_BYTES = 5_000_000
MODEL_FILE = "model.json"
CHECKSUMS_FILE = "checksums.json"
_FIRST_WEIGHTS = "weights-1.safetensors"
_HEADER_BYTES = 200_000  # that the names and shapes in a file of weights may take
_DTYPES = {"BF16": jnp.dtype("bfloat16"), "F32": np.dtype("float32")}  # by safetensors' names


class Bundle(NamedTuple):
    """What such a folder holds."""

    config: ModelConfig
    params: nnx.State  # NumPy arrays in the dtype they are stored in
    optimizer: dict[str, Any] | None = None  # what trained it, where the folder says so


def is_bundle(folder: Any) -> bool:
    """Whether a folder is one of these, or what is left of one."""
    rest = all((folder / name).exists() for name in (MODEL_FILE, _FIRST_WEIGHTS))
    return rest or (folder / CHECKSUMS_FILE).exists()


def write_bundle(
    folder: str | os.PathLike[str],
    config: ModelConfig,
    params: nnx.State,
    dtype: str = "bfloat16",
    steps: Sequence[int] = (),
    optimizer: Mapping[str, Any] | None = None,
) -> dict[str, int]:
    """Writes a model into a new or empty folder; returns the size of each file in bytes, by name.

    All parameters are stored in `dtype`: "float32", or "bfloat16", which rounds each by at most one
    part in 256. How to compute the model (`compute_fields` of its family) is not kept; the steps of
    the run that the parameters are of, and its section `optimizer`, are.

    Raises:
      CheckpointError: the folder holds something, a parameter is not finite, or a file would be
        larger than `MAX_FILE_BYTES`.
      ConfigError: the dtype is another.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype must be {' or '.join(DTYPES)}, but is {dtype!r}")
    place = new_folder(folder)
    files = _weight_files(_flat(params, dtype))
    values = dataclasses.asdict(config)
    left_out = family_of(config).compute_fields
    architecture = {name: value for name, value in values.items() if name not in left_out}
    content = {"format": FORMAT, "steps": [int(step) for step in steps], "model": architecture}
    if optimizer is not None:
        content["optimizer"] = dict(optimizer)
    files[MODEL_FILE] = _json(content)
    place.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (place / name).write_bytes(data)
    # Last, since a folder without it is no model: what an interrupted write leaves does not load.
    files[CHECKSUMS_FILE] = _json(
        {name: {"sha256": _sha256(data), "bytes": len(data)} for name, data in files.items()}
    )
    (place / CHECKSUMS_FILE).write_bytes(files[CHECKSUMS_FILE])
    return {name: len(data) for name, data in files.items()}


def read_bundle(folder: str | os.PathLike[str]) -> Bundle:
    """Reads a model, after checking every byte of its folder.

    Raises:
      CheckpointError: a file differs, is missing or is one too many, or the parameters do not fit
        the configuration.
    """
    place = as_path(folder)
    files = read_verified(place)
    content = read_json(place / MODEL_FILE, files.get(MODEL_FILE, b""))
    if content.get("format") != FORMAT:
        raise CheckpointError(
            f"{place / MODEL_FILE} has format {content.get('format')!r}, but this version reads "
            f"{FORMAT}"
        )
    try:
        config = from_mapping(ModelConfig, content.get("model", {}), f"{MODEL_FILE}.model")
    except ConfigError as error:
        raise CheckpointError(f"{place}: {error}") from None
    flat = _join(place, {n: data for n, data in files.items() if n.endswith(".safetensors")})
    return Bundle(config, _as_state(place, config, flat), content.get("optimizer"))


def read_verified(folder: Any) -> dict[str, bytes]:
    """The bytes of all files but the checksums; an error names each file that differs from them."""
    entries = _entries(folder)
    held = {path.name for path in folder.iterdir()} - {CHECKSUMS_FILE}
    problems = [f"{name} is missing" for name in sorted(set(entries) - held)]
    extra = sorted(held - set(entries))
    problems += [f"{name} is one too many: {CHECKSUMS_FILE} does not list it" for name in extra]
    files = {}
    for name in sorted(held & set(entries)):
        try:
            data = (folder / name).read_bytes()
        except OSError as error:
            problems.append(f"{name} cannot be read ({error.strerror})")
            continue
        if len(data) != entries[name]["bytes"]:
            problems.append(f"{name} has {len(data):,} bytes instead of {entries[name]['bytes']:,}")
        elif _sha256(data) != entries[name]["sha256"]:
            problems.append(f"{name} does not match its SHA-256")
        files[name] = data
    if problems:
        raise CheckpointError(
            f"{folder} is damaged: {listed(problems, 5, '; ')}; install or write it again"
        )
    return files


def _entries(folder: Any) -> dict[str, Any]:
    """What the checksums say of each file."""
    if not (folder / CHECKSUMS_FILE).exists():
        raise CheckpointError(f"{folder} is damaged: {CHECKSUMS_FILE} is missing")
    entries = read_json(folder / CHECKSUMS_FILE)
    for name, entry in entries.items():
        if not isinstance(entry, dict) or entry.keys() != {"sha256", "bytes"}:
            raise CheckpointError(
                f"{folder / CHECKSUMS_FILE} must give sha256 and bytes of {name!r}, but gives "
                f"{entry!r:.80}"
            )
    return entries


def _flat(params: nnx.State, dtype: str) -> dict[str, np.ndarray]:
    """The parameters by their dotted names, in one dtype."""
    flat = {}
    for name, array in flatten(params).items():
        flat[name] = np.ascontiguousarray(np.asarray(array).astype(jnp.dtype(dtype)))
        if not np.isfinite(flat[name].astype(np.float32)).all():
            raise CheckpointError(f"{name} holds values that are not finite; nothing was written")
    return flat


def _weight_files(flat: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    """The files of weights, in the order of the names, each filled before the next begins."""
    from safetensors.numpy import save

    room = MAX_FILE_BYTES - _HEADER_BYTES
    shards = in_shards(_parts(flat, room), room)
    files = {f"weights-{i}.safetensors": save(shard) for i, shard in enumerate(shards, 1)}
    large = [name for name, data in files.items() if len(data) > MAX_FILE_BYTES]
    if large:
        raise CheckpointError(
            f"{large[0]} would have {len(files[large[0]]):,} bytes, more than {MAX_FILE_BYTES:,}: "
            "this model is too large to come with the library; nothing was written"
        )
    return files


def _parts(flat: Mapping[str, np.ndarray], room: int) -> Iterator[tuple[str, np.ndarray]]:
    """Every array; one that is larger than a file in parts along its first axis, `name[0:2]`."""
    for name, array in sorted(flat.items()):
        if array.nbytes <= room:
            yield name, array
            continue
        rows = max(1, room // (array.nbytes // len(array)))
        for start in range(0, len(array), rows):
            part = array[start : start + rows]
            yield f"{name}[{start}:{start + len(part)}]", part


def _join(folder: Any, files: Mapping[str, bytes]) -> dict[str, np.ndarray]:
    """The arrays of all files, those in parts put together again."""
    from safetensors import SafetensorError, deserialize

    flat: dict[str, np.ndarray] = {}
    parts: dict[str, dict[int, np.ndarray]] = {}
    for file, data in files.items():
        try:
            held = deserialize(data)
        except SafetensorError as error:
            raise CheckpointError(f"{folder / file} cannot be read: {error}") from None
        for name, of in held:
            if of["dtype"] not in _DTYPES:
                raise CheckpointError(f"{folder / file}: {name} is of the dtype {of['dtype']}")
            array = np.frombuffer(of["data"], _DTYPES[of["dtype"]]).reshape(of["shape"])
            if part := re.fullmatch(r"(.+)\[(\d+):\d+\]", name):
                parts.setdefault(part[1], {})[int(part[2])] = array
            else:
                flat[name] = array
    for name, of in parts.items():
        try:
            flat[name] = np.concatenate([of[start] for start in sorted(of)])
        except ValueError as error:
            raise CheckpointError(f"{folder}: the parts of {name} do not fit: {error}") from None
    return flat


def _as_state(folder: Any, config: ModelConfig, flat: Mapping[str, np.ndarray]) -> nnx.State:
    """The arrays at their places in a model of this configuration."""
    _, params = abstract_model(config)
    wanted = flatten(params)
    if problems := misfits(shapes_of(flat), shapes_of(wanted)):
        text = listed(problems, 5, "; ")
        raise CheckpointError(f"{folder}: the weights do not fit {MODEL_FILE}: {text}")
    return unflatten(params, {name: flat[name] for name in wanted})


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
