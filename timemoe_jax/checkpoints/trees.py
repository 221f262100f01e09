"""Trees of parameters as flat dictionaries, and back."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx


def is_variable(node: Any) -> bool:
    """Whether a node holds an array; an optimizer that works on a part leaves the others empty."""
    return isinstance(node, nnx.Variable) and bool(jax.tree.leaves(node))


def flatten(tree: Any) -> dict[str, Any]:
    """{dotted path: array}, the same whatever Flax makes of a variable inside a tree."""
    flat = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_variable)[0]:
        value = leaf.get_value() if is_variable(leaf) else leaf
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        flat[name] = value if hasattr(value, "dtype") else np.asarray(value)
    return flat


def unflatten(tree: Any, values: Mapping[str, Any]) -> Any:
    """`tree` with other arrays, given in the order of `flatten`."""
    leaves, structure = jax.tree.flatten(tree, is_leaf=is_variable)
    new = [
        leaf.replace(value) if is_variable(leaf) else value
        for leaf, value in zip(leaves, values.values(), strict=True)
    ]
    return jax.tree.unflatten(structure, new)


def misfits(
    held: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """What is wrong with the names and shapes of stored arrays, one text for each of them."""
    return [
        *(f"{name} is missing" for name in wanted if name not in held),
        *(f"{name} is unexpected" for name in held if name not in wanted),
        *(
            f"{name} is {held[name]}, not {shape}"
            for name, shape in wanted.items()
            if held.get(name, shape) != shape
        ),
    ]


def shapes_of(arrays: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of each array, by name."""
    return {name: tuple(np.shape(array)) for name, array in arrays.items()}


def in_shards(arrays: Iterable[tuple[str, np.ndarray]], most: int) -> list[dict[str, np.ndarray]]:
    """Named arrays in order, as many in each part as keep it within `most` bytes."""
    shards: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, array in arrays:
        if shards[-1] and size + array.nbytes > most:
            shards.append({})
            size = 0
        shards[-1][name] = array
        size += array.nbytes
    return shards


def json_copy(value: Any) -> Any:
    """A copy as it will be read back from JSON."""
    return json.loads(json.dumps(value))
