"""The sktime adapter with parameters for sktime's own tests, in a module that pickle finds."""

from fake_forecaster import FakeForecaster

from timemoe_jax.forecasting.adapters.sktime import TimeMoeForecaster


class CheckedForecaster(TimeMoeForecaster):
    __doc__ = TimeMoeForecaster.__doc__

    @classmethod
    def get_test_params(cls, parameter_set="default"):
        return {"model": FakeForecaster(), "context_length": 12}
