"""Segment against token routing at equal parameters, each with three seeds.

python study_main.py --config=configs/segments.py:encoder-ETTh1 \
    --workdir=out/segments/encoder-ETTh1 --config.base.data.path=PATH

and so for encoder and decoder, each on ETTh1, ETTm1 and corpus.

PATH is the CSV file, or a corpus in the Time-300B layout. `full` is the model with segments: a
small Seg-MoE of windows of 256 points (encoder), or a small Time-MoE whose points follow the first
one of their segment (decoder). Beside it, with the same data, updates and seeds:

    token_routing    the same, but every token has its own decision: as many parameters, in all and
                     activated (but for the router's own), and as many operations

In a decoder no parameter depends on the segments at all. For the encoder there are two more, if
`--config.ablations.variants=full,token_routing,token_activated,token_total` names them: Seg-MoE
without segments, whose experts are as wide as gives it the activated parameters of `full`, or all
of them; the first has twice as many in all, the second half as many activated.

Of ETT the
published train rows are trained on, and all that follow are scored; of the corpus three sources are
held out.
Expected result: `results.md` in each workdir. `benchmarks/segments.py` runs all six studies and
puts them beside one another (docs/studies.md).
"""

from typing import Any

import ml_collections

from configs import ablations, seg_moe_small
from timemoe_jax.config import as_config_dict
from timemoe_jax.evaluation.studies.config import AblationsConfig, ScoreConfig

LENGTH = 256  # points of a window
DATA: dict[str, dict[str, Any]] = {
    "ETTh1": {"train_rows": 8640, "validation_rows": 5760, "stride": 1},
    "ETTm1": {"train_rows": 34560, "validation_rows": 23040, "stride": 1},
    "corpus": {
        "validation_sources": "energy/uk_grid_30min,nature/valencia_air_1h,"
        "transport/melbourne_pedestrians_1h",
        "stride": 16,
        "mixing": "power",
    },
}


def encoder() -> ml_collections.ConfigDict:
    """Half as wide as Seg-MoE small, with three of its four layers, and less dropout."""
    config = seg_moe_small.get_config()
    with config.unlocked():
        config.model.hidden_size = 64
        config.model.intermediate_size = 128
        config.model.num_hidden_layers = 3
        config.model.segment_lengths = (3, 5, 5)
        config.model.max_position_embeddings = LENGTH
        config.model.dropout = 0.1
        config.model.drop_path = 0.1
        config.optimizer.learning_rate = 1e-3
        config.train.num_steps = 250
        config.train.batch_size = 16
    return config


def decoder() -> ml_collections.ConfigDict:
    """The model of the ablations, with one head and real data alone."""
    config = ablations.small_nano()
    with config.unlocked():
        config.model.segment_lengths = (3, 5, 5)
        config.model.horizon_lengths = (32,)
        config.model.default_context = LENGTH
        config.model.attention_reach = LENGTH
        config.loss.max_steps_per_position = 8
        config.data.length = LENGTH
        config.data.future = 32
        config.data.context_min = 128
        config.data.resolutions = ""
        config.data.mixing = "points"
        config.data.mixing_weights = ""
        config.data.validation_sources = ""
        config.data.synthetic_share = 0.0
        config.data.synthetic_families = ""
        config.optimizer.schedule = "cosine"
        config.optimizer.decay_steps = 0
        config.optimizer.warmup_steps = 10
        config.train.num_steps = 100
        config.train.batch_size = 16
    return config


FAMILIES = {"encoder": encoder, "decoder": decoder}


def get_config(which: str = "encoder-ETTh1") -> ml_collections.ConfigDict:
    family, _, data = which.partition("-")
    if family not in FAMILIES or data not in DATA:
        raise ValueError(
            f"configs/segments.py:{which} is no study; give one of {', '.join(FAMILIES)}, a "
            f"hyphen, and one of {', '.join(DATA)}"
        )
    config = ml_collections.ConfigDict()
    config.study = "ablations"
    config.base = FAMILIES[family]()
    for name, value in DATA[data].items():
        config.base.data[name] = value
    config.base.train.log_every = 50
    config.base.train.checkpoint_every = 400
    config.base.train.eval_every = 0
    config.base.train.eval_batches = 16
    config.base.train.keep_checkpoints = 1
    config.ablations = as_config_dict(AblationsConfig)
    config.ablations.variants = "full,token_routing"
    config.score = as_config_dict(ScoreConfig)
    config.score.context_length = LENGTH
    config.lock()
    return config
