"""Held-out series: which windows of them are scored, how a model does on them, and selection."""
