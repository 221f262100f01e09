"""Sparse mixture-of-experts foundation models for time series in JAX.

Axis letters, used in every shape: B batch, T time, D model, F expert hidden, N heads, K key/value
heads (in attention) or experts per token (in routing), H head dim (in attention) or horizon (of a
forecast), E experts, L layers, P horizon of a head, C variates, S cache positions.
"""

from typing import TYPE_CHECKING, Any

from timemoe_jax.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    ForkError,
    TimeMoeError,
)

if TYPE_CHECKING:
    from timemoe_jax.forecasting.forecaster import Forecast, Forecaster

__version__ = "0.1.0"
__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "Forecast",
    "Forecaster",
    "ForkError",
    "TimeMoeError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Imports the names that need JAX when they are first used."""
    if name in ("Forecast", "Forecaster"):
        from timemoe_jax.forecasting import forecaster

        return getattr(forecaster, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
