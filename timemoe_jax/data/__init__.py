"""Series from disk or from generators to batches: NumPy and Grain, never a model."""
