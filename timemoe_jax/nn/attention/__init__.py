"""Causal attention: one function, and the ways to compute it."""

# What `causal.causal_attention` knows, for configurations, which do not import JAX.
IMPLEMENTATIONS = ("auto", "plain", "chunked", "tiled", "cudnn", "splash")
