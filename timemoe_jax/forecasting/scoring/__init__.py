"""Scores of forecasts, and the simple methods that they stand beside."""
