"""What a family of models gives to the rest of the library, and the registry of families by name.

A family is a folder of `models` with a `Family`, and one entry of `_BUNDLED` below. Checkpoints,
training, forecasting and evaluation know this file alone: `config.model.family` picks a family, and
no other room knows the name of a parameter.

A univariate family reads [B, T] and forecasts every variate by itself. A joint family reads
[B, C, T], C aligned series of one window, of which those that are absent are masked throughout.
Everything that holds for [B, T] holds for [B, C, T] with an axis more: masks, targets, predictions
[B, C, T, P], forecasts [B, C, H].

A family that reads patches has a stride s: T points, a multiple of s, have N = T / s positions, and
position k predicts what follows point (k + 1) s - 1. With the stride 1 that is every point.
"""

import dataclasses
import functools
import importlib
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from timemoe_jax.config import (
    DTYPES,
    require,
    require_choice,
    require_not_negative,
    require_positive,
)
from timemoe_jax.errors import ConfigError

if TYPE_CHECKING:
    from flax import nnx

    from timemoe_jax.models.decoding import Decoded
    from timemoe_jax.runtime.partitioning import Rules

DEFAULT_FAMILY = "time_moe"
FORECAST_PLANS = ("fitting", "covering")
# Families that come with the library, and the module that holds the `FAMILY` of each.
_BUNDLED = {
    name: f"timemoe_jax.models.{name}.family"
    for name in ("time_moe", "seg_moe", "mohets", "time_tracker")
}
_REGISTERED: dict[str, "Family"] = {}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The fields that every family's config has; a family adds those of its architecture."""

    family: str = DEFAULT_FAMILY  # which family of models this is
    # Each head predicts so many points after a position.
    horizon_lengths: tuple[int, ...] = (1, 8, 32, 64)
    max_position_embeddings: int = 4096  # the most points of a context and its forecast
    # Beside each head one that says these quantiles of each value, in (0, 1) and increasing.
    quantile_levels: tuple[float, ...] = ()
    # Which heads a forecast reads. "fitting": the longest that fits into what remains, again and
    # again, as published; "covering": the shortest that covers what remains, else the longest.
    forecast_plan: str = "fitting"
    # Points that a forecast reads unless told otherwise; 0: as many as there are positions for.
    default_context: int = 0
    # Whether a forecast is the mean of that of a series and, upside down, of that of its negative,
    # so that both are forecast alike (arXiv 2110.03336). It takes twice the time.
    mirrored: bool = False
    dtype: str = "float32"  # of the matrix products

    def __post_init__(self) -> None:
        horizons = self.horizon_lengths
        increasing = all(a < b for a, b in itertools.pairwise((0, *horizons)))
        require(
            len(horizons) > 0 and increasing,
            f"horizon_lengths must be positive and increasing, but are {horizons}",
        )
        levels = self.quantile_levels
        require(
            all(a < b for a, b in itertools.pairwise((0.0, *levels, 1.0))),
            f"quantile_levels must increase and be in (0, 1), but are {levels}",
        )
        pairs = zip(levels, reversed(levels), strict=True)
        require(
            not self.mirrored or all(math.isclose(a + b, 1.0) for a, b in pairs),
            "mirrored is True, which takes a level of 1 - a for every level a, but quantile_levels "
            f"are {levels}",
        )
        require_positive(self, "max_position_embeddings")
        require_not_negative(self, "default_context")
        require(
            self.default_context <= self.max_position_embeddings,
            f"default_context ({self.default_context}) exceeds max_position_embeddings "
            f"({self.max_position_embeddings})",
        )
        require_choice(self, "forecast_plan", FORECAST_PLANS)
        require_choice(self, "dtype", DTYPES)

    @property
    def longest_context(self) -> int:
        """The most points read unless told otherwise; 0 as in `default_context`."""
        return self.default_context

    @classmethod
    def class_of(cls, mapping: Any, where: str) -> type["ModelConfig"]:
        """The config class of the family that a mapping names; `from_mapping` asks for it."""
        if cls is not ModelConfig:
            return cls
        try:
            return get_family(mapping.get("family", DEFAULT_FAMILY)).config
        except ConfigError as error:
            raise ConfigError(f"{where}.{error}") from None


class ModelOutput(NamedTuple):
    """What a model says at its N positions of an input [B, T], or [B, C, T] of a joint model.

    N is T divided by the stride of the family.
    """

    # Horizon P -> the P values after each position [B, *C, N, P]; of an encoder the value P points
    # after it alone, [B, *C, T, 1].
    predictions: dict[int, Any]
    # [B, *C, N, D], what the heads read: D is the width of the model, or more if they read more.
    hidden: Any
    router_logits: Any = None  # [L, B, *C, N, E]; None of a model without routers
    dropped: Any = None  # [L], (token, choice) pairs that no expert computed; None likewise
    # Of a model whose decisions are not of single points: which of the logits are decisions about
    # anything, [L, B, *C, T] bool, and what dropout left of the routers' probabilities, if anything
    # was drawn, [L, B, *C, T, E].
    counts: Any = None
    probabilities: Any = None


