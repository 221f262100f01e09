"""Forecasting methods behind one protocol: ours, simple ones, and those of other libraries."""
