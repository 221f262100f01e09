"""Every check of a configuration, each with a message that names the field and the value."""

import dataclasses
import subprocess
import sys

import ml_collections
import pytest

from configs import time_moe_base
from timemoe_jax.config import as_config_dict, from_mapping
from timemoe_jax.data.config import DataConfig, parse_mixing_weights
from timemoe_jax.errors import ConfigError, TimeMoeError
from timemoe_jax.evaluation.config import EvalConfig
from timemoe_jax.evaluation.studies.config import AblationsConfig, ScalingConfig, ScoreConfig
from timemoe_jax.models.time_moe.config import TimeMoeConfig
from timemoe_jax.models.time_moe.published import TimeMoeFormat
from timemoe_jax.training.config import LossConfig, OptimizerConfig, RunConfig, TrainConfig


def error_of(make, *args, **kwargs) -> str:
    with pytest.raises(ConfigError) as caught:
        make(*args, **kwargs)
    return str(caught.value)


def data_config(**changes) -> DataConfig:
    return DataConfig(**{"path": "series", **changes})


def run_config(**changes) -> RunConfig:
    return RunConfig(**{"model": TimeMoeConfig(), "data": data_config(), **changes})


def test_defaults_are_valid():
    run = run_config()
    assert run.seed == 0
    assert EvalConfig().horizons == (96, 192, 336, 720)
    assert (TimeMoeConfig().head_dim, TimeMoeConfig().expert_size) == (32, 768)


def test_an_error_is_both_ours_and_a_value_error():
    with pytest.raises(TimeMoeError):
        LossConfig(huber_delta=0.0)
    with pytest.raises(ValueError, match="huber_delta"):
        LossConfig(huber_delta=0.0)


def test_mixing_weights():
    """Names may hold what a file's name may hold; the last colon parts them from the number."""
    found = parse_mixing_weights(" energy:1, nature/era5:0.5,web/a:b.npy:2e-1,")
    assert found == {"energy": 1.0, "nature/era5": 0.5, "web/a:b.npy": 0.2}


def test_which_batches_have_segments():
    fields = ({}, {"policy": "packing"}, {"policy": "packing", "packing_bleeds": True})
    assert [data_config(**f).segmented for f in fields] == [False, True, False]


def test_a_config_does_not_wait_for_jax():
    code = "import timemoe_jax.training.config, sys; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_configurations_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TimeMoeConfig().hidden_size = 3


POSITIVE = {
    TimeMoeConfig: (
        *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("num_key_value_heads", "num_experts", "num_experts_per_tok"),
        *("max_position_embeddings", "rms_norm_eps", "rope_theta", "initializer_range"),
    ),
    LossConfig: ("huber_delta",),
    data_config: ("length", "synthetic_length", "future", "context_min"),
    OptimizerConfig: ("learning_rate", "eps"),
    TrainConfig: (
        *("num_steps", "batch_size", "gradient_accumulation", "log_every", "checkpoint_every"),
        *("keep_checkpoints", "eval_batches", "max_nonfinite_in_row"),
    ),
    EvalConfig: ("batch_size", "context_length", "max_windows"),
}
NOT_NEGATIVE = {
    TimeMoeConfig: ("router_aux_loss_factor",),
    LossConfig: ("router_z_loss_factor", "max_steps_per_position"),
    data_config: (
        *("stride", "synthetic_sequences", "num_threads", "mixing_power", "max_epochs_per_source"),
        "clip",
    ),
    OptimizerConfig: (
        *("end_learning_rate", "warmup_steps", "weight_decay", "clip_norm", "decay_steps"),
    ),
    TrainConfig: ("eval_every",),
    run_config: ("seed",),
}


@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize(("make", "name"), [(m, n) for m, names in POSITIVE.items() for n in names])
def test_must_be_positive(make, name, value):
    assert error_of(make, **{name: value}) == f"{name} must be positive, but is {value}"


@pytest.mark.parametrize(
    ("make", "name"), [(m, n) for m, names in NOT_NEGATIVE.items() for n in names]
)
def test_must_not_be_negative(make, name):
    assert error_of(make, **{name: -1}) == f"{name} must not be negative, but is -1"


