"""Which commit is the release before, in histories made for it."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import predecessor
import pytest

Commit = Callable[..., str]
PAGE = "# words\n```text\n{}\n```\n"


@pytest.fixture(autouse=True)
def unnamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PDS_RELEASE_BEFORE", raising=False)


def git(tree: Path, *words: str) -> str:
    who = {f"GIT_{kind}_{part}": "t@t" for kind in ("AUTHOR", "COMMITTER") for part in PARTS}
    env = {**os.environ, **who, "GIT_CONFIG_GLOBAL": os.devnull}
    done = subprocess.run(
        ["git", "-C", str(tree), *words], capture_output=True, text=True, check=True, env=env
    )
    return done.stdout.strip()


PARTS = ("NAME", "EMAIL")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    made = tmp_path / "tree"
    (made / "docs").mkdir(parents=True)
    (made / "crds").mkdir()
    git(made, "init", "--quiet", "--initial-branch=main")
    return made


def commit(tree: Path, listed: str, crd: str = "a", words: str = "") -> str:
    (tree / predecessor.PAGE).write_text(words + PAGE.format(listed))
    (tree / predecessor.CRD).write_text(crd)
    git(tree, "add", "-A")
    git(tree, "commit", "--quiet", "--allow-empty", "-m", f"{listed} {crd}")
    return git(tree, "rev-parse", "HEAD")


def test_it_is_the_newest_that_speaks_otherwise(tree):
    commit(tree, "one")
    two = commit(tree, "two")
    commit(tree, "three")
    commit(tree, "three", words="said better")
    assert predecessor.find(tree) == two


def test_another_crd_is_another_release(tree):
    one = commit(tree, "one", crd="a")
    commit(tree, "one", crd="b")
    assert predecessor.find(tree) == one


def test_what_is_not_committed_counts(tree):
    commit(tree, "one")
    two = commit(tree, "two")
    (tree / predecessor.PAGE).write_text(PAGE.format("three"))
    assert predecessor.find(tree) == two


def test_one_before_there_was_a_page_speaks_otherwise(tree):
    (tree / predecessor.CRD).write_text("a")
    git(tree, "add", "-A")
    git(tree, "commit", "--quiet", "-m", "no page")
    bare = git(tree, "rev-parse", "HEAD")
    commit(tree, "one")
    commit(tree, "one")
    assert predecessor.find(tree) == bare


def test_without_one_it_is_the_parent(tree):
    one = commit(tree, "one")
    commit(tree, "one", words="said better")
    assert predecessor.find(tree) == one


def test_a_shallow_clone_is_deepened_or_fails_by_name(tree, tmp_path):
    one = commit(tree, "one")
    commit(tree, "two")
    commit(tree, "two", words="said better")
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "--quiet", "--depth=1", f"file://{tree}", str(shallow))
    assert predecessor.find(shallow) == one
    again = tmp_path / "again"
    git(tmp_path, "clone", "--quiet", "--depth=1", f"file://{tree}", str(again))
    git(again, "remote", "set-url", "origin", str(tmp_path / "nowhere"))
    with pytest.raises(predecessor.NoPredecessor, match=r"shallow.*git fetch --unshallow"):
        predecessor.find(again)


def test_one_may_be_named(tree, monkeypatch):
    one = commit(tree, "one")
    commit(tree, "two")
    commit(tree, "three")
    monkeypatch.setenv("PDS_RELEASE_BEFORE", "HEAD~2")
    assert predecessor.find(tree) == one
