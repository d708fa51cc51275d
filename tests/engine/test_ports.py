"""All ports of a pod in one plan: no width that the CRD admits makes two of them meet."""

import itertools
from typing import Any

import pytest
from pds_engine.config import EngineConfig
from pds_engine.errors import ConfigError
from pds_engine.ports import ROOM, KvAddress, PodPorts, kv_address, plan
from pds_operator import names
from pds_operator.errors import SpecError
from pds_operator.render.owner import Owner
from pds_operator.render.shared import network_policies
from pds_operator.schema import parse
from pds_operator.schema.crd import definition
from pds_operator.settings import Settings

EPHEMERAL = 32768
"""Linux gives this port and those above it to outgoing connections."""
WIDTHS = (1, 2, 3, 7, 8, 9, 10, 11, 12, 16, 31, 32, 63, 64, 65, 66)


def config(pod: int = 0, **parallelism: int) -> EngineConfig:
    return EngineConfig.model_validate({"parallelism": parallelism, "pod": {"index": pod}})


def used(ports: PodPorts) -> list[int]:
    return [port for block in ports.blocks for port in block.ports]


def admitted(**parallelism: int) -> bool:
    """Whether the CRD lets such a role be: its models are what its schema is generated from."""
    own = {key: value for key, value in parallelism.items() if key != "ranks_per_pod"}
    role = {"parallelism": own, "ranksPerPod": parallelism["ranks_per_pod"]}
    model = {"name": "tiny", "source": {"path": "/models/tiny"}}
    try:
        parse({"model": model, "unified": role})
    except SpecError:
        return False
    return True


def test_the_ports_of_a_single_rank() -> None:
    assert used(plan(config())) == [8000, 9090, 8001, 8100, *range(8200, 8208)]


def test_the_ports_of_a_leader_and_of_another_pod() -> None:
    wide = {"pp": 2, "tp": 3, "dp": 2, "ranks_per_pod": 3}
    assert used(plan(config(**wide))) == [
        *(8000, 9090, 8001, 8002, 8090),
        *(8100, 8101, 8102, *range(8200, 8224)),
    ]
    assert used(plan(config(pod=3, **wide))) == [
        *(8000, 9090, 8100, 8101, 8102, *range(8200, 8224))
    ]


def test_a_rank_counts_within_its_pod() -> None:
    """The numbers would leave the range of ports otherwise: a group has up to 64³ ranks."""
    wide = config(pod=3, pp=4, tp=4, ranks_per_pod=4)
    assert [kv_address(wide, rank) for rank in (12, 15)] == [
        KvAddress("127.0.0.1", 8100, range(8200, 8208)),
        KvAddress("127.0.0.1", 8103, range(8224, 8232)),
    ]


def test_no_two_uses_meet_at_any_width_that_the_crd_admits() -> None:
    for pod, dp, ranks in itertools.product((0, 1), range(1, 65), range(1, 65)):
        found = used(plan(config(pod, dp=dp, tp=ranks, ranks_per_pod=ranks)))
        assert len(set(found)) == len(found)
        assert 1024 <= min(found) <= max(found) < EPHEMERAL


def test_the_crd_and_the_plan_have_one_bound() -> None:
    """The CRD admits what there are ports for, and refuses what there are none for."""
    for dp, ranks in itertools.product(WIDTHS, WIDTHS):
        width = {"tp": min(ranks, 64), "dp": dp, "ranks_per_pod": ranks}
        if ranks > 64:
            width["pp"] = ranks  # ranks_per_pod has to divide them
        try:
            plan(config(**width))
            fits = True
        except ConfigError:
            fits = False
        # The CRD bounds pp too, which needs no port.
        assert fits == (dp <= ROOM and ranks <= ROOM)
        assert admitted(**{**width, "pp": 1}) == fits, width


def test_the_schema_of_the_crd_says_it() -> None:
    schema: Any = definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for role in names.ROLES:
        shape = schema["properties"]["spec"]["properties"][role]["properties"]
        assert shape["ranksPerPod"]["maximum"] == ROOM
        assert shape["parallelism"]["properties"]["dp"]["maximum"] == ROOM


@pytest.mark.parametrize(
    ("parallelism", "says"),
    [
        ({"dp": 65}, "parallelism.dp: a pod has ports for 64, got 65"),
        (
            {"tp": 65, "ranks_per_pod": 65},
            "parallelism.ranks_per_pod: a pod has ports for 64, got 65",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(parallelism: dict[str, int], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        plan(config(**parallelism))


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({"http": {"port": 9090}}, "http.port and http.metrics_port: port 9090 is both for HTTP"),
        (
            {"http": {"control_port": 8101}, "parallelism": {"tp": 2, "ranks_per_pod": 2}},
            "http.control_port and kv.port_base: port 8101 is both",
        ),
        ({"kv": {"port_base": 7900}}, "http.port and kv.port_base: port 8000 is both"),
        (
            {"http": {"control_port": 65535}, "parallelism": {"dp": 2}},
            "http.control_port: from 65535 on there is no room for 2 ports of control",
        ),
    ],
)
def test_settings_that_put_two_uses_on_one_port_are_named(
    tree: dict[str, dict[str, int]], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        plan(EngineConfig.model_validate(tree))


def test_any_free_port_is_in_nobodys_way() -> None:
    free = {"port": 0, "metrics_port": 0, "control_port": 0, "rendezvous_port": 0}
    anywhere = EngineConfig.model_validate({"http": free, "kv": {"port_base": 0}})
    assert used(plan(anywhere)) == []
    assert kv_address(anywhere, 0) == KvAddress("127.0.0.1", 0, range(0))


def test_ucx_has_no_port_where_it_is_not_offered() -> None:
    tcp = EngineConfig.model_validate({"kv": {"backends": ["tcp"], "port_base": 7900}})
    assert used(plan(tcp)) == [8000, 9090, 8001, 7900]


def test_the_policy_among_engines_names_no_port() -> None:
    """In a rollout groups of two releases meet, whose ports differ: messages carry them."""
    owner = Owner(name="chat", namespace="default", uid="u")
    engine = network_policies(owner, Settings())[0]["spec"]["ingress"]
    among = [rule for rule in engine if rule["from"] == [{"podSelector": engine_pods(rule)}]]
    assert among and "ports" not in among[0]


def engine_pods(rule: dict[str, Any]) -> dict[str, Any] | None:
    selector = rule["from"][0].get("podSelector", {})
    return selector if "matchExpressions" in selector else None
