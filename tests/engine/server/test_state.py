import pytest
from msgspec.structs import replace
from pds_engine.config import EngineConfig
from pds_engine.messages import STATE_METRICS, KernelsProof, State, Traffic
from pds_engine.metrics import Gaps, ServerMetrics
from pds_engine.server.merged import merged
from pds_engine.server.state import report, unhealthy, unready
from prometheus_client import CollectorRegistry, Histogram, generate_latest

IDLE = State(kv_total=8, ranks_ready=1, kv_fingerprint="f00d")
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
    assert (unhealthy(state, age, 60.0, error) is None) == healthy


STARTUP = (("import", 2.0), ("weights", 3.5))
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


NUMBERS = {field: 100 + place for place, field in enumerate(STATE_METRICS)}
"""Another one for each number of a state, so that none is shown as another."""


def test_the_loads_of_dp_ranks_are_reported():
    ranks = [State(running=3, kv_total=8), State(queued_tokens=7)]
    said = report(
        State(), EngineConfig(), incarnation="i", key_id=None, in_flight=0, draining=False,
        error=None, dp_ranks=ranks,
    )  # fmt: skip
    idle = dict.fromkeys(("running", "queued_tokens", "kv_used", "kv_total", "in_flight"), 0)
    assert said["dp_ranks"] == [idle | {"running": 3, "kv_total": 8}, idle | {"queued_tokens": 7}]


def test_report():
    config = EngineConfig.model_validate({"role": "prefill", "pod": {"ip": "10.1.2.3"}})
    said = report(
        replace(
            IDLE,
            kernels=PROOF,
            traffic=(Traffic(rank=0, steps=3, hidden_sent=3),),
            startup=STARTUP,
        ),
        config,
        incarnation="inc",
        key_id="0123456789",
        in_flight=2,
        draining=True,
        error=None,
    )
    assert {key: value for key, value in said.items() if key not in STATE_METRICS} == {
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
        "kernels": {
            "manifest": "m",
            "compiled": 1,
            "reused": 3,
            "seconds": 0.5,
            "compiles_after_ready": 0,
        },
        "startup": {"import": 2.0, "weights": 3.5},
        "dp_ranks": [],
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


def test_every_number_is_reported_under_its_own_name():
    said = report(
        State(**NUMBERS),
        EngineConfig(),
        incarnation="",
        key_id=None,
        in_flight=2,
        draining=True,
        error=None,
    )
    reported = {field: said[field] for field in NUMBERS if field in said}
    servers = {"in_flight": 2, "draining": True}  # what the server knows better
    assert reported == {k: v for k, v in NUMBERS.items() if k != "oldest_step_seconds"} | servers


def test_what_was_compiled_after_ready_is_a_gauge():
    metrics = ServerMetrics()
    for count in (0, 3):
        metrics.show(State(kernels=replace(PROOF, compiles_after_ready=count)))
        assert f"pds_compiles_after_ready {count}.0" in metrics.text().decode().splitlines()


def test_the_slowest_start_is_told_by_phase():
    quick = State(startup=(("import", 2.5), ("weights", 1.0)))
    slow = State(startup=STARTUP)
    metrics = ServerMetrics()
    metrics.show(merged([quick, slow, State()]))
    lines = metrics.text().decode().splitlines()
    assert 'pds_startup_seconds{phase="import"} 2.0' in lines
    assert 'pds_startup_seconds{phase="weights"} 3.5' in lines


def test_every_number_is_a_gauge():
    metrics = ServerMetrics()
    metrics.show(State(**NUMBERS))
    lines = metrics.text().decode().splitlines()
    for field, metric in STATE_METRICS.items():
        assert f"{metric.name} {NUMBERS[field]}.0" in lines
        assert f"# TYPE {metric.name} gauge" in lines


def test_gaps_are_shown_as_a_histogram_s():
    """As prometheus_client's own, which costs more with every token."""
    bounds, registries = (0.001, 0.5, 1), (CollectorRegistry(), CollectorRegistry())
    ours, theirs = Gaps("x_seconds", "X.", bounds), Histogram(
        "x_seconds", "X.", buckets=bounds, registry=registries[1]
    )  # fmt: skip
    registries[0].register(ours)
    for seconds in (0.0, 0.001, 0.25, 0.5, 0.75, 3.0):
        ours.observe(seconds)
        theirs.observe(seconds)
    assert generate_latest(registries[0]) == generate_latest(registries[1])
