"""Zero-shot evaluation on the small real series that the library carries.

python eval_main.py --config=configs/eval_samples.py --config.checkpoint=mini

Hardware and time: two CPU cores, under a minute for the smoke model.
"""

import ml_collections

from configs import eval_ltsf
from timemoe_jax.data import samples


def get_config() -> ml_collections.ConfigDict:
    config = eval_ltsf.get_config()
    config.data_dir = ""
    config.datasets = ",".join(str(samples.sample_path(name)) for name in samples.SAMPLES)
    config.horizons = (48,)
    config.context_length = 288
    config.normalize = "instance"
    config.max_windows = 256
    config.output_dir = "out/demo/eval"
    return config
