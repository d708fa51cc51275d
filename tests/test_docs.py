"""The documents: what they cite exists, their links lead somewhere, and lines have a width."""

import re
import subprocess
from pathlib import Path
from typing import get_args

import pytest
from pds_engine.config import DelayerConfig, EngineConfig
from pds_engine.messages import State
from pds_engine.scheduler.dp.delayer import WAITS, Reason
from pds_engine.server.state import report

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
WIDTH = 120
CITED = re.compile(r"`([A-Za-z0-9_.][A-Za-z0-9_./-]*\.(?:py|yaml|toml|cpp|json))`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"#+ .*`([a-z/]+/)`")
METRIC = re.compile(r"\bpds_[a-z_]+")
ELSEWHERE = {
    "chat.yaml",
    "config.json",
    "edit.yaml",
    "generation_config.json",
    "hf_quant_config.json",
    "meta.json",
    "model.safetensors.index.json",
    "quantize_config.json",
    "settings.yaml",
}
"""Files of a user, a checkpoint or a cache."""


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True)
    return [f"/{name}" for name in done.stdout.split("\n") if (ROOT / name).is_file()]


def prose(page: Path) -> list[str]:
    """Lines outside of code."""
    lines, code = [], False
    for line in page.read_text().splitlines():
        if line.lstrip().startswith("```"):
            code = not code
        elif not code:
            lines.append(line)
    return lines


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    heads = [line.lstrip("#").strip() for line in prose(page) if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_cites_exists(page: Path, tracked: list[str]) -> None:
    cited = {name for line in prose(page) for name in CITED.findall(line)} - ELSEWHERE
    missing = [name for name in cited if not any(path.endswith(f"/{name}") for path in tracked)]
    assert sorted(missing) == []


def test_bare_file_names_of_the_walk_are_in_the_folder_of_their_heading(tracked: list[str]) -> None:
    folder, missing = "", []
    for line in prose(ROOT / "docs" / "walk.md"):
        if line.startswith("#"):
            named = HEADING.match(line)
            folder = f"/engine/pds_engine/{named[1]}" if named else ""
        elif folder:
            bare = [name for name in CITED.findall(line) if "/" not in name]
            missing += [name for name in bare if f"{folder}{name}" not in tracked]
    assert missing == []


def test_operations_lists_every_metric_of_the_contract() -> None:
    pages = [(ROOT / "docs" / name).read_text() for name in ("contract.md", "operations.md")]
    contract, listed = (set(METRIC.findall(text)) for text in pages)
    assert len(contract) > 30
    assert {name for name in contract if not {name, f"{name}_total"} & listed} == set()


def first_cells(page: str, begins: str) -> set[str]:
    """What stands in code in the first cell of the rows that begin so."""
    lines = (ROOT / "docs" / page).read_text().splitlines()
    rows = [line for line in lines if line.startswith(f"| `{begins}")]
    return {name for line in rows for name in re.findall(r"`([^`]+)`", line.split("|")[1])}


def test_the_delayers_tables_have_all_its_reasons_and_knobs() -> None:
    text = (ROOT / "docs" / "data-parallel.md").read_text()
    reasons = set(re.findall(r"^\| \d+ \|.*\| `([a-z]+)` \|$", text, re.MULTILINE))
    assert reasons == set(get_args(Reason))
    assert reasons > WAITS
    knobs = set(DelayerConfig.model_fields)
    assert knobs <= set(re.findall(r"^\| `([a-z_]+)` \|", text, re.MULTILINE))
    spelt = {re.sub(r"_(.)", lambda found: found[1].upper(), f"delayer.{knob}") for knob in knobs}
    assert first_cells("reference.md", "delayer.") == spelt


def test_the_reference_has_every_key_of_the_state() -> None:
    said = report(
        State(),
        EngineConfig(),
        incarnation="",
        key_id=None,
        in_flight=0,
        draining=False,
        error=None,
    )
    text = (ROOT / "docs" / "reference.md").read_text()
    table = text[text.index("### What /pds/state tells") : text.index("### Signed headers")]
    assert {key for key in said if f"`{key}`" not in table} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in (link for line in prose(page) for link in LINK.findall(line)):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or target.suffix != ".md" or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_prose_keeps_its_width(page: Path) -> None:
    long = [line for line in prose(page) if len(line) > WIDTH and not line.startswith("|")]
    assert [line for line in long if "](" not in line and not line.startswith("    ")] == []
