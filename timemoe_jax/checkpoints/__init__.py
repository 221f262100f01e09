"""Weights on disk: the checkpoints of runs, published folders, bundled models."""