class Dimension(NamedTuple):
    """A size of a model that an axis of the mesh must divide."""

    name: str  # as an error names it
    size: int
    axis: str  # of the mesh


class PublishedTensor(NamedTuple):
    """How one parameter is named in published weights."""

    path: str  # of the parameter, dotted
    name: str  # of the tensors; {layer} and {expert} run over the leading axes of the parameter
    transpose: bool = False  # PyTorch keeps linear maps as [out, in]
    # Where a parameter is two tensors, side by side along its last axis: the name of the second,
    # and how much of the axis is the first.
    second: str = ""
    first_size: int = 0
    experts: tuple[int, ...] = ()  # which ones a leading axis holds; () is all of them


class PublishedFormat:
    """The weights of a family as its authors publish them: `config.json` and safetensors."""

    model_type: ClassVar[str]  # of config.json

    def recognizes(self, published: Mapping[str, Any]) -> bool:
        """Whether a config.json is of such a model."""
        return published.get("model_type") == self.model_type

    def constants(self, config: Any) -> dict[str, Any]:
        """Tensors of published weights that are no parameters: written, and ignored when read."""
        return {}

    def read_config(self, published: Mapping[str, Any]) -> tuple[Any, list[str]]:
        """The typed config, and the names of the fields of config.json that were not understood."""
        raise NotImplementedError

    def write_config(self, config: Any) -> dict[str, Any]:
        """The config.json of a model; a ConfigError where the published code has no such model."""
        raise NotImplementedError

    def tensors(self, config: Any) -> Iterator[PublishedTensor]:
        """The name of every parameter."""
        raise NotImplementedError

    def axis_sizes(self, config: Any) -> dict[str, int]:
        """The sizes of `layer` and `expert`, in the order of a parameter's leading axes."""
        raise NotImplementedError


