"""Rendered objects, against golden files. `PDS_UPDATE_GOLDEN=1` writes them anew."""

import json
import os
from pathlib import Path
from typing import get_args

import pytest
import yaml
from pds_engine.config import EngineConfig, ParallelConfig
from pds_operator import schema
from pds_operator.errors import SpecError
from pds_operator.render import config, engine, router, shared
from pds_operator.schema import EngineSpec
from pds_operator.settings import Settings
from worlds import OWNER, raw_spec

GOLDEN = Path(__file__).parent / "golden"
EXAMPLES = Path(__file__).parents[2] / "examples"


def check(name: str, value: object) -> None:
    path = GOLDEN / f"{name}.yaml"
    text = yaml.safe_dump(json.loads(json.dumps(value)), sort_keys=False)
    if os.environ.get("PDS_UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


def example(name: str) -> dict:
    return yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())["spec"]


SITE = Settings(
    pod_defaults={
        "volumes": [{"name": "host", "hostPath": {"path": "/usr"}}],
        "volumeMounts": [{"name": "host", "mountPath": "/usr", "readOnly": True}],
        "env": [{"name": "HOME", "value": "/home/pds"}],
        "commandPrefix": "/opt/bin",
    }
)


@pytest.mark.parametrize(
    ("name", "settings"), [("chat", Settings()), ("unified", SITE)], ids=["chat", "unified-site"]
)
def test_everything_of_an_example(name, settings):
    raw = example(name)
    wanted = schema.parse(raw)
    data = engine.render(raw, wanted, OWNER, settings)
    pods = {role: shape.groups * shape.pods_per_group for role, shape in wanted.roles.items()}
    made = [
        *shared.objects(OWNER, wanted, settings, pods),
        *router.objects(OWNER, wanted, settings),
        engine.config_map(OWNER, "0123456789", data),
        *(engine.pod(OWNER, data, role, 0, 0, 0, 0) for role in wanted.roles),
    ]
    check(name, made)


def render(raw: dict, **settings: object) -> dict:
    return engine.render(raw, schema.parse(raw), OWNER, Settings(**settings))


def test_ranks_of_one_group_differ_in_place_alone():
    data = render(raw_spec(prefill={"parallelism": {"pp": 2, "tp": 2}, "ranksPerPod": 2}))
    assert engine.pods_per_group(data, "prefill") == 2
    leader, other = (engine.pod(OWNER, data, "prefill", 3, 1, rank, 0) for rank in (0, 1))
    assert leader["metadata"]["name"] == "chat-p-3-1-0"
    assert other["spec"]["hostname"] == "chat-p-3-1-1"
    assert leader["spec"]["readinessGates"] == [{"conditionType": "pdserving.io/routable"}]
    assert "readinessGates" not in other["spec"]
    env = {item["name"]: item.get("value") for item in other["spec"]["containers"][0]["env"]}
    assert env["PDS_GROUP"] == "chat-p-3-1"
    assert env["PDS_RANK_POD"] == "1"
    assert env["PDS_LEADER"] == "chat-p-3-1-0.chat-ranks.team.svc"


def test_the_longest_name_fits():
    data = render(raw_spec())
    long = engine.Owner("x" * 40, "team", "uid")
    name = engine.pod(long, data, "prefill", 9999, 99999, 999, 0)["metadata"]["name"]
    assert len(name) <= 63


def test_the_warm_up_has_the_engines_resources_and_mounts():
    limits = {"limits": {"nvidia.com/gpu": 1}}
    data = render(raw_spec(compileCache={}, decode={"resources": limits}))
    pod = engine.pod(OWNER, data, "decode", 0, 0, 0, 0)
    [warmup], [main] = pod["spec"]["initContainers"], pod["spec"]["containers"]
    assert warmup["command"][-3:] == ["warmup", "--config", "/etc/pds/engine.json"]
    for key in ("resources", "volumeMounts", "image", "env", "securityContext"):
        assert warmup[key] == main[key]


