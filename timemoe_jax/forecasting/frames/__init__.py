"""Data frames in, data frames out: calendars, frequencies, ids and covariates."""
