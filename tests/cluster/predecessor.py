"""The release before this one: the newest ancestor that speaks otherwise, checked out."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serving import ROOT

PAGE, CRD = "docs/contract.md", "crds/pdservings.yaml"
BEGIN = "```text"
"""The list on the page begins with it: tests/contract.py writes it."""
DEEPER = 200
"""Commits by which a shallow clone is deepened."""
PLACE = ROOT / ".cache" / "release-before"


class NoPredecessor(Exception):
    """It cannot be found; says why."""


def find(tree: Path = ROOT) -> str:
    """The newest ancestor whose contract or CRD differs from those of the working tree.

    Where none does it is the parent: the code may differ all the same. PDS_RELEASE_BEFORE names
    another commit, such as the release that you run.

    Raises:
        NoPredecessor: the history is cut off before there is one.
    """
    if named := os.environ.get("PDS_RELEASE_BEFORE"):
        return _git(tree, "rev-parse", "--verify", f"{named}^{{commit}}")
    found = _differs(tree)
    if found is None and _git(tree, "rev-parse", "--is-shallow-repository") == "true":
        try:
            _git(tree, "fetch", "--quiet", f"--deepen={DEEPER}")
        except subprocess.CalledProcessError as error:
            raise NoPredecessor(
                "this clone is shallow, and no commit of it speaks otherwise; it cannot be "
                f"deepened ({error.stderr.partition(chr(10))[0]}): git fetch --unshallow"
            ) from error
        found = _differs(tree)
    if found is None:
        try:
            found = _git(tree, "rev-parse", "--verify", "--quiet", "HEAD^")
        except subprocess.CalledProcessError as error:
            raise NoPredecessor("there is one commit alone: git fetch --unshallow") from error
    return found


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """A git worktree of it below this tree, which pods of the local cluster mount."""
    place = PLACE / commit[:12]
    _remove(place)
    _git(ROOT, "worktree", "add", "--quiet", "--detach", str(place), commit)
    try:
        yield place
    finally:
        _remove(place)


def _remove(place: Path) -> None:
    """Also what a test that was killed has left."""
    if place.exists():
        _git(ROOT, "worktree", "remove", "--force", str(place))
    _git(ROOT, "worktree", "prune")


def _differs(tree: Path) -> str | None:
    now = tuple(_listed((tree / name).read_text()) for name in (PAGE, CRD))
    for commit in _git(tree, "rev-list", "--first-parent", "HEAD").splitlines():
        if tuple(_listed(_at(tree, commit, name)) for name in (PAGE, CRD)) != now:
            return commit
    return None


def _listed(text: str) -> str:
    """What counts of a page is its list; of a file without one, all of it."""
    return text.partition(BEGIN)[2] or text


def _at(tree: Path, commit: str, name: str) -> str:
    words = ["git", "-C", str(tree), "show", f"{commit}:{name}"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout


def _git(tree: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(tree), *words], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()
