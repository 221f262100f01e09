"""MoHETS small with the published recipe, on any CSV with times (arXiv 2601.21866).

python train_main.py --config=configs/mohets_small.py --workdir=out/mohets_small \
    --config.data.path=weather.csv --config.data.variates=21 \
    --config.data.train_rows=36887 --config.data.validation_rows=5270

A window is of all variates of the table, in their order, and the calendar of its times: give
`data.variates` their number, which becomes the model's, too. 2.5M parameters on Weather. The
published notebook makes 2,830 updates of 128 windows there, 10 epochs, decays every parameter and
clips nothing; its result is MSE 0.238, the mean of 96, 192, 336 and 720 points. Rates and rows are
as `configs/seg_moe_small.py` says. Without covariates, and 2.3M parameters:
`--config.data.calendar=False --config.model.covariate_variates=0`. Hardware: a GPU. This
configuration has not been run to its end with this library.
"""

import ml_collections

from configs import seg_moe_small
from timemoe_jax.config import as_config_dict
from timemoe_jax.models.mohets.config import MohetsConfig


def get_config() -> ml_collections.ConfigDict:
    config = seg_moe_small.get_config()
    with config.unlocked():
        config.model = as_config_dict(MohetsConfig)
        config.data.length = config.model.get_ref("max_position_embeddings")
        config.model.covariate_variates = config.data.get_ref("variates")
    config.data.future = 24
    config.data.calendar = True
    config.optimizer.learning_rate = 3.2e-3
    config.optimizer.end_learning_rate = 1.2e-4
    config.optimizer.eps = 1e-8
    config.optimizer.weight_decay = 1e-4
    config.optimizer.weight_decay_exclude = "none"
    config.train.num_steps = 2830
    config.train.batch_size = 128
    config.train.checkpoint_every = 283
    config.train.keep_checkpoints = 10
    return config
