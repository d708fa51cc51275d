"""Pods over one volume, and what they build."""

import uuid
from pathlib import Path

import pytest
from pds_kernels.cache import Cache

INPUTS = {"source": "abc", "torch": "2", "shape": "16"}


def pod_on(root: Path, secret: bytes = b"key", **options) -> Cache:
    return Cache(root / "volume", root / f"pod-{uuid.uuid4().hex}", secret, **options)


def build(folder: Path) -> None:
    (folder / "kernel.so").write_bytes(b"code")


def never(folder: Path) -> None:
    pytest.fail("compiled twice")