@pytest.mark.parametrize(
    ("make", "name"),
    [
        *((TimeMoeConfig, "dtype"), (TimeMoeConfig, "expert_implementation")),
        *((TimeMoeConfig, "attention_implementation"), (OptimizerConfig, "weight_decay_exclude")),
        *((data_config, "policy"), (data_config, "mixing"), (data_config, "standardization")),
        *((OptimizerConfig, "schedule"), (TimeMoeConfig, "forecast_plan")),
        *((EvalConfig, "protocol"), (EvalConfig, "normalize"), (EvalConfig, "dtype")),
    ],
)
def test_must_be_one_of_the_choices(make, name):
    message = error_of(make, **{name: "sideways"})
    assert message.startswith(f"{name} must be one of ")
    assert "'sideways'" in message


@pytest.mark.parametrize(
    ("make", "fields", "named"),
    [
        (TimeMoeConfig, {"num_attention_heads": 7}, ("num_attention_heads (7)", "(384)")),
        (TimeMoeConfig, {"num_attention_heads": 128}, ("even", "(384)", "(128)", "3")),
        (TimeMoeConfig, {"num_key_value_heads": 5}, ("num_key_value_heads (5)", "(12)")),
        (TimeMoeConfig, {"num_experts_per_tok": 9}, ("num_experts_per_tok (9)", "(8)")),
        (TimeMoeConfig, {"num_experts_per_tok": 5}, ("num_experts_per_tok (5)", "(1536)")),
        (TimeMoeConfig, {"horizon_lengths": ()}, ("horizon_lengths", "()")),
        (TimeMoeConfig, {"horizon_lengths": (0, 8)}, ("horizon_lengths", "(0, 8)")),
        (TimeMoeConfig, {"horizon_lengths": (8, 1)}, ("increasing", "(8, 1)")),
        (TimeMoeConfig, {"horizon_lengths": (8, 8)}, ("increasing", "(8, 8)")),
        (data_config, {"validation_fraction": 1.0}, ("validation_fraction", "1.0")),
        (data_config, {"validation_fraction": -0.1}, ("validation_fraction", "-0.1")),
        (
            data_config,
            {"validation_fraction": 0.1, "validation_path": "v"},
            ("validation_path ('v')", "validation_fraction (0.1)", "exclude"),
        ),
        (data_config, {"synthetic_sequences": 3}, ("path ('series')", "(3)", "exclude")),
        (data_config, {"path": ""}, ("path is empty", "synthetic_share are 0")),
        (data_config, {"packing_bleeds": True}, ("packing_bleeds", "'windows'")),
        (data_config, {"policy": "packing", "stride": 3}, ("stride is 3", "'packing'")),
        (data_config, {"mixing": "fixed"}, ("'fixed' needs weights", "energy:1")),
        (data_config, {"mixing_weights": "a:1"}, ("'points'", "'a:1'")),
        *(
            (data_config, {"mixing": "fixed", "mixing_weights": text}, ("mixing_weights", named))
            for text, named in (
                *(("energy", "'energy'"), (":1", "':1'"), ("a:x", "'a:x'"), ("a:-1", "'a:-1'")),
                *(("a:nan", "'a:nan'"), ("a:1,a:2", "'a' twice"), ("a:0", "above 0")),
            )
        ),
        (data_config, {"policy": "packing", "future": 2}, ("future is 2", "'packing'")),
        (
            data_config,
            {"policy": "packing", "standardization": "context"},
            ("standardization is 'context'", "'packing'", "it is for 'windows'"),
        ),
        *(
            (
                data_config,
                {"standardization": "context", "length": 32, "context_min": shortest},
                ("context_min must be from 2 to length (32)", f"is {shortest}"),
            )
            for shortest in (1, 33)
        ),
        (OptimizerConfig, {"decay_steps": 5}, ("decay_steps is 5", "'cosine'", "'stable'")),
        (
            OptimizerConfig,
            {"matrix_rate_factor": 3.0},
            ("matrix_rate_factor is 3.0", "'adamw'", "'muon'"),
        ),
        (
            OptimizerConfig,
            {"algorithm": "muon", "weight_decay_exclude": "none"},
            ("weight_decay_exclude is 'none'", "'muon'", "'vectors'"),
        ),
        (TimeMoeConfig, {"embedding_range": (1.0,)}, ("embedding_range", "two", "(1.0,)")),
        (TimeMoeConfig, {"embedding_range": (1.0, 0.0)}, ("embedding_range", "positive", "0.0")),
        (
            run_config,
            {"optimizer": OptimizerConfig(warmup_steps=600, schedule="stable", decay_steps=401)},
            (
                *("optimizer.warmup_steps (600)", "optimizer.decay_steps (401)"),
                "together be at most train.num_steps (1000)",
            ),
        ),
        (OptimizerConfig, {"b1": 1.0}, ("b1", "[0, 1)", "1.0")),
        (OptimizerConfig, {"b2": -0.5}, ("b2", "[0, 1)", "-0.5")),
        (OptimizerConfig, {"end_learning_rate": 0.1}, ("end_learning_rate (0.1)", "(0.001)")),
        (
            TrainConfig,
            {"batch_size": 10, "gradient_accumulation": 4},
            ("gradient_accumulation (4)", "batch_size (10)"),
        ),
        (run_config, {"data": data_config(length=5000)}, ("data.length (5000)", "(4096)")),
        (
            run_config,
            {"optimizer": OptimizerConfig(warmup_steps=1000)},
            ("optimizer.warmup_steps (1000)", "train.num_steps (1000)"),
        ),
        (EvalConfig, {"datasets": ()}, ("datasets is empty",)),
        (EvalConfig, {"horizons": ()}, ("horizons must be positive", "()")),
        (EvalConfig, {"horizons": (96, 0)}, ("horizons must be positive", "(96, 0)")),
    ],
)
def test_what_cannot_be_is_named_with_its_values(make, fields, named):
    message = error_of(make, **fields)
    assert all(part in message for part in named), message


