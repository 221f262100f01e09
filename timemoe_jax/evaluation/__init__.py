"""Benchmarks, held-out series, expert usage and studies: how good a model is."""
