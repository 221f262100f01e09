"""Quantiles and sample paths, from the heads of a model or from its earlier errors."""
