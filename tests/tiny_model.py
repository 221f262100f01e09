"""A model small enough to compile in a second, for every test that needs no particular one."""

from timemoe_jax.models.time_moe.config import TimeMoeConfig

# Large initial weights, so that every part of the model has a say.
TINY = TimeMoeConfig(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    num_experts=4,
    horizon_lengths=(1, 4),
    initializer_range=0.4,
)
