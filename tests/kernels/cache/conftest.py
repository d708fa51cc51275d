"""Helpers of these tests alone; tests have no packages."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cache_pods import pod_on
from pds_kernels.cache import Cache


@pytest.fixture
def pod(tmp_path: Path) -> Callable[..., Cache]:
    """The cache as another pod has it at each call: the same volume, and a folder of its own."""
    return lambda secret=b"key", **options: pod_on(tmp_path, secret, **options)
