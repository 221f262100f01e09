"""How the parameters of an encoder are split over a mesh: see `runtime.partitioning`."""

from jax.sharding import PartitionSpec as P

from timemoe_jax.runtime.partitioning import Rules

RULES: Rules = (
    (r"(attention|cross)\.(query|key|value)\.kernel$", P("fsdp", "tensor")),
    (r"(attention|cross)\.(query|key|value)\.bias$", P("tensor")),
    (r"(attention|cross)\.out\.kernel$", P("tensor", "fsdp")),
    (r"ffn\.experts\.\w+\.(gate|up)$", P("expert", "fsdp", "tensor")),
    (r"ffn\.experts\.\w+\.down$", P("expert", "tensor", "fsdp")),
    (r"ffn\.shared\.(gate|up)\.kernel$", P("fsdp", "tensor")),
    (r"ffn\.shared\.down\.kernel$", P("tensor", "fsdp")),
    (r"head\.unpatch$", P("fsdp", "tensor")),
    # Small ones, which every device holds whole.
    (r"ffn\.(router|shared_gate)\.kernel$", P()),
    (r"ffn\.shared\.(depthwise|gate|up|down)$", P()),
    (r"norm\.(scale|bias)$", P()),
    (r"(embed|patches)\.kernel$", P()),
    (r"head\.(smooth|narrow|last|out\.kernel)$", P()),
    (r"covariates\.(series|calendar|fuse)\.kernel$", P()),
)
