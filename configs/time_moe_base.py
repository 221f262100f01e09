"""Time-MoE base: 113M parameters, 50M activated, with the paper's recipe (arXiv 2409.16040).

python train_main.py --config=configs/time_moe_base.py --workdir=out/base \
    --config.data.path=PATH_TO_TIME_300B

Hardware and time: the paper trained on 128 A100-80G. One update sees 1024 x 4096 points, so on
fewer devices lower `train.batch_size` or raise `train.gradient_accumulation`. Expected result: the
zero-shot table of the paper (ETTh1 at 96: MSE 0.357, MAE 0.381). This configuration has not been
run to its end with this library.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.model = {
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "horizon_lengths": (1, 8, 32, 64),
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "initializer_range": 0.02,
        "use_dense": False,
        "apply_aux_loss": True,
        "router_aux_loss_factor": 0.02,
        "router_bias": False,
        "shared_expert": True,
        "quantile_levels": (),  # (0.1, 0.5, 0.9): also heads of these quantiles
        "forecast_plan": "fitting",
        "embedding_range": (),
        "attention_reach": 0,
        "default_context": 0,
        "dtype": "bfloat16",
        "remat": "full",
        "expert_implementation": "auto",
        "expert_exchange": "all_gather",
        "expert_capacity_factor": 2.0,
        "attention_implementation": "auto",
    }
    config.loss = {
        "huber_delta": 2.0,
        "balance_counts_padding": False,
        "router_z_loss_factor": 0.0,
        "quantile_factor": 1.0,
        "max_steps_per_position": 0,
    }
    config.data = {
        "path": "",
        "length": 4096,
        "future": 1,
        "standardisation": "series",
        "context_min": 64,
        "clip": 0.0,
        "policy": "windows",
        "packing_bleeds": False,
        "stride": 0,
        "resolutions": "",
        "mixing": "points",
        "mixing_power": 0.5,
        "mixing_weights": "",
        "max_epochs_per_source": 0.0,
        "validation_path": "",
        "validation_sources": "",
        "validation_fraction": 0.0,
        "synthetic_sequences": 0,
        "synthetic_length": 2048,
        "synthetic_share": 0.0,
        "synthetic_families": "",
        "synthetic_augmentation": 0.0,
        "shuffle": True,
        "num_threads": 8,
    }
    config.optimizer = {
        "algorithm": "adamw",
        "learning_rate": 1e-3,
        "end_learning_rate": 5e-5,
        "warmup_steps": 10_000,
        "schedule": "cosine",
        "decay_steps": 0,
        "b1": 0.9,
        "b2": 0.95,
        "eps": 1e-8,
        "weight_decay": 0.1,
        "weight_decay_exclude": "vectors",
        "matrix_rate_factor": 1.0,
        "muon_momentum": 0.95,
        "clip_norm": 1.0,
        "router_bias_rate": 1e-3,
    }
    config.train = {
        "num_steps": 100_000,
        "batch_size": 1024,
        "gradient_accumulation": 1,
        "log_every": 100,
        "checkpoint_every": 1000,
        "keep_checkpoints": 3,
        "eval_every": 1000,
        "eval_batches": 16,
        "max_nonfinite_in_row": 10,
        "init_from": "",
    }
    config.mesh = {"data": -1, "fsdp": 1, "expert": 1, "tensor": 1}
    config.profile = {"start": 10, "num_steps": 0}
    config.lock()
    return config
