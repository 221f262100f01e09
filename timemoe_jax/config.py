"""The one place where an `ml_collections` config becomes typed, and every value is checked.

`configs/*.py` hold plain `ConfigDict`s, so that any field can be overridden on the command line.
The first line of a run turns them into the frozen dataclasses below; everything behind that line
sees only these. Model fields are named as in the published `config.json`, which therefore maps
one to one.
"""

import dataclasses
import difflib
import itertools
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from timemoe_jax.errors import ConfigError
from timemoe_jax.run_config import (
    DataConfig,
    LossConfig,
    MeshConfig,
    OptimizerConfig,
    ProfileConfig,
    TrainConfig,
    parse_mixing_weights,
    parse_resolutions,
    require,
    require_choice,
    require_not_negative,
    require_positive,
)

__all__ = [
    "ATTENTION_IMPLEMENTATIONS",
    "COMPUTE_FIELDS",
    "DTYPES",
    "EXPERT_EXCHANGES",
    "EXPERT_IMPLEMENTATIONS",
    "FORECAST_PLANS",
    "NORMALIZATIONS",
    "PROTOCOLS",
    "REMAT_POLICIES",
    "DataConfig",
    "EvalConfig",
    "LossConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ProfileConfig",
    "RunConfig",
    "TrainConfig",
    "from_mapping",
    "model_config_from_published",
    "model_config_to_published",
    "parse_mixing_weights",
    "parse_resolutions",
]

