import pytest
from msgspec.structs import replace
from pds_engine.config import EngineConfig
from pds_engine.messages import KernelsProof, State, Traffic
from pds_engine.server.state import report, sick, unready

IDLE = State(
    in_flight=0,
    running=0,
    transfers_in_flight=0,
    queued_tokens=0,
    kv_used=0,
    kv_total=8,
    kv_quarantined=0,
    draining=False,
    ranks_ready=1,
    kv_fingerprint="f00d",
    steps_done=0,
    oldest_step_seconds=0.0,
)
RUNNING = replace(IDLE, running=1, in_flight=1)


@pytest.mark.parametrize(
    ("state", "age", "error", "healthy"),
    [
        (None, 999, None, True),  # joining takes what it takes
        (IDLE, 9999, None, True),  # nothing to do, nothing to say
        (RUNNING, 1, None, True),
        (RUNNING, 61, None, False),  # at work, and silent
        (replace(RUNNING, oldest_step_seconds=59), 2, None, False),
        (replace(IDLE, oldest_step_seconds=61), 0, None, False),
        (IDLE, 0, "rank 1 died", False),
    ],
)
def test_sick(state, age, error, healthy):
    assert (sick(state, age, 60.0, error) is None) == healthy


PROOF = KernelsProof(manifest="m", compiled=1, reused=3, seconds=0.5)


@pytest.mark.parametrize(
    ("state", "warmup", "reason"),
    [
        (None, False, "0 of 2 ranks have joined"),
        (
            replace(IDLE, ranks_ready=1, missing=(1,)),
            False,
            "1 of 2 ranks have joined, missing: 1",
        ),
        (replace(IDLE, ranks_ready=2), False, None),
        (replace(IDLE, ranks_ready=2), True, "the kernels are not proven warm"),
        (replace(IDLE, ranks_ready=2, kernels=PROOF), True, None),
    ],
)
def test_unready(state, warmup, reason):
    cache = {"warmup": warmup, "path": "/var/cache/pds"}
    config = EngineConfig.model_validate(
        {"parallelism": {"pp": 2}, "cache": cache, "compile": True}
    )
    assert unready(state, config) == reason


def test_report():
    config = EngineConfig.model_validate({"role": "prefill", "pod": {"ip": "10.1.2.3"}})
    said = report(
        replace(
            RUNNING,
            kv_used=3,
            kv_cached=5,
            prefix_query_tokens=100,
            prefix_hit_tokens=48,
            kernels=PROOF,
            traffic=(Traffic(rank=0, steps=3, hidden_sent=3),),
        ),
        config,
        incarnation="inc",
        key_id="0123456789",
        in_flight=2,
        draining=True,
        error=None,
    )
    assert said == {
        "role": "prefill",
        "group": "local",
        "revision": "",
        "incarnation": "inc",
        "model": "default",
        "model_digest": "",
        "max_model_len": 4096,
        "control": "10.1.2.3:8001",
        "kv_fingerprint": "f00d",
        "protocol": 1,
        "key_id": "0123456789",
        "ready": True,
        "reason": "",
        "ranks_ready": 1,
        "in_flight": 2,
        "running": 1,
        "transfers_in_flight": 0,
        "queued_tokens": 0,
        "kv_used": 3,
        "kv_total": 8,
        "kv_quarantined": 0,
        "kv_cached": 5,
        "prefix_query_tokens": 100,
        "prefix_hit_tokens": 48,
        "steps_done": 0,
        "preemptions": 0,
        "draining": True,
        "kernels": {
            "manifest": "m",
            "compiled": 1,
            "reused": 3,
            "seconds": 0.5,
            "compiles_after_ready": 0,
        },
        "traffic": [
            {
                "rank": 0,
                "steps": 3,
                "hidden_sent": 3,
                "hidden_received": 0,
                "outputs_expected": 0,
                "outputs_sent": 0,
                "outputs_received": 0,
                "outputs_unneeded": 0,
            }
        ],
    }