class Family:
    """One family of models; a subclass says what is its own.

    A model is an `nnx.Module` made by `make(config, rngs)`. It is called with x [B, T] float,
    mask [B, T] bool and segments [B, T] int or None, and returns a `ModelOutput`. It has its
    `config`, and `head` and, where it has quantile levels, `quantile_head`: from hidden states
    [*N, D] and a horizon P to [*N, P] and [*N, P, Q].
    """

    name: ClassVar[str]
    config: ClassVar[type[ModelConfig]]
    joint: ClassVar[bool] = False
    scoring: ClassVar[str] = "softmax"  # of its routers: see `nn.experts.routing`
    # Whether an update draws something within the model: it is then called with `draws` [B], uint32
    # numbers that follow from the seed and the update, one for each window. Without it draws none.
    draws: ClassVar[bool] = False
    # Whether a model reads its window both ways, and says the window that begins `horizon_lengths`
    # points later: it is not causal, it reads at most `max_position_embeddings` points, and goes
    # any number of points beyond them. It takes univariate and joint windows alike, a `key` for
    # what is drawn while training, and packed windows never.
    encoder: ClassVar[bool] = False
    published: ClassVar[PublishedFormat | None] = None
    # Fields of the config that do not change what the parameters compute beyond rounding, and so
    # are no part of an exported model.
    compute_fields: ClassVar[tuple[str, ...]] = ("dtype",)
    # Those under which a run may go on from parameters of another value, besides.
    free_fields: ClassVar[tuple[str, ...]] = ("forecast_plan", "default_context", "mirrored")
    # Parts that a trained model may be given: its point forecasts stay the same, or nearly so.
    addable_fields: ClassVar[tuple[str, ...]] = ("quantile_levels",)
    # Those of them that say nothing where their parameters are 0, with the names of these.
    silent_fields: ClassVar[Mapping[str, str]] = {}
    # Those under which parameters of another value are made to fit: see `converted`.
    convertible_fields: ClassVar[tuple[str, ...]] = ()
    # Parameters by their dotted paths: those of routed experts, those that are computed in float32
    # always, those that weight decay leaves alone (by the names in their paths), and matrices whose
    # updates Muon does not orthogonalize: an embedding is a vector for each feature, and the
    # columns of a router, of experts that may be unused, are not to be made alike.
    experts: ClassVar[str] = r"(^|\.)experts\."
    float32: ClassVar[str] = r"norm|router|selection_bias"
    vectors: ClassVar[frozenset[str]] = frozenset({"bias", "scale", "selection_bias"})
    no_matrices: ClassVar[frozenset[str]] = frozenset({"embed", "router"})
    # What fine-tuning may train or leave alone, beside the routed experts.
    parts: ClassVar[Mapping[str, str]] = {
        "attention": r"(^|\.)attention\.",
        "shared": r"(^|\.)(shared\.|ffn\.(gate|up|down)\.)",
        "heads": r"(^|\.)(quantile_|copy_|anchor_|weigh_)?heads\.",
        "router": r"(^|\.)router\.",
    }

    def make(self, config: Any, rngs: "nnx.Rngs") -> "nnx.Module":
        """A model with initial parameters."""
        raise NotImplementedError

    def converted(self, params: Any, then: Any, config: Any) -> Any:
        """Parameters of a model of config `then` for one that differs in `convertible_fields`.

        Raises:
          ConfigError: they cannot be made to fit.
        """
        return params

    def for_inference(self, config: Any, dtype: str) -> Any:
        """The config under which parameters forecast, in a dtype."""
        return dataclasses.replace(config, dtype=dtype)

    def mixed(self, config: Any, mixing: str, beside: int = 0, known: int = 0) -> Any:
        """The same parameters, read so that variates inform each other as `mixing` says.

        Empty, it stays as it is. The last `beside` variates of a window are covariates, of which
        the last `known` are known ahead.

        Raises:
          ConfigError: a model of this family has no mixing, or reads no covariates.
        """
        if mixing:
            raise ConfigError(
                f"mixing is {mixing!r}, but a model of the family {self.name!r} reads every series "
                "by itself; leave it empty"
            )
        if beside:
            raise ConfigError(
                f"{beside} variates are covariates, but a model of the family {self.name!r} learns "
                "nothing of them; leave them out of fine-tuning, and give them to the forecast, "
                "which takes their effect off the series"
            )
        return config

    def rules(self) -> "Rules":
        """How parameters are split over a mesh: see `runtime.partitioning`."""
        return ()

    def stride(self, config: Any) -> int:
        """Points from one position of the model to the next."""
        return 1

    def least_context(self, config: Any) -> int:
        """Points that come before any forecast that may be trained on; 0 where none need to."""
        return 0

    def scored_variates(self, config: Any, count: int) -> int:
        """How many of the `count` variates of a training window are forecast, the first ones.

        A model of which some are not is called with `ahead`, values and mask [B, C, F] of the
        points after its input.
        """
        return count

    def decode(self, model: Any, x: Any, mask: Any, horizon: int) -> "Decoded":
        """Forecasts after contexts x [B, *C, T]; the last point is observed, of a variate at least.

        By default the whole context is read anew for every head.
        """
        from timemoe_jax.models.decoding import decode_uncached

        return decode_uncached(model, x, mask, horizon, self.stride(model.config))

    def decode_known(self, model: Any, x: Any, mask: Any, horizon: int) -> "Decoded":
        """As `decode`, of x [B, C, T + horizon] whose last points are those to forecast.

        There the mask is True where a variate is known, such as a covariate.
        """
        raise ConfigError(
            f"models of the family {self.name!r} read no variates that are known ahead"
        )

    def has_point_heads(self, config: Any) -> bool:
        """Whether points have heads of their own; without them a point is the median of quantiles.

        A model without them is trained by the pinball loss alone.
        """
        return True

    def squashes(self, config: Any) -> bool:
        """Whether heads of quantiles say asinh(value), which is what losses then compare.

        Such a model has `squashed_quantiles` beside `quantile_head`, with the same arguments.
        """
        return False

    def link_probability(self, model: Any, x: Any, mask: Any) -> Any:
        """How probable it is that each variate of contexts reads each other one, [B, C, C]."""
        raise NotImplementedError

    def link_threshold(self, config: Any) -> float:
        """The probability above which a link is in use; a ConfigError of a model without links."""
        raise ConfigError(f"models of the family {self.name!r} have no graph of variates")

    def idle_parameters(self, config: Any, params: Any) -> int:
        """How many parameters a token does not activate."""
        return 0

    def selection_bias(self, params: Any) -> Any:
        """The variable [L, E] that an even load moves; None of a model without one."""
        return None

    def experts_per_token(self, config: Any) -> int:
        """K of the routers; 0 of a model without routers."""
        return 0

    def router_loss_factor(self, config: Any) -> float:
        """What the balancing loss is multiplied by; 0 leaves it out."""
        return 0.0

    def bytes_per_series(self, config: Any, context: int, horizon: int) -> int:
        """About what forecasting one series of a batch takes in memory."""
        return 64 * (context + horizon)

    def shortest_context(self, config: Any) -> int:
        """The fewest points that a model reads; a shorter context is filled up."""
        return 1

    def covariate_variates(self, config: Any) -> int:
        """How many variates a model reads together with marks of the calendar; 0: it reads none.

        `decode` of such a family takes `marks`, and its model does.
        """
        return 0

    def dimensions(self, config: Any) -> Sequence[Dimension]:
        """What the axes of a mesh must divide; a ConfigError of a model that has no such axis."""
        return ()

    def resized(self, config: Any, hidden_size: int, num_layers: int, num_heads: int) -> Any:
        """The same architecture in another size, for a scaling study."""
        raise ConfigError(f"models of the family {self.name!r} cannot be resized")

    def dense_like(self, config: Any) -> Any:
        """The dense model with as nearly as possible the parameters that this one activates."""
        raise ConfigError(f"the family {self.name!r} has no dense models")

    def token_routed(self, config: Any, equal: str = "") -> Any:
        """The model whose router decides for every token, not for segments; itself by default.

        "" changes the decisions alone. "activated" and "total" are the family's usual model without
        segments, with as nearly as possible as many such parameters as this one.
        """
        return config

    def choices(self, config: Any, length: int, segmented: bool) -> list[str]:
        """Lines for the console: what "auto" stands for, on this machine, at a window length."""
        return []


