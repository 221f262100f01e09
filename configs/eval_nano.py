"""Zero-shot evaluation of the bundled model on ETT and Weather, as its model card reports it.

python eval_main.py --config=configs/eval_nano.py --config.data_dir=DIR

Hardware and time: two CPU cores, 47 minutes for every window of every cell as two processes,
`--config.datasets=weather` and the others; `--config.max_windows=2000` scores an evenly spaced
subset in ten minutes.
"""

import ml_collections

from configs import eval_ltsf


def get_config() -> ml_collections.ConfigDict:
    config = eval_ltsf.get_config()
    config.checkpoint = "nano"
    # As it was trained: 512 points, standardized by their own statistics, at every horizon.
    config.context_length = 512
    config.normalize = "instance"
    config.batch_size = 256
    config.output_dir = "out/eval_nano"
    return config
