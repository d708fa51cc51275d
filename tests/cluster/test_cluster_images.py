"""The Containerfiles of images/ fit the tree they are built from."""

import re
import tomllib
from pathlib import Path

import pytest
from pds_cluster.settings import TREE, UID

FILES = sorted((TREE / "images").glob("*.Containerfile"))
PROJECT = tomllib.loads((TREE / "pyproject.toml").read_text())["project"]


def instructions(path: Path, word: str) -> list[str]:
    text = re.sub(r"\\\n", " ", path.read_text())
    return [line.partition(" ")[2].strip() for line in text.splitlines() if line.startswith(word)]


def test_there_is_one_for_the_operator_and_one_for_the_engine():
    assert [path.name for path in FILES] == ["engine.Containerfile", "operator.Containerfile"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_runs_as_nobody_in_particular(path):
    assert instructions(path, "USER") == [f"{UID}:{UID}"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_copies_what_is_there_and_installs_extras_that_exist(path):
    arguments = dict(text.split("=") for text in instructions(path, "ARG"))
    assert arguments["EXTRAS"] in PROJECT["optional-dependencies"]
    copied = [text.split() for text in instructions(path, "COPY") if not text.startswith("--from")]
    sources = [source for *sources, _ in copied for source in sources]
    assert "constraints.txt" in sources
    assert [source for source in sources if not (TREE / source).exists()] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_starts_a_program_that_the_project_installs(path):
    (command,) = instructions(path, "CMD")
    assert re.findall(r'"([^"]+)"', command)[0] in PROJECT["scripts"]


def test_the_operators_image_refuses_to_be_built_with_torch():
    (install,) = (
        text
        for text in instructions(TREE / "images" / "operator.Containerfile", "RUN")
        if "pip" in text
    )
    assert '! /opt/pdserving/bin/python -c "import torch"' in install
