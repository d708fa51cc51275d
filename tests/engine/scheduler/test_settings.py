import pytest
from pds_engine.config import EngineConfig, KvConfig, ParallelConfig, SchedulerConfig
from pds_engine.errors import ConfigError
from pds_engine.messages import Role
from pds_engine.scheduler.settings import Settings


def test_bounds_come_from_the_configuration() -> None:
    config = EngineConfig(role="prefill", parallelism=ParallelConfig(pp=2, tp=2))
    settings = Settings.of(config)
    assert (settings.role, settings.ranks, settings.depth) == ("prefill", 4, 3)
    assert settings.step_tokens == 512 + 64
    assert [settings.pages_for(tokens) for tokens in (0, 1, 16, 17)] == [0, 1, 1, 2]


def test_policies_come_from_the_configuration() -> None:
    usual = Settings.of(EngineConfig())
    assert (usual.separate, usual.recompute, usual.elastic(False)) == (False, True, True)
    policies = SchedulerConfig(chunked_prefill="separate", preemption="none")
    chosen = Settings.of(EngineConfig(scheduler=policies))
    assert (chosen.separate, chosen.recompute, chosen.elastic(True)) == (True, False, False)


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_only_a_unified_group_computes_anew(role: Role) -> None:
    assert not Settings.of(EngineConfig(role=role)).recompute


@pytest.mark.parametrize(
    ("window", "read"), [(None, None), (4096, None), (4095, 4095), (32, 32), (1, 2)]
)
def test_a_window_that_no_context_leaves_is_none(window: int | None, read: int | None) -> None:
    """And one of a single token counts as two."""
    assert Settings.of(EngineConfig(max_model_len=4096), window).window == read


@pytest.mark.parametrize(
    ("bounds", "named"),
    [
        (SchedulerConfig(chunk_size=15), "chunk_size 15"),
        (SchedulerConfig(max_running=64, max_step_tokens=79), "max_step_tokens 79"),
    ],
)
def test_bounds_that_no_prompt_could_live_with(bounds: SchedulerConfig, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Settings.of(EngineConfig(scheduler=bounds, kv=KvConfig(page_size=16)))