@pytest.mark.parametrize(
    ("volume", "expected"),
    [
        (None, {"emptyDir": {}}),
        ({"ephemeral": {}}, {"emptyDir": {}}),
        ({"existingClaim": "mine"}, {"persistentVolumeClaim": {"claimName": "mine"}}),
        ({"claim": {"size": "1Gi"}}, {"persistentVolumeClaim": {"claimName": "chat-cache"}}),
    ],
)
def test_cache_volumes(volume, expected):
    cache = {} if volume is None else {"volume": volume}
    pod = engine.pod(OWNER, render(raw_spec(compileCache=cache)), "decode", 0, 0, 0, 0)
    assert {"name": "cache", **expected} in pod["spec"]["volumes"]


def test_paths_of_the_node_need_leave():
    raw = raw_spec(compileCache={"volume": {"hostPath": "/cache"}})
    with pytest.raises(SpecError, match="allowHostPath"):
        render(raw)
    allowed = render(raw, pod_defaults={"allowHostPath": True})
    volumes = allowed["roles"]["decode"]["template"]["spec"]["volumes"]
    assert {"path": "/cache", "type": "DirectoryOrCreate"} in [v.get("hostPath") for v in volumes]
    mounted = {"spec": {"volumes": [{"name": "etc", "hostPath": {"path": "/etc"}}]}}
    with pytest.raises(SpecError, match=r"spec\.decode\.podTemplate\.spec\.volumes\[etc\]"):
        render(raw_spec(decode={"podTemplate": mounted}))


def test_a_roles_own_engine_block_overrides_key_by_key():
    raw = raw_spec(
        engine={"chunkSize": 128, "delayer": {"enabled": True, "maxTicks": 5}},
        prefill={"engine": {"chunkSize": 256, "delayer": {"maxTicks": 9}}},
    )
    wanted = schema.parse(raw)
    prefill, decode = (config.engine_config(wanted, role) for role in ("prefill", "decode"))
    assert prefill["scheduler"] == {"chunk_size": 256}
    assert prefill["delayer"] == {"enabled": True, "max_ticks": 9}
    assert decode["scheduler"] == {"chunk_size": 128}
    assert "max_model_len" not in decode  # the engine's own default holds
    assert "kv" not in decode  # so that older engines, which know no fraction, take it


EVERYTHING = {
    "maxModelLen": 100,
    "pageSize": 8,
    "kvDtype": "float16",
    "kvPages": 10,
    "kvMemoryBytes": 1 << 20,
    "kvMemoryFraction": 0.75,
    "kvBackends": ["shm"],
    "chunkSize": 64,
    "chunkedPrefill": "separate",
    "dynamicChunks": True,
    "preemption": "none",
    "maxRunning": 3,
    "maxWaiting": 4,
    "prefixCache": False,
    "asyncScheduling": False,
    "stepTimeoutSeconds": 5,
    "joinTimeoutSeconds": 6,
    "requestTimeoutSeconds": 7,
    "pipeline": {"skipOutput": False},
    "delayer": {
        "enabled": False,
        "maxTicks": 8,
        "restTicks": 2,
        "align": 1.5,
        "lowWatermark": 0.5,
        "maxSeconds": 2.5,
    },
    "dp": {"syncDevice": "device", "gather": "none"},
    "device": "cpu",
    "threads": 9,
    "compile": False,
    "cudaGraphs": False,
    "logLevel": "debug",
}
"""Each field of `engine`, with another value than the engine's default."""


def leaves(tree: dict, path: str = "") -> dict:
    """Values by dotted keys."""
    found: dict = {}
    for key, value in tree.items():
        own = {path + key: value} if not isinstance(value, dict) else leaves(value, f"{path}{key}.")
        found |= own
    return found


