"""Low-rank adapters (arXiv 2106.09685): small folders that belong to one model.

    adapter.json          the model that they belong to, its checksum, how the factors count
    adapter.safetensors   the factors, by the dotted names of their kernels: NAME.a and NAME.b

A kernel W [*N, in, out] with factors a [*N, in, R] and b [*N, R, out] stands for W + scale * a b;
the leading axes, of layers and experts, are those of the kernel. `load_model` reads such a folder
as the whole model.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from timemoe_jax.checkpoints.step import as_path, read_json
from timemoe_jax.checkpoints.trees import flatten, unflatten
from timemoe_jax.errors import CheckpointError, listed

FORMAT = 1
ADAPTER_FILE = "adapter.json"
WEIGHTS_FILE = "adapter.safetensors"
FACTORS = ("a", "b")


@dataclasses.dataclass(frozen=True, eq=False)
class Adapter:
    """Factors, and the model that they belong to."""

    factors: Mapping[str, Any]  # by dotted names: NAME.a [*N, in, R] and NAME.b [*N, R, out]
    scale: float
    base: str  # the path or the name of the model
    base_digest: str  # its checksum: `checksums.weights_digest`

    @property
    def rank(self) -> int:
        """R of the factors."""
        return next(v.shape[-1] for name, v in self.factors.items() if name.endswith(".a"))


def adapted(
    kernel: Float[Array, "*N I O"], a: Float[Array, "*N I R"], b: Float[Array, "*N R O"], scale: Any
) -> Float[Array, "*N I O"]:
    """The kernel that a kernel and its factors stand for, in float32."""
    return kernel.astype(jnp.float32) + scale * jnp.matmul(a, b)


def merge(params: nnx.State, adapter: Adapter) -> nnx.State:
    """Plain float32 parameters, which compute what `params` with the adapter do."""
    flat = {name: np.asarray(value) for name, value in flatten(params).items()}
    names = {name.removesuffix(".a") for name in adapter.factors if name.endswith(".a")}
    if absent := sorted(names - flat.keys()):
        raise CheckpointError(f"the adapter has factors of {listed(absent)}, which the model lacks")
    merged = {}
    for name, value in flat.items():
        plain = value.astype(np.float32)
        if name in names:
            a, b = (np.asarray(adapter.factors[f"{name}.{part}"], np.float64) for part in FACTORS)
            if (*a.shape[:-1], b.shape[-1]) != plain.shape or a.shape[-1] != b.shape[-2]:
                raise CheckpointError(
                    f"the factors {a.shape} and {b.shape} do not fit {name} {plain.shape}"
                )
            plain = (plain + adapter.scale * (a @ b)).astype(np.float32)
        merged[name] = plain
    return unflatten(params, merged)


def is_adapter(folder: Any) -> bool:
    """Whether a folder holds an adapter."""
    return (folder / ADAPTER_FILE).exists()


def write_adapter(folder: str | os.PathLike[str], adapter: Adapter) -> None:
    """Writes an adapter, in the place of an earlier one.

    Raises:
      CheckpointError: the folder cannot be written, or a factor is not finite.
    """
    from safetensors.numpy import save

    factors = {name: np.ascontiguousarray(v, np.float32) for name, v in adapter.factors.items()}
    wrong = [name for name, value in factors.items() if not np.isfinite(value).all()]
    if wrong:
        raise CheckpointError(
            f"{listed(wrong)} hold values that are not finite; nothing is written"
        )
    place, data = as_path(folder), save(dict(sorted(factors.items())))
    content = {
        "format": FORMAT,
        "base": adapter.base,
        "base_digest": adapter.base_digest,
        "scale": adapter.scale,
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    try:
        place.mkdir(parents=True, exist_ok=True)
        (place / WEIGHTS_FILE).write_bytes(data)
        # Last, since a folder without it is no adapter.
        (place / ADAPTER_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        where = error.filename or place
        raise CheckpointError(f"{where} cannot be written: {error.strerror or error}") from None


def read_adapter(folder: str | os.PathLike[str]) -> Adapter:
    """Reads an adapter, after checking its checksum.

    Raises:
      CheckpointError: there is none, or it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    place = as_path(folder)
    content = read_json(place / ADAPTER_FILE)
    if content.get("format") != FORMAT:
        raise CheckpointError(
            f"{place / ADAPTER_FILE} has format {content.get('format')!r}, but this version reads "
            f"{FORMAT}"
        )
    try:
        data = (place / WEIGHTS_FILE).read_bytes()
        if hashlib.sha256(data).hexdigest() != content["sha256"]:
            raise CheckpointError(f"{place / WEIGHTS_FILE} does not match its SHA-256")
        return Adapter(load(data), content["scale"], content["base"], content["base_digest"])
    except OSError as error:
        raise CheckpointError(f"{place / WEIGHTS_FILE}: {error.strerror or error}") from None
    except (KeyError, SafetensorError) as error:
        raise CheckpointError(f"{place} is damaged: {error}") from None


def check_base(adapter: Adapter, digest: str | None, of: str) -> None:
    """Refuses a model that an adapter does not belong to."""
    if digest != adapter.base_digest:
        raise CheckpointError(
            f"the adapter belongs to {adapter.base} with the checksum {adapter.base_digest[:12]}, "
            f"but {of} has {(digest or 'none')[:12]}; give the model that it was trained on"
        )
