"""Seg-MoE: an encoder of patches whose experts see time in segments."""
