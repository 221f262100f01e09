"""Families of generated series, one per module; `registry` lists them by name."""
