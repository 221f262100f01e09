"""How the parameters of Time-MoE are split over a mesh: see `runtime.partitioning`.

Blocks are stacked: their axis 0 is L.
"""

from jax.sharding import PartitionSpec as P

from timemoe_jax.runtime.partitioning import Rules

RULES: Rules = (
    (r"attention\.(query|key|value)\.kernel$", P(None, "fsdp", "tensor")),
    (r"attention\.(query|key|value)\.bias$", P(None, "tensor")),
    (r"attention\.out\.kernel$", P(None, "tensor", "fsdp")),
    (r"ffn\.experts\.(gate|up)$", P(None, "expert", "fsdp", "tensor")),
    (r"ffn\.experts\.down$", P(None, "expert", "tensor", "fsdp")),
    (r"ffn\.(shared\.)?(gate|up)\.kernel$", P(None, "fsdp", "tensor")),
    (r"ffn\.(shared\.)?down\.kernel$", P(None, "tensor", "fsdp")),
    # Small ones, which every device holds whole.
    (r"ffn\.(router|shared_gate)\.kernel$", P()),
    (r"ffn\.selection_bias$", P()),
    (r"norm\.scale$", P()),
    (r"embed\.(gate|value)$", P()),
    (r"patch_embed\.(inner|outer|skip)\.(kernel|bias)$", P()),
    (r"copy_embed\.(inner|outer|skip)\.(kernel|bias)$", P()),
    (r"(^|\.)(quantile_|copy_|anchor_|weigh_)?heads\.\d+\.(kernel|bias)$", P()),
)