@pytest.mark.parametrize(
    ("make", "fields"),
    [
        (TimeMoeConfig, {"num_experts_per_tok": 8}),
        (TimeMoeConfig, {"num_experts_per_tok": 5, "use_dense": True}),
        (TimeMoeConfig, {"num_key_value_heads": 1}),
        (TimeMoeConfig, {"router_aux_loss_factor": 0}),
        (data_config, {"validation_fraction": 0.999}),
        (data_config, {"path": "", "synthetic_sequences": 1}),
        (data_config, {"validation_path": "v"}),
        (OptimizerConfig, {"b1": 0.0, "end_learning_rate": 1e-3, "clip_norm": 0.0}),
        (run_config, {"data": data_config(length=4096)}),
        (run_config, {"optimizer": OptimizerConfig(warmup_steps=999)}),
        (
            run_config,
            {"optimizer": OptimizerConfig(warmup_steps=600, schedule="stable", decay_steps=400)},
        ),
        (data_config, {"standardization": "context", "length": 64, "context_min": 64}),
        (data_config, {"length": 8}),  # shorter than a context, of which there is none
        (EvalConfig, {"context_length": 1, "max_windows": None}),
    ],
)
def test_what_lies_on_the_boundary_is_fine(make, fields):
    make(**fields)


def test_from_mapping_builds_nested_configurations():
    config = from_mapping(
        RunConfig,
        {
            "model": {"hidden_size": 24, "num_hidden_layers": 2},
            "data": {"path": "here"},
            "optimizer": {"learning_rate": 1},
            "seed": 3,
        },
    )
    assert config.model == TimeMoeConfig(hidden_size=24, num_hidden_layers=2)
    assert config.optimizer.learning_rate == 1.0
    assert type(config.optimizer.learning_rate) is float
    assert (config.seed, config.data.path, config.train) == (3, "here", TrainConfig())


