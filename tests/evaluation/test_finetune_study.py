"""The study of fine-tuning, on a small benchmark and a small source of short series."""

import json
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from tiny_model import TUNABLE

from timemoe_jax import ConfigError, DataError
from timemoe_jax.checkpoints.load import save_model
from timemoe_jax.cli.config_files import load_config
from timemoe_jax.config import from_mapping
from timemoe_jax.evaluation.studies import finetuning
from timemoe_jax.evaluation.studies.config import AnyStudyConfig
from timemoe_jax.forecasting.scoring.linear_map import fit_linear_map
from timemoe_jax.models.base import create_params


def test_every_case_has_its_runs_and_the_table_their_changes(tmp_path):
    t = np.arange(400)
    times = pd.date_range("2024-01-01", periods=400, freq="h")
    frame = pd.DataFrame({"date": times, "a": np.sin(t / 3), "b": np.cos(t / 3)})
    frame.to_csv(tmp_path / "waves.csv", index=False)
    folder = tmp_path / "corpus" / "many"
    folder.mkdir(parents=True)
    np.save(folder / "short.npy", np.sin(np.arange(40) / 2 + np.arange(30)[:, None]))
    save_model(tmp_path / "model", TUNABLE, create_params(TUNABLE, 0))
    config = load_config("finetune_study")
    config.checkpoint, config.data_dir = str(tmp_path / "model"), str(tmp_path)
    config.datasets, config.horizons, config.seeds = "waves", (4,), (0,)
    config.corpus, config.sources = str(tmp_path / "corpus"), "many/short.npy:4"
    config.modes, config.scratch, config.max_windows = "full", False, 20
    config.finetune.num_steps, config.finetune.batch_size = 2, 8
    config.finetune.learning_rate = 1e-3
    study = from_mapping(AnyStudyConfig, config)
    with mock.patch.object(finetuning.jax, "clear_caches"):
        finetuning.run_finetune_study(study, tmp_path / "out")
    files = {path.stem for path in (tmp_path / "out").glob("*.json")}
    assert files == {
        f"{c}_{r}_0" for c in ("waves_4", "many_short.npy") for r in ("zero_shot", "linear", "full")
    }
    found = json.loads((tmp_path / "out/waves_4_full_0.json").read_text())
    assert found["tuning"]["plan"]["points"] == 2 * 280  # 70% of the rows
    assert found["tuning"]["plan"]["horizon"] == 4
    table = (tmp_path / "out/results.md").read_text()
    assert "| waves_4 |" in table
    assert "full MSE" in table
    # The second time nothing is made again.
    with mock.patch.object(finetuning, "fine_tune") as never:
        finetuning.run_finetune_study(study, tmp_path / "out")
    never.assert_not_called()
    # Nor where a table of results has it, in another folder.
    assert (tmp_path / "out/results.csv").read_text().startswith(",".join(finetuning.COLUMNS))
    config.known = str(tmp_path / "out/results.csv")
    with mock.patch.object(finetuning, "fine_tune") as never:
        finetuning.run_finetune_study(from_mapping(AnyStudyConfig, config), tmp_path / "other")
    never.assert_not_called()
    for name in ("results.csv", "results.md"):
        assert (tmp_path / "other" / name).read_text() == (tmp_path / "out" / name).read_text()
    # A run that is stopped leaves no result, and the study ends with it.
    (tmp_path / "out/waves_4_full_0.json").rename(tmp_path / "kept")
    with mock.patch.object(finetuning, "fine_tune") as stopped:
        stopped.return_value.report.ended = "SIGTERM"
        with pytest.raises(SystemExit, match="SIGTERM"):
            finetuning.run_finetune_study(study, tmp_path / "out")
    assert not (tmp_path / "out/waves_4_full_0.json").exists()
    # A wave is a linear map of its past.
    linear = json.loads((tmp_path / "out/waves_4_linear_0.json").read_text())
    assert linear["test"]["mse"] < 1e-3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case,mse\nweather,1\n", "must have rows, and the columns case, run, seed"),
        (",".join(finetuning.COLUMNS) + "\n", "must have rows"),
        (",".join(finetuning.COLUMNS) + "\na,full,0,96,none,1,2\n", "line 2 says .*'none'"),
    ],
)
def test_another_file_is_no_table_of_results(tmp_path, text, message):
    (tmp_path / "results.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        finetuning.read_results(tmp_path / "results.csv")


def test_of_a_long_series_several_last_horizons_are_forecast():
    """Each from what came before it; nothing of any of them is trained on."""
    series = [np.arange(15.0), np.arange(100.0), np.arange(12.0), np.arange(1000.0)]
    case = finetuning._of_source("many", 4, series, 10)
    assert [len(s) for s in case.series] == [11, 92, 980]
    assert [len(c) for c in case.contexts] == [11, 92, 96, 980, 984, 988, 992, 996]
    np.testing.assert_array_equal(case.targets[:, 0], [len(c) for c in case.contexts])
    np.testing.assert_allclose(case.units[:3], [np.std(np.arange(n)) for n in (11, 92, 92)])


def test_a_linear_map_needs_windows():
    series = [np.sin(np.arange(60) / 3)]
    assert fit_linear_map(series, [50], 40, 15) is None
    found = fit_linear_map(series, [50], 8, 4)
    np.testing.assert_allclose(
        found.forecast(series[0][None, 40:48], 4), series[0][None, 48:52], atol=0.05
    )


def test_a_source_without_a_horizon_is_an_error():
    config = load_config("finetune_study")
    config.corpus, config.sources = "corpus", "multiple/m3_competition"
    with pytest.raises(ConfigError, match="it must be domain/source:horizon"):
        from_mapping(AnyStudyConfig, config)
