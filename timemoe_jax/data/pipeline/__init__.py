"""From series to batches: windows, standardization, order, mixtures."""
