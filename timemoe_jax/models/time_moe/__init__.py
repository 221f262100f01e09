"""Time-MoE (arXiv 2409.16040): a decoder over single points with routed experts."""
