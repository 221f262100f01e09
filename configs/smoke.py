"""A small Time-MoE on generated series: from nothing to forecasts in minutes.

python train_main.py --config=configs/smoke.py --workdir=out/smoke

Hardware and time: two CPU cores, about three minutes. Expected result: a validation loss of about
0.25, and a model that `timemoe forecast` takes. The picture in the README is nano's.
"""

import ml_collections

from configs import time_moe_base


def get_config() -> ml_collections.ConfigDict:
    config = time_moe_base.get_config()
    config.model.hidden_size = 64
    config.model.intermediate_size = 128
    config.model.num_hidden_layers = 3
    config.model.num_attention_heads = 2
    config.model.num_key_value_heads = 2
    config.model.initializer_range = 0.1
    # As far as it is trained: by default a forecast reads this many points of a series.
    config.model.max_position_embeddings = 384
    config.model.dtype = "float32"
    config.data.length = 384
    config.data.synthetic_sequences = 20_000
    config.data.synthetic_length = 769
    config.data.validation_fraction = 0.01
    config.data.num_threads = 0
    config.optimizer.learning_rate = 3e-3
    config.optimizer.end_learning_rate = 1e-5
    config.optimizer.warmup_steps = 30
    config.train.num_steps = 600
    config.train.batch_size = 20
    config.train.log_every = 50
    config.train.checkpoint_every = 200
    config.train.eval_every = 200
    config.train.eval_batches = 4
    return config
