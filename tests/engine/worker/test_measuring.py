"""Pages by measurement: the largest step runs on every kind of model, and what it takes is seen."""

import logging
import mmap
from pathlib import Path

import pytest
import torch
from pds_engine.config import EngineConfig
from pds_engine.errors import ConfigError
from pds_engine.models.loader import load
from pds_engine.models.registry import FAMILIES
from pds_engine.parallel.groups import Groups
from pds_engine.worker import largest
from pds_engine.worker.measuring import Measuring
from pds_engine.worker.meter import Host
from random_models import saved

CPU = torch.device("cpu")
MIB = 1 << 20


class Scripted:
    """A meter that says what a test says."""

    source = "resources.limits.memory"

    def __init__(self, total: int, used: list[int], peak: int) -> None:
        self.total = total
        self._used = used
        self._peak = peak

    def used(self) -> int:
        return self._used.pop(0)

    def base(self) -> int:
        return 0

    def reset(self) -> None:
        assert not self._used

    def peak(self) -> int:
        return self._peak

    def others(self) -> int:
        return 0


def by_memory(config: EngineConfig, **keys: object) -> EngineConfig:
    kv = config.kv.model_copy(update={"pages": None, **keys})
    return config.model_copy(update={"kv": kv})


def test_what_loading_and_the_step_took_is_not_for_pages(config, caplog):
    """4 layers of 2 heads of 16, float32: a page is 16 KiB. 10 MiB less 2, 3 and the tables."""
    config = by_memory(config, memory_fraction=0.25)
    meter = Scripted(40 * MIB, [100, 100 + 2 * MIB, 100 + 2 * MIB], 100 + 5 * MIB)
    measuring = Measuring(config, 0, CPU, meter)
    with caplog.at_level(logging.INFO, "pds.worker"):
        found = measuring.pages(load(config, 0, CPU), Groups())
    assert found == 64  # 4 requests of 256 tokens hold no more, though there is room for 319
    tables = 4 * 200 * 5
    assert f"a step {(3 * MIB - tables) / MIB:.2f} MiB, penalties 3.91 KiB" in caplog.text
    meter = Scripted(24 * MIB, [100, 100 + 2 * MIB, 100 + 2 * MIB], 100 + 5 * MIB)
    measuring = Measuring(config, 0, CPU, meter)
    assert measuring.pages(load(config, 0, CPU), Groups()) == MIB // (16 << 10) - 1


def test_a_step_that_leaves_nothing_is_refused_with_its_size(config):
    config = by_memory(config, memory_fraction=0.25)
    meter = Scripted(24 * MIB, [100, 100 + 2 * MIB, 100 + 2 * MIB], 100 + 6 * MIB)
    measuring = Measuring(config, 0, CPU, meter)
    with pytest.raises(ConfigError, match=r"2\.00 MiB for weights, 4\.00 MiB for a step") as it:
        measuring.pages(load(config, 0, CPU), Groups())
    assert "raise kv.memory_fraction to 0.27" in str(it.value.hint)


@pytest.mark.parametrize(
    ("bounds", "length", "found"),
    [
        ({"max_running": 4, "chunk_size": 32}, 256, [33, 1, 1, 1]),
        ({"max_running": 4, "chunk_size": 32, "max_step_tokens": 24}, 256, [21, 1, 1, 1]),
        ({"max_running": 3, "chunk_size": 64}, 48, [48, 18, 1]),  # two chunks: prompts are short
        ({"max_running": 1, "chunk_size": 32}, 256, [33]),
    ],
)
def test_the_largest_step_has_all_tokens_and_all_rows(config, bounds, length, found):
    tree = config.model_dump() | {"scheduler": bounds, "max_model_len": length}
    config = EngineConfig.model_validate(tree)
    assert largest.lengths(config) == found


def test_contexts_are_as_long_as_pages_can_be(config):
    assert largest.contexts(config, [33, 1, 1, 1], 10_000) == [256] * 4
    assert largest.contexts(config, [33, 1, 1, 1], 400) == [256, 48, 48, 48]
    assert largest.contexts(config, [33, 30, 1], 256) == [256, 30, 1]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: saved(name, tmp_path_factory.mktemp(name)) for name in FAMILIES}


@pytest.mark.parametrize("architecture", FAMILIES)
def test_every_family_computes_it(models, architecture):
    config = EngineConfig.model_validate(
        {
            "model": {"path": models[architecture], "dtype": "float32"},
            "max_model_len": 64,
            "scheduler": {"max_running": 4, "chunk_size": 32},
        }
    )
    decoder = load(config, 0, CPU)
    alike = decoder.of_each_kind()
    assert list(alike.layers) == list(dict.fromkeys(decoder.layers))
    whole = {id(held) for held in decoder.weights.layers}
    assert {id(held) for held in alike.weights.layers} <= whole
    largest.run(config, decoder, CPU, held=1000)


def test_a_process_sees_its_peak_and_begins_anew():
    process = Host()
    process.reset()
    before = process.used()
    block = mmap.mmap(-1, 32 * MIB)  # malloc may have as much that is resident already
    torch.frombuffer(block, dtype=torch.uint8).fill_(1)
    assert process.used() - before >= 31 * MIB
    block.close()
    assert process.peak() - before >= 31 * MIB
    process.reset()
    assert process.peak() - before < 16 * MIB
    assert process.others() == 0


def test_a_peak_that_cannot_begin_anew_counts_too_much(tmp_path, caplog):
    own = tmp_path / "proc/self"
    own.mkdir(parents=True)
    (own / "cgroup").write_text("")
    (tmp_path / "proc/meminfo").write_text("MemAvailable: 2048 kB\n")
    (own / "status").write_text("VmHWM:\t  90 kB\nVmRSS:\t  40 kB\n")
    (own / "clear_refs").mkdir()  # cannot be written
    host = Host(tmp_path)
    with caplog.at_level(logging.INFO, "pds.worker"):
        host.reset()
    assert "includes that of loading" in caplog.text
    assert (host.total, host.used(), host.peak()) == (2048 << 10, 40 << 10, 90 << 10)
    assert host.source == "MemAvailable of this machine"


@pytest.mark.slow
@pytest.mark.parametrize("split", [{"tp": 2}, {"pp": 2}, {"dp": 2}])
def test_the_ranks_of_a_group_agree(start, shaped, greedy, prompt, submit, split):
    """They measure together, and each dp rank has the pages that it asked for."""
    keys = {f"parallelism__{axis}": ranks for axis, ranks in split.items()}
    group = start(shaped(kv__pages=None, **keys), "measured")
    group.await_ready()
    ids = prompt(40, 3)
    found = group.collect(submit("r", ids, 6))
    assert [token.token for token in found["r"]] == greedy(ids, 6)
    assert group.state.kv_total == 64 * split.get("dp", 1)  # 4 requests of 256 tokens
    said = [line for line in group.log.read_text().splitlines() if "memory of rank" in line]
    assert len(said) == 2
    assert all("64 KV pages" in line for line in said)
