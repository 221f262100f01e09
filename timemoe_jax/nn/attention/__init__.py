"""Causal attention: one function, and the ways to compute it."""