def test_from_mapping_reads_a_config_dict():
    given = ml_collections.ConfigDict({"model": {"horizon_lengths": (1, 4)}, "data": {"path": "p"}})
    assert from_mapping(RunConfig, given).model.horizon_lengths == (1, 4)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (
            {"model": {"hiden_size": 3}, "data": {"path": "p"}},
            "config.model has no field 'hiden_size'; did you mean 'hidden_size'?",
        ),
        ({"modle": {}}, "config has no field 'modle'; did you mean 'model'?"),
        (
            {"data": {"path": "p"}, "zzz": 1},
            "config has no field 'zzz'; known: model, data, loss, optimizer, train, mesh, profile, "
            "seed",
        ),
        ({"data": {"path": "p"}}, "config lacks the field 'model'"),
        ({"model": 3, "data": {"path": "p"}}, "config.model must be a mapping of fields, but is 3"),
        (
            {"model": {}, "data": {"path": "p", "length": 0}},
            "config.data: length must be positive, but is 0",
        ),
        (
            {"model": {"num_experts": "8"}, "data": {"path": "p"}},
            "config.model.num_experts must be of type int, but is '8'",
        ),
        (
            {"model": {}, "data": {"path": "p", "length": 5000}},
            "config: data.length (5000) exceeds model.max_position_embeddings (4096)",
        ),
    ],
)
def test_from_mapping_names_the_place(mapping, message):
    assert error_of(from_mapping, RunConfig, mapping) == message


@pytest.mark.parametrize(
    ("cls", "name", "value", "kind"),
    [
        (TrainConfig, "num_steps", True, "int"),
        (TrainConfig, "num_steps", "10", "int"),
        (TrainConfig, "num_steps", 10.0, "int"),
        (TrainConfig, "num_steps", None, "int"),
        (TrainConfig, "init_from", 3, "str"),
        (TrainConfig, "init_from", None, "str"),
        (LossConfig, "huber_delta", "2.0", "float"),
        (LossConfig, "huber_delta", True, "float"),
        (LossConfig, "balance_counts_padding", 1, "bool"),
        (LossConfig, "balance_counts_padding", "true", "bool"),
        (EvalConfig, "context_length", 1.5, "int"),
        (EvalConfig, "context_length", False, "int"),
    ],
)
def test_wrong_types(cls, name, value, kind):
    message = error_of(from_mapping, cls, {name: value}, "here")
    assert message == f"here.{name} must be of type {kind}, but is {value!r}"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_must_be_finite(value):
    message = error_of(from_mapping, LossConfig, {"huber_delta": value}, "loss")
    assert message == f"loss.huber_delta must be finite, but is {value!r}"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("96,192", (96, 192)),
        (" 96 , 192, ", (96, 192)),
        ("96", (96,)),
        ([96], (96,)),
        ((1, 2), (1, 2)),
    ],
)
def test_tuples_from_sequences_and_comma_separated_text(value, expected):
    assert from_mapping(EvalConfig, {"horizons": value}).horizons == expected


def test_tuples_of_text():
    config = from_mapping(EvalConfig, {"datasets": "ETTh1, weather"})
    assert config.datasets == ("ETTh1", "weather")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("96,many", "e.horizons must be int values separated by commas, but is '96,many'"),
        (96, "e.horizons must be a sequence, but is 96"),
        ([96, "7"], "e.horizons[1] must be of type int, but is '7'"),
        ([True], "e.horizons[0] must be of type int, but is True"),
        ("", "e: horizons must be positive, but are ()"),
    ],
)
def test_tuples_of_something_else(value, message):
    assert error_of(from_mapping, EvalConfig, {"horizons": value}, "e") == message


def test_optional_values():
    config = from_mapping(EvalConfig, {"context_length": None, "max_windows": 5})
    assert (config.context_length, config.max_windows) == (None, 5)


@pytest.mark.parametrize("field", dataclasses.fields(RunConfig), ids=lambda field: field.name)
def test_the_base_config_lists_every_field(field):
    """A locked config takes no other flags, so that what it lacks could not be set."""
    given = time_moe_base.get_config()[field.name]
    if dataclasses.is_dataclass(field.type):
        section = TimeMoeConfig if field.name == "model" else field.type
        assert set(given) == {f.name for f in dataclasses.fields(section)}


@pytest.mark.parametrize(
    "cls", [EvalConfig, OptimizerConfig, TrainConfig, ScalingConfig, AblationsConfig, ScoreConfig]
)
def test_a_config_dict_of_the_defaults_is_the_defaults(cls):
    assert from_mapping(cls, as_config_dict(cls)) == cls()


