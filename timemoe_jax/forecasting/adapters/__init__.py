"""A forecaster as other libraries expect one: GluonTS, fev, sktime, and Nixtla's long frames."""
