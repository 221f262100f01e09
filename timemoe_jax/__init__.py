"""Sparse mixture-of-experts foundation models for time series in JAX.

Axis letters, used in every shape: B batch, T time, D model, F expert hidden, N heads, K key/value
heads (in attention) or experts per token (in routing), H head dim, E experts, L layers,
P horizon of a head, C variates, S cache positions.
"""