def test_a_config_dict_keeps_the_types_and_takes_no_other_field():
    config = as_config_dict(RunConfig)
    config.data.path = "series"
    config.model.horizon_lengths = (1, 4)
    expected = run_config(model=TimeMoeConfig(horizon_lengths=(1, 4)))
    assert from_mapping(RunConfig, config) == expected
    with pytest.raises(AttributeError, match="hidden_size"):
        config.model.hiden_size = 3
    with pytest.raises(TypeError):
        config.train.num_steps = "10"


def test_text_tuples_and_optional_fields_of_a_config_dict():
    config = as_config_dict(EvalConfig)
    assert config.datasets == "ETTh1,ETTh2,ETTm1,ETTm2,weather"
    config.datasets = "ETTh1,folder/my.csv"
    assert config.context_length is None
    config.context_length = 512
    run = from_mapping(EvalConfig, config)
    assert (run.datasets, run.context_length) == (("ETTh1", "folder/my.csv"), 512)
    with pytest.raises(TypeError):
        config.max_windows = "many"


def test_fields_that_were_not_published_are_off_in_the_base_config():
    config = time_moe_base.get_config()
    config.data.path = "series"
    run = from_mapping(RunConfig, config)
    data, default = run.data, data_config()
    for name in ("future", "standardization", "context_min", "clip"):
        assert getattr(data, name) == getattr(default, name)
    assert (data.future, data.standardization, data.clip) == (1, "series", 0.0)
    assert (run.optimizer.schedule, run.optimizer.decay_steps) == ("cosine", 0)
    assert (run.loss.max_steps_per_position, run.model.forecast_plan) == (0, "fitting")


def test_the_given_mapping_is_not_changed():
    mapping = {"horizons": [96, 192]}
    from_mapping(EvalConfig, mapping)
    assert mapping == {"horizons": [96, 192]}


@pytest.mark.parametrize(
    "config",
    [
        TimeMoeConfig(),
        TimeMoeConfig(hidden_size=48, num_attention_heads=4, num_key_value_heads=2, use_dense=True),
        TimeMoeConfig(horizon_lengths=(2, 5), num_experts=4, rms_norm_eps=1e-5, rope_theta=500.0),
    ],
)
def test_published_round_trip(config):
    published = TimeMoeFormat().write_config(config)
    assert published["model_type"] == "time_moe"
    assert published["horizon_lengths"] == list(config.horizon_lengths)
    assert not {"dtype", "remat", "expert_implementation", "attention_implementation"} & {
        *published
    }
    assert TimeMoeFormat().read_config(published) == (config, [])


def test_published_leaves_out_how_to_compute():
    config = TimeMoeConfig(dtype="bfloat16", remat="full", expert_implementation="dense")
    assert TimeMoeFormat().read_config(TimeMoeFormat().write_config(config)) == (
        TimeMoeConfig(),
        [],
    )


def published(**changes) -> dict:
    needed = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return {**{name: getattr(TimeMoeConfig(), name) for name in needed}, **changes}


def test_published_defaults():
    """Key/value heads are as many as heads unless given, as in the published code."""
    config, unknown = TimeMoeFormat().read_config(published(num_attention_heads=6))
    assert (config.num_attention_heads, config.num_key_value_heads, unknown) == (6, 6, [])


def test_published_unknown_fields_are_named_in_order():
    _, unknown = TimeMoeFormat().read_config(published(zeta=1, alpha=2, use_cache=False))
    assert unknown == ["alpha", "zeta"]


def test_published_needs_the_sizes():
    message = error_of(TimeMoeFormat().read_config, {"hidden_size": 16})
    assert "intermediate_size, num_hidden_layers, num_attention_heads" in message


def test_published_values_are_checked_like_others():
    message = error_of(TimeMoeFormat().read_config, published(num_key_value_heads=5))
    assert message.startswith("config.json: num_key_value_heads (5)")
    message = error_of(TimeMoeFormat().read_config, published(hidden_size=16.0))
    assert message == "config.json.hidden_size must be of type int, but is 16.0"


@pytest.mark.parametrize(
    ("make", "old", "new"),
    [
        (DataConfig, "standardisation", "standardization"),
        (LossConfig, "quantile_factor", "quantile_loss_factor"),
    ],
)
def test_a_field_that_was_renamed_says_its_new_name(make, old, new):
    message = error_of(from_mapping, make, {old: 1})
    assert message == f"config has no field '{old}': it is now '{new}'"
