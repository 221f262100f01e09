"""How forecasts are made: data frames in and out, covariates, intervals, scenarios."""
