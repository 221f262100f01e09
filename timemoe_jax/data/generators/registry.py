"""The families of generated series by name, and how a choice of them is written."""

import difflib
from collections.abc import Mapping

from timemoe_jax.data.config import parse_weights
from timemoe_jax.data.generators.families.arima import Arima
from timemoe_jax.data.generators.families.calendar_effects import CalendarEffects
from timemoe_jax.data.generators.families.causal_graph import CausalGraph
from timemoe_jax.data.generators.families.chaos import Chaos
from timemoe_jax.data.generators.families.components import Components
from timemoe_jax.data.generators.families.diffusion import Diffusion
from timemoe_jax.data.generators.families.events import Events
from timemoe_jax.data.generators.families.exponential_smoothing import ExponentialSmoothing, Growth
from timemoe_jax.data.generators.families.gaussian_process import GaussianProcess
from timemoe_jax.data.generators.families.intermittent import Intermittent
from timemoe_jax.data.generators.families.regimes import Regimes
from timemoe_jax.data.generators.families.volatility import Volatility
from timemoe_jax.data.generators.families.waves import Daylight, Recurrence, Tides
from timemoe_jax.data.generators.generator import Generator
from timemoe_jax.data.generators.mixup import TSMixup
from timemoe_jax.data.series_source import SequenceSource
from timemoe_jax.errors import ConfigError, DataError

FAMILIES: Mapping[str, type[Generator]] = {
    "gaussian_process": GaussianProcess,
    "causal_graph": CausalGraph,
    "arima": Arima,
    "ets": ExponentialSmoothing,
    "regimes": Regimes,
    "calendar": CalendarEffects,
    "intermittent": Intermittent,
    "diffusion": Diffusion,
    "chaos": Chaos,
    "volatility": Volatility,
    "events": Events,
    "growth": Growth,
    "tides": Tides,
    "components": Components,
    "recurrence": Recurrence,
    "daylight": Daylight,
}
MIXUP = "tsmixup"  # takes part where there are real series to mix


def make_generator(name: str, source: SequenceSource | None = None) -> Generator:
    """Makes a family of FAMILIES, or "tsmixup" of a source of real series, with its defaults."""
    if name == MIXUP:
        if source is None:
            raise DataError(f"family {MIXUP} mixes real series; give a source of them")
        return TSMixup(source)
    if name not in FAMILIES:
        known = [*FAMILIES, MIXUP]
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]}?" if close else "."
        raise DataError(f"family {name!r} is unknown{hint} There are {', '.join(known)}")
    return FAMILIES[name]()


def parse_families(text: str) -> dict[str, float]:
    """Reads a choice of families such as `arima,chaos:2`: the weight of each, 1 where none stands.

    An empty text chooses all of FAMILIES equally.
    """
    must_be = "a family, with a positive weight after a colon if any, such as arima:2"
    try:
        weights = parse_weights(text, "families", must_be, default=1.0, positive=True)
    except ConfigError as error:
        raise DataError(str(error)) from None
    return weights or dict.fromkeys(FAMILIES, 1.0)
