"""Results of studies: the fits, tables beside the paper's numbers, and pictures."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from timemoe_jax.errors import DataError
from timemoe_jax.evaluation.studies.config import KINDS, ScalingConfig, StudyConfig
from timemoe_jax.evaluation.studies.pictures import plot_ablations, plot_scaling
from timemoe_jax.evaluation.studies.run import Result, measured, run_variants
from timemoe_jax.evaluation.studies.scaling_law import PARAMETERS, ScalingFit, fit_scaling_law
from timemoe_jax.evaluation.studies.variants import ablation_variants, scaling_variants
from timemoe_jax.evaluation.tables import markdown_table, number
from timemoe_jax.files import write_json, write_text
from timemoe_jax.runtime.progress import say

# The ablations of arXiv 2409.16040: base, horizon 96, mean MSE over six benchmarks, on the scale of
# each train split. This library measures something else on other data: compare only differences
# from "full", and only by their sign and order.
PUBLISHED_MSE = {
    "full": 0.262,
    "heads_1_8_32_64": 0.262,
    "mse_loss": 0.267,
    "no_balancing_loss": 0.275,
    "heads_1": 1.382,
    "heads_1_8": 0.320,
    "heads_1_8_32": 0.273,
    "head_32": 0.269,
    "top_1": 0.264,
    "top_2": 0.262,
    "top_4": 0.262,
    "dense": 0.272,
}


class Spread(NamedTuple):
    """A mean over seeds, the sample deviation between them (NaN of one alone), and how many."""

    mean: float
    deviation: float
    seeds: int

    def __str__(self) -> str:
        return self.shown("{:.4f}")

    def shown(self, number: str) -> str:
        """As text, with a format for the numbers."""
        spread = "" if self.seeds < 2 else f" ± {number.format(self.deviation).lstrip('+')}"
        return f"{number.format(self.mean)}{spread} ({self.seeds})"


def run_study(config: StudyConfig, workdir: str | os.PathLike[str]) -> None:
    """Runs what is not finished of a study, and writes its results to the workdir.

    `results.json` has every number, `results.md` the tables, a .png the picture.
    """
    workdir = Path(workdir)
    scaling = config.study == "scaling"
    variants = scaling_variants(config) if scaling else ablation_variants(config)
    results, whole = run_variants(variants, workdir, config.score)
    if not whole:
        finished = f"{len(results)} of {len(variants)} variants"
        say(f"stopped after {finished}; run the same command again to resume")
        return
    text = (_report_scaling if scaling else _report_ablations)(config, workdir, results)
    write_text(workdir / "results.md", text)
    print(text)
    print(f"wrote {workdir / 'results.md'}, results.json and {config.study}.png")


def _report_scaling(config: StudyConfig, workdir: Path, results: Sequence[Result]) -> str:
    fits, refused = fit_kinds(config.scaling, results)
    laws = {kind: fit.as_dict() for kind, fit in fits.items()}
    everything = {"variants": list(results), "fits": laws, "not_fitted": refused}
    write_json(workdir / "results.json", everything)
    plot_scaling(workdir / "scaling.png", config.scaling.measure, results, fits)
    return scaling_tables(config.scaling, results, fits, refused)


def _report_ablations(config: StudyConfig, workdir: Path, results: Sequence[Result]) -> str:
    horizon = max(config.score.horizons)
    names = list(dict.fromkeys(r["variant"] for r in results))
    summary = {name: spread(results, name, horizon) for name in names}
    plot_ablations(workdir / "ablations.png", f"MSE at {horizon}", summary)
    return ablation_table(results, config.score.horizons)


def fit_kinds(
    config: ScalingConfig, results: Sequence[Result]
) -> tuple[dict[str, ScalingFit], dict[str, str]]:
    """The law of the sparse and of the dense models, or why there is none."""
    fits, refused = {}, {}
    for kind in KINDS:
        runs = [r for r in results if r["kind"] == kind]
        try:
            fits[kind] = fit_scaling_law(
                [r["activated_parameters"] for r in runs],
                [r["points"] for r in runs],
                [measured(r, config.measure) for r in runs],
                num_resamples=config.num_resamples,
                confidence=config.confidence,
            )
        except DataError as error:
            refused[kind] = str(error)
    return fits, refused


def scaling_tables(
    config: ScalingConfig,
    results: Sequence[Result],
    fits: dict[str, ScalingFit],
    refused: dict[str, str],
) -> str:
    """The runs, and the laws fitted to them with their intervals, as Markdown."""
    heads = [name for name in results[0]["validation"] if name != "validation_loss"]
    horizons = list(results[0]["held_out"]["average"])
    header = ["kind", "hidden x layers", "feed-forward", "activated", "total", "points", "loss"]
    header += [f"head {name.rpartition('_')[2]}" for name in heads]
    header += [f"held-out MSE at {h}" for h in horizons]
    rows = []
    for r in results:
        row = [r["kind"], f"{r['hidden_size']} x {r['layers']}", str(r["intermediate_size"])]
        row += [f"{r[name]:,}" for name in ("activated_parameters", "total_parameters", "points")]
        row += [number(r["validation"][name]) for name in ("validation_loss", *heads)]
        row += [number(r["held_out"]["average"][h]["model"]["mse"]) for h in horizons]
        rows.append(row)
    text = "Validation losses at the end of each run.\n\n" + markdown_table(header, rows)
    text += (
        f"\nL(N, D) = E + A / N^a + B / D^b fitted to {config.measure}, with N the activated "
        f"parameters and D the points; intervals of {config.confidence:.0%} from "
        f"{config.num_resamples} fits to runs drawn with replacement.\n\n"
    )
    rows = [
        [kind, *(_interval(fit, name) for name in PARAMETERS), f"{fit.residual:.4f}"]
        for kind, fit in fits.items()
    ]
    text += markdown_table(["kind", "E", "A", "a", "B", "b", "residual of log L"], rows)
    return text + "".join(f"\nNo law for {kind}: {why}.\n" for kind, why in refused.items())


def _interval(fit: ScalingFit, name: str) -> str:
    low, high = fit.interval(name)
    return f"{getattr(fit.law, name):.3g} ({low:.3g} to {high:.3g})"


def spread(results: Sequence[Result], variant: str, horizon: int, metric: str = "mse") -> Spread:
    """The held-out "mse" or "mae" of a variant, the mean over sources, over its seeds."""
    return spread_of([_errors(r, horizon, metric) for r in results if r["variant"] == variant])


def difference(results: Sequence[Result], variant: str, horizon: int) -> Spread:
    """How much a variant's MSE lies above that of "full", over the seeds that both have."""
    by_seed = {r["seed"]: _errors(r, horizon, "mse") for r in results if r["variant"] == "full"}
    pairs = [r for r in results if r["variant"] == variant and r["seed"] in by_seed]
    return spread_of([_errors(r, horizon, "mse") - by_seed[r["seed"]] for r in pairs])


