"""How the parameters of Time Tracker are split over a mesh: see `runtime.partitioning`.

Blocks are stacked: their axis 0 is L. They are those of Time-MoE, but for a few small ones.
"""

from jax.sharding import PartitionSpec as P

from timemoe_jax.models.time_moe.sharding import RULES as SHARED_RULES
from timemoe_jax.runtime.partitioning import Rules

RULES: Rules = (
    (r"attention\.(same|other)$", P(None, "tensor")),
    (r"embed\.kernel$", P()),
    (r"alpha_logit$", P()),
    *SHARED_RULES,
)
