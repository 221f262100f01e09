"""Quantiles and sample paths: of the heads of a model, or of its earlier errors."""
