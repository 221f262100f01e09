"""Scores of forecasts, and the simple methods that a model is compared with."""
