"""The families of generated series."""