def relative_differences(results: Sequence[Result], variant: str) -> list[float]:
    """By which share a variant's MSE lies above that of "full", for each seed that both have.

    Each is the mean over the horizons.
    """
    by_seed = {r["seed"]: r for r in results if r["variant"] == "full"}

    def share(result: Result) -> float:
        full = by_seed[result["seed"]]
        horizons = [int(h) for h in result["held_out"]["average"]]
        pairs = [(_errors(result, h, "mse"), _errors(full, h, "mse")) for h in horizons]
        return float(np.mean([mse / of - 1 for mse, of in pairs]))

    return [share(r) for r in results if r["variant"] == variant and r["seed"] in by_seed]


def _errors(result: Result, horizon: int, metric: str) -> float:
    value = result["held_out"]["average"][str(horizon)]["model"][metric]
    return float("nan") if value is None else value


def spread_of(values: Sequence[float]) -> Spread:
    """Of the values of several seeds."""
    mean = float(np.mean(values)) if values else float("nan")
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
    return Spread(mean, deviation, len(values))


def ablation_table(results: Sequence[Result], horizons: Sequence[int]) -> str:
    """Every variant beside the paper's number, as Markdown."""
    last = horizons[-1]
    names = list(dict.fromkeys(r["variant"] for r in results))
    published = any(name in PUBLISHED_MSE for name in names if name != "full")
    header = ["variant", "activated", "in all"]
    header += [f"{metric} at {h}" for h in horizons for metric in ("MSE", "MAE")]
    header += [f"MSE at {last} above full"]
    header += ["paper: MSE at 96", "paper: above full"] if published else []
    rows = []
    for name in names:
        first = next(r for r in results if r["variant"] == name)
        row = [name, *(f"{first[f'{kind}_parameters']:,}" for kind in ("activated", "total"))]
        row += [str(spread(results, name, h, m)) for h in horizons for m in ("mse", "mae")]
        row.append(str(difference(results, name, last)))
        if published:
            paper = PUBLISHED_MSE.get(name)
            above = "" if paper is None else f"{paper - PUBLISHED_MSE['full']:+.3f}"
            row += ["" if paper is None else f"{paper:.3f}", above]
        rows.append(row)
    notes = (
        "\nMean ± sample deviation over seeds (how many), of held-out forecasts in units of each "
        "context's deviation; differences are taken seed by seed."
    )
    if published:
        notes += (
            " The paper's numbers are of its base model on six benchmarks, a larger model on other "
            "data and another scale: compare signs and order."
        )
    notes += "\n"
    return markdown_table(header, rows) + notes
