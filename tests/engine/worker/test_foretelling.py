"""What a worker is going to hold is said, and refused where it cannot fit, before it loads."""

import logging
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from cpu_libraries import without
from pds_engine.config import EngineConfig
from pds_engine.errors import ConfigError
from pds_engine.models.registry import check
from pds_engine.sizing import human, sizes
from pds_engine.worker import foretelling
from pds_engine.worker.foretelling import foretell

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def test_a_gpu_holds_weights_and_pages_of_its_rank(config, monkeypatch, caplog):
    [size] = sizes(config, check(config))
    memory = [size.weights + size.pool]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, memory[0]))
    with caplog.at_level(logging.INFO, "pds.worker"):
        foretell(config, 0, GPU)
    assert caplog.messages == [
        f"rank 0 is to hold {human(size.weights)} of weights (float32) "
        f"and {human(size.pool)} of KV pages"
    ]
    memory[0] -= 1
    with pytest.raises(ConfigError, match=r"memory: rank 0 would hold .*, its GPU has"):
        foretell(config, 0, GPU)


@pytest.fixture
def limit(tmp_path: Path) -> Path:
    """Where a container below `tmp_path` has its memory limit (cgroup v2); no file yet."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    (tmp_path / "proc/self/status").write_text("RssAnon:\t0 kB\n")
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    return tmp_path / "sys/fs/cgroup/memory.max"


@pytest.mark.parametrize("index", [0, 1])
def test_a_container_holds_those_of_all_ranks_of_its_pod(config, tmp_path, limit, index):
    """Two stages of two ranks each, and a pod a stage."""
    split = {"pp": 2, "tp": 2, "ranks_per_pod": 2}
    tree = {**config.model_dump(), "parallelism": split, "pod": {"index": index}}
    config = EngineConfig.model_validate(tree)
    mine = sizes(config, check(config))[2 * index : 2 * index + 2]
    need = sum(each.weights + each.pool for each in mine)
    foretell(config, 2 * index, CPU, tmp_path)  # without a file there is no limit
    for enough in ("max", str(need)):
        limit.write_text(f"{enough}\n")
        foretell(config, 2 * index, CPU, tmp_path)
    limit.write_text(f"{need - 1}\n")
    says = (
        rf"memory: rank {2 * index} \(stage {index}\) and 1 more would hold .*, this container has"
    )
    for rank in (2 * index, 2 * index + 1):
        with pytest.raises(ConfigError, match=says):
            foretell(config, rank, CPU, tmp_path)


@pytest.mark.parametrize(("compiled", "times"), [(False, 2), (True, 1)])
def test_a_cpu_that_cannot_multiply_in_the_model_s_dtype(
    config, tmp_path, limit, monkeypatch, compiled, times
):
    """Plain torch keeps float32, compiled kernels what is stored."""
    half = config.model.model_copy(update={"dtype": "bfloat16"})
    config = config.model_copy(update={"model": half})
    monkeypatch.setattr(foretelling, "compute_dtype", lambda dtype, device: torch.float32)
    [size] = sizes(config, check(config))
    with nullcontext() if compiled else without():
        limit.write_text(str(times * size.weights + size.pool))
        foretell(config, 0, CPU, tmp_path)
        limit.write_text(str(times * size.weights + size.pool - 1))
        with pytest.raises(ConfigError, match="this container has"):
            foretell(config, 0, CPU, tmp_path)


def test_what_a_share_of_the_container_leaves_must_hold_one_request(
    config, tmp_path, limit, caplog
):
    """Before anything is loaded: weights, tables of penalties, and pages of max_model_len."""
    kv = config.kv.model_copy(update={"pages": None, "memory_fraction": 0.5})
    config = config.model_copy(update={"kv": kv})
    [size] = sizes(config, check(config))
    need = 2 * (size.weights + 4 * 200 * 5 + 17 * size.page_bytes)
    limit.write_text(str(need))
    with caplog.at_level(logging.INFO, "pds.worker"):
        foretell(config, 0, CPU, tmp_path)
    assert f"and at most {human(17 * size.page_bytes)} of KV pages" in caplog.text
    limit.write_text(str(need - 2))
    with pytest.raises(ConfigError, match=r"^kv.memory_fraction: 0.5 of .*limits.memory") as it:
        foretell(config, 0, CPU, tmp_path)
    assert "raise kv.memory_fraction to 0.51" in str(it.value.hint)


def test_a_gpu_gives_nine_tenths(config, monkeypatch, caplog):
    config = config.model_copy(update={"kv": config.kv.model_copy(update={"pages": None})})
    [size] = sizes(config, check(config))
    total = (size.weights + 4 * 200 * 5 + 21 * size.page_bytes) * 10 // 9 + 1
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, total))
    with caplog.at_level(logging.INFO, "pds.worker"):
        foretell(config, 0, GPU)
    assert f"and at most {human(21 * size.page_bytes)} of KV pages" in caplog.text
