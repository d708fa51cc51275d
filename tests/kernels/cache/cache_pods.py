"""Pods over one volume, and what they build."""

import uuid
from pathlib import Path

import pytest
from pds_kernels.cache import Cache
from pds_kernels.cache.flight import published

INPUTS = {"source": "abc", "torch": "2", "shape": "16"}


def pod_on(root: Path, secret: bytes = b"key", **options) -> Cache:
    return Cache(root / "volume", root / f"pod-{uuid.uuid4().hex}", secret, **options)


def leftovers(root: Path) -> list[str]:
    """What no cache should leave in scratch folders, and locks whose holders have not published."""
    locks = [path for path in root.glob("*/v1/locks/*") if not published(path.read_bytes())]
    return [str(path.relative_to(root)) for path in [*root.glob("*/v1/tmp/*"), *locks]]


def build(folder: Path) -> None:
    (folder / "kernel.so").write_bytes(b"code")


def never(folder: Path) -> None:
    pytest.fail("compiled twice")