def test_the_engine_reads_every_field_of_the_spec():
    assert EVERYTHING.keys() == {field.alias for field in EngineSpec.model_fields.values()}
    for field in ("delayer", "dp", "pipeline"):
        kind = next(iter(get_args(EngineSpec.model_fields[field].annotation)))
        assert EVERYTHING[field].keys() == {each.alias for each in kind.model_fields.values()}
    wide = {
        "parallelism": {"pp": 2, "tp": 2, "dp": 2, "ep": True},
        "ranksPerPod": 4,
        "engine": EVERYTHING,
    }
    rendered = config.engine_config(schema.parse(raw_spec(decode=wide)), "decode")
    read = EngineConfig.model_validate(json.loads(json.dumps(rendered)))
    assert read.parallelism == ParallelConfig(pp=2, tp=2, dp=2, ep=True, ranks_per_pod=4)
    told, taken = leaves(rendered), leaves(read.model_dump(mode="json"))
    assert told == {key: taken[key] for key in told}
    default = leaves(EngineConfig().model_dump(mode="json"))
    own = {place for place in config.PLACES.values() if place in told}
    assert [place for place in own if taken[place] == default[place] and place != "compile"] == []


def test_a_wide_group_has_all_its_pods_in_one_budget_and_its_leader_alone_is_looked_for():
    raw = raw_spec(decode={"replicas": 2, "parallelism": {"tp": 2, "dp": 4}, "ranksPerPod": 2})
    wanted, data = schema.parse(raw), render(raw)
    shape = wanted.roles["decode"]
    assert (shape.groups, shape.pods_per_group) == (2, 4)
    pods = [engine.pod(OWNER, data, "decode", 1, 0, index, 0) for index in range(4)]
    marks = [pod["metadata"]["labels"].get("pdserving.io/meeting-point") for pod in pods]
    assert marks == ["true", None, None, None]
    policy, _ = shared.network_policies(OWNER, Settings())
    among = policy["spec"]["ingress"][0]
    # Schedulers listen on 8001 + dp rank: all ports are open among a PDServing's engine pods.
    assert "ports" not in among
    labels = pods[3]["metadata"]["labels"]
    assert among["from"][0]["podSelector"]["matchLabels"].items() <= labels.items()


def test_a_role_can_be_without_a_prefix_cache():
    wanted = schema.parse(raw_spec(prefill={"engine": {"prefixCache": False}}))
    prefill, decode = (config.engine_config(wanted, role) for role in ("prefill", "decode"))
    assert prefill["scheduler"]["prefix_cache"] is False
    assert "prefix_cache" not in decode.get("scheduler", {})


def test_the_schedulers_policies_reach_it():
    policies = {"chunkedPrefill": "separate", "dynamicChunks": True, "preemption": "none"}
    wanted = schema.parse(raw_spec(engine=policies))
    assert config.engine_config(wanted, "decode")["scheduler"] == {
        "chunked_prefill": "separate",
        "dynamic_chunks": True,
        "preemption": "none",
    }


def test_a_retained_claim_has_no_owner():
    def claim(**more: object) -> dict:
        raw = raw_spec(compileCache={"volume": {"claim": {"size": "1Gi"}, **more}})
        made = shared.cache_claim(OWNER, schema.parse(raw))
        assert made is not None
        return made

    assert "ownerReferences" in claim()["metadata"]
    assert "ownerReferences" not in claim(retain=True)["metadata"]


def test_router_replicas_are_left_to_a_scaler_when_left_out():
    def deployment(raw: dict) -> dict:
        return router.objects(OWNER, schema.parse(raw), Settings())[-1]

    assert "replicas" not in deployment(raw_spec())["spec"]
    assert deployment(raw_spec(router={"replicas": 0}))["spec"]["replicas"] == 0


@pytest.mark.parametrize(("pods", "least"), [(0, 0), (1, 0), (6, 5)])
def test_budgets_are_integers(pods, least):
    budget = shared.disruption_budget(OWNER, "prefill", pods)
    assert budget["spec"]["minAvailable"] == least
