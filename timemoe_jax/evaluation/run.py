"""The one door of evaluations: the field `benchmark` of a config says which is run."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from timemoe_jax.config import require
from timemoe_jax.evaluation import long_horizon
from timemoe_jax.evaluation.comparisons import frame
from timemoe_jax.evaluation.comparisons.config import FrameConfig
from timemoe_jax.evaluation.config import EvalConfig
from timemoe_jax.evaluation.leaderboards import chaos_run, fev_run, gift_run
from timemoe_jax.evaluation.leaderboards.config import ChaosConfig, FevConfig, GiftConfig


class Benchmark(NamedTuple):
    """What an evaluation is determined by, and what runs it."""

    config: type[Any]
    module: Any  # whose `run` takes such a config and returns a manifest


BENCHMARKS = {
    "long_horizon": Benchmark(EvalConfig, long_horizon),
    "gift": Benchmark(GiftConfig, gift_run),
    "fev": Benchmark(FevConfig, fev_run),
    "chaos": Benchmark(ChaosConfig, chaos_run),
    "frame": Benchmark(FrameConfig, frame),
}


class AnyEvalConfig:
    """Stands for the config class of whatever `benchmark` names."""

    @staticmethod
    def class_of(mapping: Mapping[str, Any], where: str) -> type[Any]:
        """The class of a config; without a `benchmark` it is that of the long-horizon one."""
        name = mapping.get("benchmark", "long_horizon")
        known = ", ".join(BENCHMARKS)
        require(name in BENCHMARKS, f"{where}.benchmark must be one of {known}, but is {name!r}")
        return BENCHMARKS[name].config


def run(config: Any) -> dict[str, Any]:
    """Runs the evaluation of a config; returns its manifest."""
    return BENCHMARKS[config.benchmark].module.run(config)
