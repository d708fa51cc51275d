"""Models that people have, by the config.json that was published with each.

The figures are docs/models.md's: every row of its table is computed here and looked up there.
"""

import json
from math import prod
from pathlib import Path

import pytest
from pds_engine import sizing
from pds_engine.config import EngineConfig
from pds_engine.models.registry import FAMILIES, family_of
from pds_engine.verdict import Verdict, judge

PUBLISHED = Path(__file__).parent / "published"
PAGE = Path(__file__).parents[3] / "docs" / "models.md"
PARAMETERS = {
    "llama-3.1-8b": (8_030_261_248, 8_030_261_248),
    "mistral-7b-v0.1": (7_241_732_096, 7_241_732_096),
    "qwen3-30b-a3b": (30_532_122_624, 3_353_032_704),
    "mixtral-8x7b-v0.1": (46_702_792_704, 12_879_925_248),
    "gemma-3-27b": (27_009_346_304, 27_009_346_304),
    "gpt-oss-120b": (116_829_156_672, 5_711_982_912),
    "deepseek-v3": (671_026_419_200, 37_552_297_472),
}
"""All, and those that a token passes; Gemma's without what sees pictures."""
LAYOUTS = {
    "llama-3.1-8b": [{}, {"tp": 2}],
    "mistral-7b-v0.1": [{}],
    "qwen3-30b-a3b": [{"tp": 2}, {"dp": 4, "ep": True}],
    "mixtral-8x7b-v0.1": [{"tp": 4}, {"pp": 2, "tp": 2}],
    "gemma-3-27b": [{"tp": 2}],
    "gpt-oss-120b": [{"tp": 8}, {"dp": 8, "ep": True}],
    "deepseek-v3": [{"pp": 4, "tp": 8}, {"dp": 32, "ep": True}],
}


def served(name: str) -> bool:
    known = json.loads((PUBLISHED / f"{name}.json").read_text())["architectures"]
    return known[0] in FAMILIES


NAMES = [name for name in PARAMETERS if served(name)]


def verdict(folder: Path, name: str, layout: dict[str, object]) -> Verdict:
    (folder / "config.json").write_bytes((PUBLISHED / f"{name}.json").read_bytes())
    keys = {"model": {"path": folder}, "parallelism": layout, "kv": {"memory_bytes": 16 << 30}}
    return judge(EngineConfig.model_validate(keys))


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_as_many_as_were_published(tmp_path, name):
    found = verdict(tmp_path, name, LAYOUTS[name][0])
    assert found.refusal is None
    assert found.spec is not None
    names = family_of(found.spec).names
    counted = sizing.parameters(found.spec, names), sizing.passed(found.spec, names)
    assert counted == PARAMETERS[name]


@pytest.mark.parametrize("name", NAMES)
def test_the_page_has_these_counts(tmp_path, name):
    assert counts(name, verdict(tmp_path, name, LAYOUTS[name][0])) in PAGE.read_text().splitlines()


@pytest.mark.parametrize(
    ("name", "layout"), [(name, layout) for name in NAMES for layout in LAYOUTS[name]]
)
def test_the_page_has_these_figures(tmp_path, name, layout):
    found = verdict(tmp_path, name, layout)
    assert found.refusal is None
    assert figures(name, layout, found) in PAGE.read_text().splitlines()


def counts(name: str, found: Verdict) -> str:
    """A row of the page's first table."""
    assert found.spec is not None
    layers, kv = len(found.spec.layers), found.spec.kv
    factors = (kv.latent,) if kv.latent else (2, kv.heads, kv.head_dim)
    formula = " · ".join(map(str, (*factors, layers, 2)))
    assert sizing.kv_format(found.config, found.spec).token_bytes == prod(factors) * layers * 2
    every, passed = (f"{count / 1e9:.2f}" for count in PARAMETERS[name])
    return row(name, f"{layers}", every, passed, f"{formula} = {prod(factors) * layers * 2:,}")


def figures(name: str, layout: dict[str, object], found: Verdict) -> str:
    """A row of the page's second table."""
    words = ", ".join(key if value is True else f"{key} {value}" for key, value in layout.items())
    return row(
        name,
        words or "1 rank",
        sizing.human(max(each.weights for each in found.ranks)),
        f"{min(each.pages for each in found.ranks):,}",
        f"{found.longest:,}",
    )


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
