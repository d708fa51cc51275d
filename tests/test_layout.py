"""The shape of the tree: what would break imports or leak a machine into the repository."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent


def tracked(*patterns: str) -> list[Path]:
    names = subprocess.run(
        ["git", "ls-files", "--", *patterns], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split("\n")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def test_top_folders_are_not_packages():
    """`operator` as a package would shadow the standard library's."""
    for folder in ("operator", "engine", "kernels"):
        assert not (ROOT / folder / "__init__.py").exists()
    import operator

    assert operator.add(1, 1) == 2


def test_no_package_marker_under_tests():
    assert tracked("tests/**/__init__.py", "tests/__init__.py") == []


def test_no_file_has_two_subjects():
    long = {
        str(path.relative_to(ROOT)): lines
        for path in tracked("*.py")
        if (lines := len(path.read_text().splitlines())) > 380
    }
    assert long == {}


def test_constraints_hold_names_and_versions_alone():
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert line.startswith("#") or re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line), line


def test_product_code_raises_errors_of_our_tree():
    """An assert vanishes under -O, and says nothing to the user."""
    product = tracked("operator/*.py", "engine/*.py", "kernels/*.py")
    found = [path.name for path in product if re.search(r"^\s*assert ", path.read_text(), re.M)]
    assert found == []
