"""The architecture of one Seg-MoE model."""

import dataclasses

from timemoe_jax.config import require, require_choice, require_positive
from timemoe_jax.models.encoder.config import TRAINING_FIELDS as ENCODER_TRAINING_FIELDS
from timemoe_jax.models.encoder.config import EncoderConfig

TOP1_WEIGHTS = ("probability", "one")


@dataclasses.dataclass(frozen=True)
class SegMoeConfig(EncoderConfig):
    """The architecture of one Seg-MoE model (arXiv 2601.21641); the defaults are the small one."""

    family: str = "seg_moe"
    # Tokens that a decision is of, for all layers or one for each; 1 routes every token.
    segment_lengths: tuple[int, ...] = (3, 5, 5, 5)
    # The weight of a single chosen expert. "probability": the router's, as the published code has
    # it since June 2026; "one": as in the runs behind the published results. Of several chosen
    # experts the weights are always divided by their sum.
    top1_weight: str = "probability"
    # "token": a routed expert computes the tokens of a segment one by one, as published; "segment":
    # it reads and gives the whole segment, as the abstract says, with s² times the parameters.
    expert_scope: str = "token"
    # "segment": the router reads a whole segment, as published; "token": each token by itself, and
    # decides for that alone, while the shared expert stays on segments.
    router_scope: str = "segment"
    router_temperature: float = 1.0  # what the router's logits are divided by
    router_dropout: float = 0.0  # rate of the router's probabilities, while training

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            len(self.segment_lengths) in (1, self.num_hidden_layers)
            and all(s > 0 for s in self.segment_lengths),
            f"segment_lengths must be one positive number or {self.num_hidden_layers}, one for "
            f"each layer, but is {self.segment_lengths}",
        )
        require_choice(self, "top1_weight", TOP1_WEIGHTS)
        require_choice(self, "expert_scope", ("token", "segment"))
        require_choice(self, "router_scope", ("segment", "token"))
        require(
            self.router_scope == "segment" or self.expert_scope == "token",
            "router_scope is 'token', but expert_scope 'segment': an expert that computes whole "
            "segments needs a decision for each; give one of the two",
        )
        require_positive(self, "router_temperature")
        require(
            0 <= self.router_dropout < 1,
            f"router_dropout must be in [0, 1), but is {self.router_dropout}",
        )

    def segment_of(self, layer: int) -> int:
        """The tokens of a decision in a layer; 1 in a model without experts."""
        if not self.num_experts:
            return 1
        return self.segment_lengths[layer if len(self.segment_lengths) > 1 else 0]

    @property
    def renormalizes(self) -> bool:
        """Whether the weights of the chosen experts are divided by their sum."""
        return self.num_experts_per_tok > 1 or self.top1_weight == "one"


TRAINING_FIELDS = (*ENCODER_TRAINING_FIELDS, "router_dropout")