def register(family: Family) -> None:
    """Makes a family known by its name, so that `config.model.family` finds it.

    Raises:
      ConfigError: another family has the name.
    """
    name = family.name
    if name in _BUNDLED or _REGISTERED.get(name, family) is not family:
        raise ConfigError(f"there is a family {name!r} already; give this one another name")
    _REGISTERED[name] = family


def family_names() -> tuple[str, ...]:
    """The names of all families."""
    return (*_BUNDLED, *_REGISTERED)


def get_family(name: str) -> Family:
    """The family of a name.

    Raises:
      ConfigError: there is none.
    """
    if name in _BUNDLED:
        return importlib.import_module(_BUNDLED[name]).FAMILY
    if name not in _REGISTERED:
        raise ConfigError(f"family is {name!r}; known: {', '.join(family_names())}")
    return _REGISTERED[name]


def family_of(config: ModelConfig) -> Family:
    """The family of a model, by its config."""
    return get_family(config.family)


def published_family(published: Mapping[str, Any]) -> Family:
    """The family that recognizes a published config.json; Time-MoE where none does."""
    families = [get_family(name) for name in family_names()]
    found = [f for f in families if f.published and f.published.recognizes(published)]
    return found[0] if found else get_family(DEFAULT_FAMILY)


def abstract_model(config: ModelConfig) -> tuple["nnx.GraphDef", "nnx.State"]:
    """The structure and the parameter shapes of a model, without allocating any."""
    import jax

    graph, params = _abstract_model(family_of(config), config)
    return graph, jax.tree.map(lambda shape: shape, params)  # a copy, which a caller may change


# A model is traced once, though loading and forecasting each ask for its shapes.
@functools.lru_cache(maxsize=8)
def _abstract_model(family: Family, config: ModelConfig) -> tuple["nnx.GraphDef", "nnx.State"]:
    from flax import nnx

    model = nnx.eval_shape(lambda: family.make(config, nnx.Rngs(0)))
    graph, params = nnx.split(model, nnx.Param)
    return graph, params


def create_params(config: ModelConfig, seed: int) -> "nnx.State":
    """Initial parameters, made by one compiled program."""
    import jax
    from flax import nnx

    family = family_of(config)

    def create() -> nnx.State:
        return nnx.state(family.make(config, nnx.Rngs(seed)), nnx.Param)

    return jax.jit(create)()


def count_parameters(config: ModelConfig) -> tuple[int, int]:
    """Total and activated parameters, from shapes alone."""
    import jax

    _, params = abstract_model(config)
    total = sum(p.size for p in jax.tree.leaves(params))
    return total, total - family_of(config).idle_parameters(config, params)


def with_parameters(of_width: Callable[[int], Any], wanted: int, which: int) -> Any:
    """The model whose width brings its parameters nearest to a number of them.

    Args:
      of_width: the config of a width, in which its parameters are linear.
      wanted: how many there are to be.
      which: of `count_parameters`: 0, all; 1, the activated ones.
    """
    one, two = (count_parameters(of_width(width))[which] for width in (1, 2))
    return of_width(max(1, round(1 + (wanted - one) / (two - one))))


def is_expert(family: Family, path: str) -> bool:
    """Whether a parameter, by its dotted path, is one of routed experts."""
    return re.search(family.experts, path) is not None
