"""Seg-MoE base with the published recipe, on any CSV: 40.6M parameters (arXiv 2601.21641).

python train_main.py --config=configs/seg_moe_base.py --workdir=out/seg_moe_base \
    --config.data.path=weather.csv --config.data.variates=21 \
    --config.data.train_rows=36887 --config.data.validation_rows=5270

As `configs/seg_moe_small.py`, of 25 epochs with 192 windows: 4,750 updates on Weather. Hardware: a
GPU. This configuration has not been run to its end with this library.
"""

import ml_collections

from configs import seg_moe_small


def get_config() -> ml_collections.ConfigDict:
    config = seg_moe_small.get_config()
    config.model.hidden_size = 256
    config.model.intermediate_size = 512
    config.model.num_hidden_layers = 6
    config.model.num_attention_heads = 8
    config.model.num_key_value_heads = 4
    config.model.num_experts = 8
    config.model.segment_lengths = (5, 5, 4, 4, 3, 3)
    config.train.num_steps = 4750
    config.train.batch_size = 192
    config.train.checkpoint_every = 190
    config.train.keep_checkpoints = 25
    return config
