"""Writes docs/config.md: every field of every config, from the classes themselves.

    python docs/make_config_page.py

A field's description is the comment beside or above it in its class.
"""

import ast
import dataclasses
import inspect
import sys
import textwrap
import typing
from pathlib import Path

from timemoe_jax.evaluation.comparisons.config import FrameConfig
from timemoe_jax.evaluation.config import EvalConfig
from timemoe_jax.evaluation.leaderboards.config import ChaosConfig, FevConfig, GiftConfig
from timemoe_jax.evaluation.studies.config import FinetuneStudyConfig, StudyConfig
from timemoe_jax.models.mohets.config import MohetsConfig
from timemoe_jax.models.seg_moe.config import SegMoeConfig
from timemoe_jax.models.time_moe.config import TimeMoeConfig
from timemoe_jax.models.time_tracker.config import TimeTrackerConfig
from timemoe_jax.training.config import RunConfig
from timemoe_jax.training.finetuning.config import FinetuneRunConfig

PAGE = Path(__file__).with_name("config.md")
INTRODUCTION = """# Every field of the configs

<!-- docs/make_config_page.py writes this page from the classes: change those, and run it. -->

A config file returns an `ml_collections.ConfigDict`; what it leaves out has the default below. The
command line overrides any field: `--config.train.num_steps=500`. A field that does not exist, a
value of another type and a value out of range are errors before anything is computed.
"""
FAMILIES = """
The section `model` of a run whose `model.family` is another has the fields of that family.
"""
PROGRAMS: tuple[tuple[str, type | None, dict[str, type]], ...] = (
    ("Training (`train_main.py`)", RunConfig, {"model": TimeMoeConfig}),
    (
        "Models of other families",
        None,
        {"seg_moe": SegMoeConfig, "mohets": MohetsConfig, "time_tracker": TimeTrackerConfig},
    ),
    ("Fine-tuning (`train_main.py` with a section `finetune`)", FinetuneRunConfig, {}),
    ("Evaluation (`eval_main.py`)", EvalConfig, {}),
    ("Evaluation on GIFT-Eval (`benchmark=gift`)", GiftConfig, {}),
    ("Evaluation on fev-bench (`benchmark=fev`)", FevConfig, {}),
    ("Evaluation on chaotic systems (`benchmark=chaos`)", ChaosConfig, {}),
    ("Evaluation on your own files (`benchmark=frame`)", FrameConfig, {}),
    ("Studies (`study_main.py`)", StudyConfig, {}),
    ("Studies of fine-tuning (`study_main.py`)", FinetuneStudyConfig, {}),
)


def main() -> None:
    """Writes the page."""
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE.name} is written")


def page() -> str:
    """The whole page, as Markdown."""
    parts = [INTRODUCTION]
    for title, config, families in PROGRAMS:
        parts.append(f"\n## {title}\n")
        if config is None:
            parts.append(FAMILIES)
            parts += [_section(name, kind) for name, kind in families.items()]
        else:
            parts += _sections(config, families)
    return "".join(parts)


def _sections(config: type, families: dict[str, type]) -> list[str]:
    """A table of a config's own fields, and one for each config within it."""
    inner = {f.name: families.get(f.name, _class_of(f)) for f in dataclasses.fields(config)}
    inner = {name: kind for name, kind in inner.items() if dataclasses.is_dataclass(kind)}
    own = _table(config, skip=set(inner))
    parts = [f"\n{_first_paragraph(config)}\n\n{own}"] if own else []
    for name, kind in inner.items():
        if kind is RunConfig:  # of a study: as for training
            parts.append(f"\n### {name}\n\nA whole config of training, as above.\n")
            continue
        parts.append(_section(name, kind))
    return parts


def _section(name: str, kind: type) -> str:
    return f"\n### {name}\n\n{_first_paragraph(kind)}\n\n{_table(kind, skip=set())}"


def _class_of(field: dataclasses.Field) -> object:
    return field.type


def _first_paragraph(config: type) -> str:
    text = textwrap.dedent(inspect.getdoc(config) or "").split("\n\n")[0]
    return " ".join(text.split())


def _table(config: type, skip: set[str]) -> str:
    described = comments_of(config)
    rows = []
    for field in dataclasses.fields(config):
        if field.name in skip:
            continue
        default = "required" if field.default is dataclasses.MISSING else f"`{field.default!r}`"
        plain = isinstance(field.type, type) and not typing.get_args(field.type)
        kind = (field.type.__name__ if plain else str(field.type)).replace("|", r"\|")
        rows.append(f"| `{field.name}` | {kind} | {default} | {described.get(field.name, '')} |\n")
    if not rows:
        return ""
    return "| field | type | default | what it is |\n| --- | --- | --- | --- |\n" + "".join(rows)


def comments_of(config: type) -> dict[str, str]:
    """{field: what its comment says} of a dataclass and those it is made from.

    A comment stands behind its field, or above it.
    """
    found: dict[str, str] = {}
    for kind in reversed(config.__mro__):
        if dataclasses.is_dataclass(kind):
            found |= _comments_of_one(kind)
    return found


def _comments_of_one(config: type) -> dict[str, str]:
    source = textwrap.dedent(inspect.getsource(config))
    lines = source.splitlines()
    (body,) = ast.parse(source).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for node in body.body:
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        behind = lines[node.end_lineno - 1][node.end_col_offset :].strip()
        above: list[str] = []
        row = node.lineno - 2
        while lines[row].strip().startswith("#"):
            above.insert(0, lines[row].strip().removeprefix("#").strip())
            row -= 1
        text = " ".join([*above, behind.removeprefix("#").strip()]).strip()
        if text:
            found[node.target.id] = text.replace("|", r"\|")
    return found


if __name__ == "__main__":
    sys.exit(main())
