"""Routed experts: the router, the dispatch, the products, and the layer of them all."""

# What `compute.expert_ffn` and `parallel.apply_experts` know, for configurations, which do not
# import JAX.
IMPLEMENTATIONS = ("auto", "dense", "blocked", "grouped", "capacity")
EXCHANGES = ("all_gather", "all_to_all")
# Of `by_channel.ChannelMoe`.
SCOPES = ("channel", "token")
