"""Folders in the layout of Time-300B: values in binary files, `meta.json`, an index."""