DTYPES = ("float32", "bfloat16")
EXPERT_IMPLEMENTATIONS = ("auto", "dense", "blocked", "grouped", "capacity")
EXPERT_EXCHANGES = ("all_gather", "all_to_all")
ATTENTION_IMPLEMENTATIONS = ("auto", "plain", "chunked", "tiled", "cudnn", "splash")
REMAT_POLICIES = ("none", "full", "products")
PROTOCOLS = ("complete", "published")
NORMALIZATIONS = ("none", "instance")
FORECAST_PLANS = ("fitting", "covering")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The architecture of one Time-MoE model (arXiv 2409.16040, Table 2).

    The upper fields are those of the published `config.json`; the lower ones say how to compute.
    The defaults are the published base model.
    """

    hidden_size: int = 384
    intermediate_size: int = 1536
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_key_value_heads: int = 12
    num_experts: int = 8
    num_experts_per_tok: int = 2
    horizon_lengths: tuple[int, ...] = (1, 8, 32, 64)
    max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    initializer_range: float = 0.02
    use_dense: bool = False
    apply_aux_loss: bool = True
    router_aux_loss_factor: float = 0.02
    # A bias per expert that only selects, moved towards an even load (arXiv 2408.15664); not
    # published, so such a model cannot be exported.
    router_bias: bool = False
    # Without the shared expert a point is left to the routed ones; not published either.
    shared_expert: bool = True
    # Beside each head one that says these quantiles of each value, in (0, 1) and increasing; not
    # published either.
    quantile_levels: tuple[float, ...] = ()
    # Which heads a forecast reads. "fitting": the longest that fits into what remains, again and
    # again, as published; "covering": the shortest that covers what remains, else the longest.
    forecast_plan: str = "fitting"
    # Deviations of the embedding's initial gate and value weights; (): initializer_range. If they
    # are small its silu is almost linear, so that all points are embedded along nearly one line:
    # the first norm takes their size away, and what is left hardly has a sign.
    embedding_range: tuple[float, ...] = ()
    # How many points back the attention starts by reading, each head a single one, less where its
    # heads are too few for that: see nn.lags; 0: all alike, as published.
    attention_reach: int = 0
    # Points that a forecast reads unless told otherwise; 0: as many as there are positions for.
    default_context: int = 0
    # How to compute it: none of these changes the function beyond rounding, unless a capacity
    # makes it drop tokens.
    dtype: str = "float32"
    remat: str = "none"  # what the backward pass computes again: see models.time_moe.REMAT
    expert_implementation: str = "auto"
    expert_exchange: str = "all_gather"  # between devices that hold different experts
    expert_capacity_factor: float = 2.0  # of "capacity" and "all_to_all"; 1 is an even load
    attention_implementation: str = "auto"

    def __post_init__(self) -> None:
        require_positive(
            self,
            *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
            *("num_key_value_heads", "num_experts", "num_experts_per_tok"),
            *("max_position_embeddings", "rms_norm_eps", "rope_theta", "initializer_range"),
            "expert_capacity_factor",
        )
        require_not_negative(self, "router_aux_loss_factor", "default_context", "attention_reach")
        require(
            len(self.embedding_range) in (0, 2) and all(r > 0 for r in self.embedding_range),
            "embedding_range must be two positive numbers, of the gate and of the value, or (), "
            f"but is {self.embedding_range}",
        )
        require(
            self.default_context <= self.max_position_embeddings,
            f"default_context ({self.default_context}) exceeds max_position_embeddings "
            f"({self.max_position_embeddings})",
        )
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        require(
            self.hidden_size % heads == 0,
            f"num_attention_heads ({heads}) must divide hidden_size ({self.hidden_size})",
        )
        require(
            self.head_dim % 2 == 0,
            f"rotary embeddings need an even head size, but hidden_size ({self.hidden_size}) / "
            f"num_attention_heads ({heads}) is {self.head_dim}",
        )
        require(
            heads % kv_heads == 0,
            f"num_key_value_heads ({kv_heads}) must divide num_attention_heads ({heads})",
        )
        require(
            self.num_experts_per_tok <= self.num_experts,
            f"num_experts_per_tok ({self.num_experts_per_tok}) must be at most num_experts "
            f"({self.num_experts})",
        )
        require(
            self.use_dense or self.intermediate_size % self.num_experts_per_tok == 0,
            f"num_experts_per_tok ({self.num_experts_per_tok}) must divide intermediate_size "
            f"({self.intermediate_size}): a routed expert is that much narrower",
        )
        require(
            not (self.use_dense and self.router_bias),
            "router_bias is True, but use_dense has no router",
        )
        require(
            self.shared_expert or not self.use_dense,
            "shared_expert is False, but use_dense has no experts; leave it at True",
        )
        horizons = self.horizon_lengths
        increasing = all(a < b for a, b in zip((0, *horizons), horizons, strict=False))
        require(
            len(horizons) > 0 and increasing,
            f"horizon_lengths must be positive and increasing, but are {horizons}",
        )
        levels = self.quantile_levels
        require(
            all(a < b for a, b in itertools.pairwise((0.0, *levels, 1.0))),
            f"quantile_levels must increase and be in (0, 1), but are {levels}",
        )
        require_choice(self, "forecast_plan", FORECAST_PLANS)
        require_choice(self, "dtype", DTYPES)
        require_choice(self, "remat", REMAT_POLICIES)
        require_choice(self, "expert_implementation", EXPERT_IMPLEMENTATIONS)
        require_choice(self, "expert_exchange", EXPERT_EXCHANGES)
        require_choice(self, "attention_implementation", ATTENTION_IMPLEMENTATIONS)

    @property
    def head_dim(self) -> int:
        """Width of one attention head, H."""
        return self.hidden_size // self.num_attention_heads

    @property
    def expert_size(self) -> int:
        """Hidden width of one routed expert, F."""
        return self.intermediate_size // self.num_experts_per_tok


# Fields of a published config.json that say nothing about the computation.
_IGNORED_PUBLISHED = frozenset(
    ("architectures", "auto_map", "model_type", "torch_dtype", "transformers_version")
    + ("use_cache", "_name_or_path", "tie_word_embeddings", "hidden_act", "attention_dropout")
    + ("input_size",)
)
# Those of them that would change the computation if they held anything else.
_FIXED_PUBLISHED: dict[str, Any] = {
    "model_type": "time_moe",
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "input_size": 1,
}
COMPUTE_FIELDS = (
    *("dtype", "remat", "expert_implementation", "expert_exchange", "expert_capacity_factor"),
    "attention_implementation",
)
INITIALISATION_FIELDS = ("embedding_range", "attention_reach")
_UNPUBLISHED = (
    *COMPUTE_FIELDS,
    *("router_bias", "shared_expert", "quantile_levels", "forecast_plan", "default_context"),
    *INITIALISATION_FIELDS,
)


def model_config_from_published(published: Mapping[str, Any]) -> tuple[ModelConfig, list[str]]:
    """Reads a published `config.json`.

    Args:
      published: the parsed JSON object.

    Returns:
      the typed configuration, and the names of the fields that were not understood.

    Raises:
      ConfigError: a field holds what this library cannot compute, or a needed one is missing.
    """
    for name, value in _FIXED_PUBLISHED.items():
        require(
            published.get(name, value) == value,
            f"config.json: {name} is {published.get(name)!r}; only {value!r} can be computed",
        )
    known = {f.name for f in dataclasses.fields(ModelConfig)} - {*_UNPUBLISHED}
    needed = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    missing = [name for name in needed if name not in published]
    require(not missing, f"config.json lacks {', '.join(missing)}: is it a Time-MoE model?")
    values = {name: value for name, value in published.items() if name in known}
    values.setdefault("num_key_value_heads", values["num_attention_heads"])
    unknown = sorted(set(published) - known - _IGNORED_PUBLISHED)
    return from_mapping(ModelConfig, values, "config.json"), unknown


def model_config_to_published(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` under which the published implementation loads these weights.

    Raises:
      ConfigError: the published implementation does not have such a model.
    """
    require(not config.router_bias, "router_bias is True; the published format has no such bias")
    require(
        config.shared_expert,
        "shared_expert is False; the published format has no model without a shared expert",
    )
    require(
        not config.quantile_levels,
        f"quantile_levels is {config.quantile_levels}; the published format has no heads for them",
    )
    require(
        config.forecast_plan == "fitting",
        f"forecast_plan is {config.forecast_plan!r}; the published implementation has 'fitting'",
    )
    values = dataclasses.asdict(config)
    for name in _UNPUBLISHED:
        del values[name]
    return {
        "architectures": ["TimeMoeForPrediction"],
        **_FIXED_PUBLISHED,
        **values,
        "horizon_lengths": list(config.horizon_lengths),
        "use_cache": True,
    }


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Everything a training run is determined by."""

    model: ModelConfig
    data: DataConfig
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    profile: ProfileConfig = dataclasses.field(default_factory=ProfileConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        require(
            self.data.length <= self.model.max_position_embeddings,
            f"data.length ({self.data.length}) exceeds model.max_position_embeddings "
            f"({self.model.max_position_embeddings})",
        )
        require(
            self.optimizer.warmup_steps < self.train.num_steps,
            f"optimizer.warmup_steps ({self.optimizer.warmup_steps}) must be less than "
            f"train.num_steps ({self.train.num_steps})",
        )
        require(
            self.optimizer.warmup_steps + self.optimizer.decay_steps <= self.train.num_steps,
            f"optimizer.warmup_steps ({self.optimizer.warmup_steps}) and optimizer.decay_steps "
            f"({self.optimizer.decay_steps}) must together be at most train.num_steps "
            f"({self.train.num_steps})",
        )
        require_not_negative(self, "seed")
        require(
            not (self.loss.max_steps_per_position and self.model.quantile_levels),
            f"loss.max_steps_per_position is {self.loss.max_steps_per_position}, but "
            "model.quantile_levels asks for quantile heads, which are read at every position",
        )


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Which checkpoint to score on which datasets, and how."""

    checkpoint: str = ""  # empty: the baselines alone
    data_dir: str = "data"
    datasets: tuple[str, ...] = ("ETTh1", "ETTh2", "ETTm1", "ETTm2", "weather")
    horizons: tuple[int, ...] = (96, 192, 336, 720)
    context_length: int | None = None  # None: the published one of each horizon
    protocol: str = "complete"
    normalize: str = "none"
    dtype: str = "auto"
    batch_size: int = 64
    max_windows: int | None = None  # None: every window
    output_dir: str = "out/eval"

    def __post_init__(self) -> None:
        require_positive(self, "batch_size")
        require(len(self.datasets) > 0, "datasets is empty; name at least one")
        require(
            len(self.horizons) > 0 and min(self.horizons) > 0,
            f"horizons must be positive, but are {self.horizons}",
        )
        for name in ("context_length", "max_windows"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{name} must be positive, but is {value}")
        require_choice(self, "protocol", PROTOCOLS)
        require_choice(self, "normalize", NORMALIZATIONS)
        require_choice(self, "dtype", ("auto", *DTYPES))


def from_mapping(cls: type[Any], mapping: Mapping[str, Any], where: str = "config") -> Any:
    """Builds a frozen configuration from nested mappings, checking every name, type and value.

    Args:
      cls: the dataclass to build.
      mapping: its fields; a `ConfigDict` or a plain dictionary.
      where: how to name the mapping in an error.

    Raises:
      ConfigError: a field is unknown, missing or of the wrong type, or a value is impossible.
    """
    if not isinstance(mapping, Mapping) and not hasattr(mapping, "items"):
        raise ConfigError(f"{where} must be a mapping of fields, but is {mapping!r}")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for name, value in mapping.items():
        if name not in fields:
            close = difflib.get_close_matches(name, fields, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(fields)}"
            raise ConfigError(f"{where} has no field {name!r}; {hint}")
        values[name] = _typed(hints[name], value, f"{where}.{name}")
    for name, field in fields.items():
        required = field.default is field.default_factory is dataclasses.MISSING
        if name not in values and required:
            raise ConfigError(f"{where} lacks the field {name!r}")
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _typed(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type `hint`, where that loses nothing."""
    if dataclasses.is_dataclass(hint):
        return from_mapping(typing.cast(type, hint), value, where)
    if typing.get_origin(hint) is types.UnionType:
        return None if value is None else _typed(typing.get_args(hint)[0], value, where)
    if typing.get_origin(hint) is tuple:
        return _typed_tuple(typing.get_args(hint)[0], value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not hint:
        raise ConfigError(f"{where} must be of type {hint.__name__}, but is {value!r}")
    if hint is float and not math.isfinite(value):
        raise ConfigError(f"{where} must be finite, but is {value!r}")
    return value


def _typed_tuple(item: type, value: Any, where: str) -> tuple[Any, ...]:
    """A tuple of `item` from a sequence or, as on a command line, a comma-separated string."""
    if isinstance(value, str):
        parts: list[Any] = [part.strip() for part in value.split(",") if part.strip()]
        try:
            parts = [item(part) for part in parts]
        except ValueError:
            raise ConfigError(
                f"{where} must be {item.__name__} values separated by commas, but is {value!r}"
            ) from None
    elif isinstance(value, Sequence):
        parts = list(value)
    else:
        raise ConfigError(f"{where} must be a sequence, but is {value!r}")
    return tuple(_typed(item, part, f"{where}[{i}]") for i, part in enumerate(parts))
