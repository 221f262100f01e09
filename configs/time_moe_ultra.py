"""Time-MoE ultra: 2.4B parameters, 1.1B activated, with the paper's recipe (arXiv 2409.16040).

python train_main.py --config=configs/time_moe_ultra.py --workdir=out/ultra \
    --config.data.path=PATH_TO_TIME_300B

On 128 devices: --config.mesh.fsdp=16 --config.train.gradient_accumulation=8 (docs/scaling.md).

Hardware, time and caveats as for `time_moe_base.py`. Expected result: the zero-shot table of the
paper (ETTh1 at 96: MSE 0.349, MAE 0.379). Not run to its end with this library; the weights were
never published.
"""

import ml_collections

from configs import time_moe_base


def get_config() -> ml_collections.ConfigDict:
    config = time_moe_base.get_config()
    config.model.hidden_size = 1024
    config.model.intermediate_size = 4096
    config.model.num_hidden_layers = 36
    config.model.num_attention_heads = 16
    config.model.num_key_value_heads = 16
    return config
