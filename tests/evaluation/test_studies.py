"""Studies: which runs they are of, that they go on where they were, and what they report."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_model import TINY, TWO_BLOCKS

from configs import ablations as ablations_file
from configs import scaling as scaling_file
from configs import segments as segments_file
from timemoe_jax.config import from_mapping
from timemoe_jax.data.config import DataConfig
from timemoe_jax.errors import ConfigError, DataError
from timemoe_jax.evaluation.studies import reports as study_reports
from timemoe_jax.evaluation.studies import run as studies
from timemoe_jax.evaluation.studies.config import (
    AblationsConfig,
    ScalingConfig,
    ScoreConfig,
    StudyConfig,
)
from timemoe_jax.evaluation.studies.pictures import plot_ablations, plot_differences, plot_scaling
from timemoe_jax.evaluation.studies.run import run_variants
from timemoe_jax.evaluation.studies.scaling_law import ScalingLaw
from timemoe_jax.evaluation.studies.variants import (
    ABLATIONS,
    ablation_variants,
    scaling_variants,
)
from timemoe_jax.models.base import abstract_model, count_parameters, family_of
from timemoe_jax.models.time_moe.config import TimeMoeConfig
from timemoe_jax.models.time_moe.model import TimeMoe
from timemoe_jax.models.time_moe.published import TimeMoeFormat
from timemoe_jax.models.time_moe.sharding import RULES
from timemoe_jax.runtime import partitioning
from timemoe_jax.training import run as train
from timemoe_jax.training.config import OptimizerConfig, RunConfig, TrainConfig
from timemoe_jax.training.losses import huber

TOKENS = {"token_routing", "token_activated", "token_total"}  # those of a base with segments
SIZES = {"hidden_sizes": (16, 32), "num_layers": (1, 2), "num_heads": (2, 4), "points": (960, 4800)}


def _study(study="scaling", **parts):
    base = RunConfig(
        model=dataclasses.replace(TINY, num_experts=8, forecast_plan="covering"),
        data=DataConfig(
            length=48, synthetic_sequences=20, synthetic_length=120, validation_fraction=0.2
        ),
        optimizer=OptimizerConfig(warmup_steps=2, end_learning_rate=1e-4),
        train=TrainConfig(num_steps=10, batch_size=4, eval_batches=2, log_every=5),
    )
    parts = {"scaling": ScalingConfig(**SIZES), **parts}
    return StudyConfig(base, study, score=ScoreConfig((2, 4), max_windows=6), **parts)


@pytest.mark.parametrize(
    "model",
    [
        TINY,
        TimeMoeConfig(),
        dataclasses.replace(TINY, num_experts_per_tok=4, router_bias=True),
        dataclasses.replace(TINY, shared_expert=False),
    ],
)
def test_no_dense_model_is_nearer_to_the_activated_parameters(model):
    dense = family_of(model).dense_like(model)
    wanted, width = count_parameters(model)[1], dense.intermediate_size

    def distance(w):
        return abs(count_parameters(dataclasses.replace(dense, intermediate_size=w))[0] - wanted)

    assert dense.use_dense
    assert distance(width) <= min(distance(width - 1), distance(width + 1))
    assert distance(width) / wanted < 0.01


def test_a_scaling_study_is_of_every_size_kind_and_number_of_points():
    variants = scaling_variants(_study())
    assert len({v.name for v in variants}) == len(variants) == 2 * 2 * 2
    by_name = {v.name: v.config for v in variants}
    run = by_name["sparse_32x2_4800"]
    assert (run.model.hidden_size, run.model.num_hidden_layers) == (32, 2)
    assert run.model.intermediate_size == 48  # as to the hidden size as in the base
    assert (run.train.num_steps, run.optimizer.warmup_steps) == (25, 5)
    assert run.data == _study().base.data
    few, many = (by_name[f"dense_16x1_{points}"] for points in (960, 4800))
    assert (few.model, few.train.num_steps, few.optimizer.warmup_steps) == (many.model, 5, 1)
    assert (
        abs(count_parameters(few.model)[0] - count_parameters(by_name["sparse_16x1_960"].model)[1])
        < 60
    )


def test_a_learning_rate_for_each_size_keeps_the_floor_in_proportion():
    scaling = ScalingConfig(**SIZES, learning_rates=(1e-3, 2e-3))
    rates = {v.name: v.config.optimizer for v in scaling_variants(_study(scaling=scaling))}
    assert rates["sparse_16x1_960"] == dataclasses.replace(
        rates["sparse_32x2_960"], learning_rate=1e-3, end_learning_rate=1e-4
    )
    assert rates["sparse_32x2_960"].end_learning_rate == pytest.approx(2e-4)


def test_points_are_the_observed_inputs_that_a_run_reads():
    run = _study().base
    assert studies.count_points(run) == 10 * 4 * 48  # windows without padding
    short = dataclasses.replace(run.data, synthetic_length=30)  # of each window of 49 points
    expected = 10 * 4 * 48 * 30 / 49
    assert studies.count_points(dataclasses.replace(run, data=short)) == round(expected)


def test_each_ablation_changes_what_it_says_alone():
    study = _study("ablations", ablations=AblationsConfig(seeds=(7,)))
    runs = {v.labels["variant"]: v.config for v in ablation_variants(study)}
    assert ABLATIONS.keys() - runs.keys() == {"top_2"} | TOKENS  # what the base does
    full = runs["full"]
    assert full.seed == 7
    changed = {
        name: {
            f"{part}.{field.name}"
            for part in ("model", "loss", "data", "optimizer", "train")
            for field in dataclasses.fields(getattr(run, part))
            if getattr(getattr(run, part), field.name) != getattr(getattr(full, part), field.name)
        }
        for name, run in runs.items()
    }
    assert changed["full"] == set()
    assert changed["mse_loss"] == {"loss.huber_delta"}
    assert changed["no_balancing_loss"] == {"model.apply_aux_loss"}
    assert changed["router_bias"] == {"model.router_bias"}
    assert changed["heads_1"] == changed["head_32"] == {"model.horizon_lengths"}
    assert changed["top_1"] == changed["top_4"] == {"model.num_experts_per_tok"}
    assert changed["no_shared_expert"] == {"model.shared_expert"}
    assert changed["dense"] == {"model.use_dense", "model.intermediate_size"}
    error = jnp.array([-9.0, 0.5, 40.0])
    delta = runs["mse_loss"].loss.huber_delta
    np.testing.assert_allclose(huber(error, delta), error**2 / 2, rtol=1e-6)


def test_an_ablation_that_is_named_is_run_even_if_it_changes_nothing():
    study = _study("ablations", ablations=AblationsConfig(("full", "top_2"), seeds=(7,)))
    full, same = ablation_variants(study)
    assert (full.config, same.name) == (same.config, "top_2_seed7")


def test_ablations_of_a_number_of_points_have_the_shares_of_warm_up_and_decay_of_the_base():
    study = _study("ablations", ablations=AblationsConfig(("dense",), seeds=(7,), points=4800))
    [dense] = ablation_variants(study)
    assert (dense.config.train.num_steps, dense.config.optimizer.warmup_steps) == (25, 5)
    assert dense.config.optimizer.learning_rate == study.base.optimizer.learning_rate


def test_an_ablation_that_the_base_cannot_have():
    study = _study("ablations")
    odd = dataclasses.replace(study.base.model, intermediate_size=26)
    study = dataclasses.replace(study, base=dataclasses.replace(study.base, model=odd))
    with pytest.raises(ConfigError, match=r"ablation 'top_4' does not fit the base: .*divide"):
        ablation_variants(study)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AblationsConfig(("halved",)), "variants names 'halved'; known: full, mse_loss"),
        (lambda: AblationsConfig(seeds=()), "seeds is empty"),
        (lambda: AblationsConfig(points=-1), "points must not be negative"),
        (lambda: ScalingConfig(num_heads=(2,)), "num_heads has 1 entries for 4 hidden_sizes"),
        (lambda: ScalingConfig(points=(0,)), "points must be positive"),
        (lambda: ScalingConfig(measure="luck"), "measure must be one of validation_loss"),
        (lambda: _study("guess"), "study must be one of scaling, ablations"),
    ],
)
def test_impossible_studies(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_study_needs_something_held_out():
    study = _study()
    data = dataclasses.replace(study.base.data, validation_fraction=0.0)
    with pytest.raises(ConfigError, match=r"base\.data holds nothing out"):
        dataclasses.replace(study, base=dataclasses.replace(study.base, data=data))


@pytest.mark.parametrize("file", [scaling_file, ablations_file])
def test_the_config_files_are_studies_of_any_config(file):
    study = from_mapping(StudyConfig, dict(file.get_config("configs/smoke.py").items()))
    assert study.study == file.__name__.rpartition(".")[2]
    assert study.base.model.hidden_size == 64
    variants = scaling_variants if study.study == "scaling" else ablation_variants
    # "top_2" and "heads_1_8_32" are what configs/smoke.py has.
    same = {"top_2", "heads_1_8_32"} | TOKENS
    count = 24 if study.study == "scaling" else 3 * len(ABLATIONS.keys() - same)
    assert len(variants(study)) == count
    with pytest.raises(FileNotFoundError):
        file.get_config("configs/absent.py")


@pytest.mark.parametrize(
    ("which", "count"), [("encoder-ETTh1", 4), ("encoder-corpus", 4), ("decoder-ETTm1", 2)]
)
def test_controls_of_segments_have_as_many_parameters(which, count):
    config = segments_file.get_config(which)
    config.base.data.path = "somewhere"
    if count == 4:
        config.ablations.variants = "full,token_routing,token_activated,token_total"
    variants = ablation_variants(from_mapping(StudyConfig, config.to_dict()))
    models = {v.labels["variant"]: v.config.model for v in variants}
    assert (len(models), len(variants)) == (count, 3 * count)
    total, activated = count_parameters(models["full"])
    wide = {name: count_parameters(model) for name, model in models.items()}
    assert wide["token_routing"] == pytest.approx((total, activated), rel=3e-3)
    if count == 2:
        assert models["token_routing"].segment_lengths == ()
        return
    assert wide["token_activated"][1] == pytest.approx(activated, rel=3e-3)
    assert wide["token_total"][0] == pytest.approx(total, rel=3e-3)
    assert models["token_routing"].segment_lengths == models["full"].segment_lengths
    assert models["token_total"].segment_lengths == (1,)


def test_a_study_of_segments_that_there_is_none_of():
    with pytest.raises(ValueError, match="encoder-ETTh9 is no study; give one of encoder, decoder"):
        segments_file.get_config("encoder-ETTh9")


def test_the_ablations_are_of_the_nano_recipe_but_for_its_size_and_selection_bias():
    full = ablations_file.get_config().base.to_dict()
    recipe = scaling_file.get_config().base.to_dict()
    assert full.pop("model") != recipe.pop("model")
    assert full == recipe
    assert not ablations_file.get_config().base.model.router_bias


def test_a_study_goes_on_where_it_was(tmp_path, monkeypatch):
    """With the variant that was killed, and none that was finished."""
    ablations = AblationsConfig(("full", "no_shared_expert"), seeds=(0,))
    study = _study("ablations", ablations=ablations)
    real, started = train.run, []

    def run(config, workdir):
        started.append(workdir.name)
        if len(started) == 2:
            raise KeyboardInterrupt
        return real(config, workdir, jax.devices()[:1])

    monkeypatch.setattr(studies.train, "run", run)
    with pytest.raises(KeyboardInterrupt):
        study_reports.run_study(study, tmp_path)
    assert [r["name"] for r in json.loads((tmp_path / "results.json").read_text())["variants"]] == [
        "full_seed0"
    ]
    study_reports.run_study(study, tmp_path)
    assert started == ["full_seed0", "no_shared_expert_seed0", "no_shared_expert_seed0"]
    results = json.loads((tmp_path / "results.json").read_text())["variants"]
    assert [r["steps"] for r in results] == [10, 10]
    for result in results:
        assert set(result["validation"]) == {f"validation_loss{p}" for p in ("", "_1", "_4")}
        assert result["held_out"]["average"]["4"]["model"]["mse"] > 0
        assert result["held_out"]["sources"][0]["windows"]["4"] == 6
    assert "| no_shared_expert |" in (tmp_path / "results.md").read_text()
    assert (tmp_path / "ablations.png").read_bytes().startswith(b"\x89PNG")
    before = (tmp_path / "results.md").read_text()
    study_reports.run_study(study, tmp_path)  # finished: nothing is trained
    assert len(started) == 3
    assert (tmp_path / "results.md").read_text() == before
    other = dataclasses.replace(
        study, base=dataclasses.replace(study.base, optimizer=OptimizerConfig(learning_rate=0.1))
    )
    with pytest.raises(ConfigError, match=r"full_seed0 is of another config; .*learning_rate"):
        study_reports.run_study(other, tmp_path)
    with pytest.raises(ConfigError, match=r"score\.max_windows 6 but 9 now"):
        run_variants(ablation_variants(study), tmp_path, ScoreConfig((2, 4), max_windows=9))


def test_two_processes_share_the_variants(tmp_path, monkeypatch):
    """While one is at the first, another goes on with the second, and both see all at the end.

    What a variant trains and how it is scored is the test's before this.
    """
    ablations = AblationsConfig(("full", "no_shared_expert"), seeds=(0,))
    study = _study("ablations", ablations=ablations)
    variants, order = ablation_variants(study), []

    def run(config, workdir):
        order.append(workdir.name)
        if len(order) == 1:  # another process, which finds this variant taken
            with pytest.raises(InterruptedError):
                run_variants(variants, tmp_path, study.score)
        return train.RunResult(None, config.train.num_steps, False, workdir)

    def waited(seconds):
        assert json.loads((tmp_path / "no_shared_expert_seed0/result.json").read_text())
        raise InterruptedError

    monkeypatch.setattr(studies.train, "run", run)
    monkeypatch.setattr(studies, "_result", lambda variant, *_: {"name": variant.name})
    monkeypatch.setattr(studies.time, "sleep", waited)
    results, whole = run_variants(variants, tmp_path, study.score)
    assert order == ["full_seed0", "no_shared_expert_seed0"]
    assert whole
    assert [r["name"] for r in results] == order


def _ablation(variant, seed, mse):
    average = {"8": {"model": {"mse": mse, "mae": mse / 2}}}
    return {
        "variant": variant,
        "seed": seed,
        "activated_parameters": 1000,
        "total_parameters": 2000,
        "held_out": {"average": average},
    }


def test_spreads_and_differences_by_hand(tmp_path):
    results = [
        *(_ablation("full", s, m) for s, m in enumerate((1.0, 2.0, 3.0))),
        *(_ablation("dense", s, m) for s, m in enumerate((1.5, 2.5, 3.5))),
    ]
    assert study_reports.spread(results, "full", 8) == (2.0, 1.0, 3)
    assert study_reports.spread(results, "dense", 8, "mae") == (1.25, 0.5, 3)
    assert study_reports.difference(results, "dense", 8) == (0.5, 0.0, 3)
    table = study_reports.ablation_table(results, (8,))
    assert (
        "| dense | 1,000 | 2,000 | 2.5000 ± 1.0000 (3) | 1.2500 ± 0.5000 (3) | 0.5000 ± 0.0000 (3)"
        in table
    )
    assert "| 0.272 | +0.010 |" in table
    one = study_reports.spread(results[:1], "full", 8)
    assert str(one) == "1.0000 (1)"
    summary = {"full": study_reports.spread(results, "full", 8), "alone": one}
    assert plot_ablations(tmp_path / "a.png", "MSE", summary).exists()
    with pytest.raises(DataError, match="summary is empty"):
        plot_ablations(tmp_path / "a.png", "MSE", {})


def test_relative_differences_by_hand(tmp_path):
    results = [
        *(_ablation("full", s, m) for s, m in enumerate((1.0, 2.0))),
        *(_ablation("token_routing", s, m) for s, m in enumerate((1.2, 1.8, 9.0))),
    ]
    values = study_reports.relative_differences(results, "token_routing")
    assert values == pytest.approx([0.2, -0.1])
    found = study_reports.spread_of(values)
    assert found.mean == pytest.approx(0.05)
    assert found.shown("{:+.1%}") == "+5.0% ± 21.2% (2)"
    assert "paper" not in study_reports.ablation_table(results, (8,))
    assert plot_differences(tmp_path / "d.png", {"encoder": {"token_routing": values}}).exists()
    with pytest.raises(DataError, match="holds no control"):
        plot_differences(tmp_path / "d.png", {})


def _scaling_results(sizes):
    law = ScalingLaw(0.3, 5.0, 0.35, 60.0, 0.4)
    return [
        {
            "kind": kind,
            "hidden_size": n // 100,
            "layers": 2,
            "intermediate_size": 10,
            "activated_parameters": n,
            "total_parameters": 4 * n,
            "points": points,
            "validation": {
                "validation_loss": float(law.predict(n, points)),
                "validation_loss_1": 1.0,
            },
            "held_out": {"average": {"8": {"model": {"mse": 0.5, "mae": 0.4}}}},
        }
        for kind in ("sparse", "dense")
        for n in sizes
        for points in (1e6, 4e6, 1.6e7)
    ]


def test_the_laws_of_a_scaling_study(tmp_path):
    config = ScalingConfig(num_resamples=3)
    results = _scaling_results((10_000, 40_000, 160_000, 640_000))
    fits, refused = study_reports.fit_kinds(config, results)
    assert refused == {}
    for kind in ("sparse", "dense"):
        assert fits[kind].law.n_exponent == pytest.approx(0.35, rel=0.05)
        assert fits[kind].law.d_exponent == pytest.approx(0.4, rel=0.05)
    text = study_reports.scaling_tables(config, results, fits, refused)
    assert text.count("| sparse | ") == 12 + 1
    picture = plot_scaling(tmp_path / "scaling.png", config.measure, results, fits)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_too_small_a_scaling_study_says_why_it_has_no_law(tmp_path):
    config, results = ScalingConfig(), _scaling_results((10_000, 40_000))
    fits, refused = study_reports.fit_kinds(config, results)
    assert fits == {}
    assert "parameters has 2 different values" in refused["dense"]
    text = study_reports.scaling_tables(config, results, fits, refused)
    assert "No law for sparse: parameters has 2" in text
    assert plot_scaling(tmp_path / "scaling.png", config.measure, results, fits).exists()
    with pytest.raises(DataError, match="results is empty"):
        plot_scaling(tmp_path / "scaling.png", config.measure, [], {})


WITHOUT = dataclasses.replace(TINY, shared_expert=False)


def test_without_a_shared_expert_the_rest_computes_the_same():
    """As a model whose shared expert says nothing."""
    model = TimeMoe(TINY, rngs=nnx.Rngs(0))
    down = model.blocks.ffn.shared.down.kernel
    down[...] = jnp.zeros_like(down[...])
    kept = {
        path: value
        for path, value in nnx.to_flat_state(nnx.state(model, nnx.Param))
        if "shared" not in path and "shared_gate" not in path
    }
    graph, abstract = abstract_model(WITHOUT)
    assert {path for path, _ in nnx.to_flat_state(abstract)} == kept.keys()
    other = nnx.merge(graph, nnx.from_flat_state(kept.items()))
    x = jax.random.normal(jax.random.key(0), (2, 9))
    ours, theirs = model(x), other(x)
    for p in TINY.horizon_lengths:
        np.testing.assert_allclose(ours.predictions[p], theirs.predictions[p], atol=1e-5)


def test_without_a_shared_expert_counts_and_rules_hold():
    # A gated layer of three kernels and the gate, in each of two layers.
    shared = 2 * (3 * 16 * 24 + 16)
    lacking = dataclasses.replace(TWO_BLOCKS, shared_expert=False)
    for with_, without in zip(count_parameters(TWO_BLOCKS), count_parameters(lacking), strict=True):
        assert with_ - without == shared
    mesh = partitioning.make_mesh(_study().base.mesh)
    partitioning.shardings(abstract_model(WITHOUT)[1], mesh, RULES)


def test_without_a_shared_expert_there_is_no_published_model():
    with pytest.raises(ConfigError, match="shared_expert is False; the published format"):
        TimeMoeFormat().write_config(WITHOUT)
    with pytest.raises(ConfigError, match="use_dense has no experts"):
        TimeMoeConfig(use_dense=True, shared_expert=False)
    assert "shared_expert" not in TimeMoeFormat().write_config(TINY)
