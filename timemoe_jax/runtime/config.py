"""How the devices of a run are arranged, by its config."""

import dataclasses

from timemoe_jax.config import require


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The devices along each axis of the mesh; one of them may be -1: all that are left.

    What is parallel along each axis stands in `partitioning`.
    """

    data: int = -1  # splits the batch
    fsdp: int = 1  # splits the batch and every large parameter
    expert: int = 1  # splits the batch and the experts
    tensor: int = 1  # splits heads and widths

    def __post_init__(self) -> None:
        sizes = dataclasses.asdict(self)
        for name, size in sizes.items():
            require(size > 0 or size == -1, f"{name} must be positive or -1, but is {size}")
        free = [name for name, size in sizes.items() if size == -1]
        require(len(free) <= 1, f"only one axis may be -1, but {' and '.join(free)} are")
