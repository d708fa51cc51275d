"""Discovery: the router's fleet follows the pods of a scripted API server."""

from collections import Counter

import pytest
from pds_engine.router.app import Router
from pds_engine.router.config import RouterConfig
from pds_engine.router.keyring import Keyring
from scripted_kube import event, kubeconfig, pod
from waiting import until

KEY = b"k" * 32


@pytest.fixture
async def discovering(api, monkeypatch, tmp_path):
    """A router that follows the fake API server; its engines all listen on one port."""
    routers = []

    async def start(port):
        monkeypatch.setattr("pds_engine.router.pods.HTTP_PORT", port)
        access = {"kubeconfig": kubeconfig(tmp_path, api.url)}
        health = {"interval": 0.05, "start_interval": 0.02, "timeout": 0.5}
        config = RouterConfig.model_validate(
            {"namespace": "ns", "pdserving": "chat", "health": health, "kubernetes": access}
        )
        router = Router(config, Keyring(KEY))
        await router.discovery.start()
        routers.append(router)
        return router

    yield start
    for router in routers:
        await router.close()


async def test_a_group_comes_drains_and_goes(api, discovering, engine):
    decode = await engine("decode")
    api.pods = [pod("chat-d-0-0-0", 1, ready="False")]
    router = await discovering(decode.port)
    response = await api.open.get()
    (backend,) = router.fleet
    assert router.fleet.synced
    assert router.fleet.reason(backend) == "the leader's containers are not ready"
    await response.write(event("MODIFIED", pod("chat-d-0-0-0", 101)))
    await until(lambda: router.fleet.reason(backend) == "")
    assert (backend.group, backend.kv) == (f"decode-{decode.port}", "kv-a")
    await response.write(event("MODIFIED", pod("chat-d-0-0-0", 102, deleting="2026")))
    await until(lambda: "deleted" in router.fleet.reason(backend))
    await response.write(event("DELETED", pod("chat-d-0-0-0", 103)))
    await until(lambda: not list(router.fleet))


@pytest.mark.parametrize("ends", ["DELETED", "Failed"])
async def test_decode_groups_learn_of_a_prefill_group_that_is_gone(api, discovering, engine, ends):
    async def accepts(seen, stream):
        await stream.json(200, {})

    both = await engine("decode", script=accepts)  # plays the prefill pods' states, too
    api.pods = [pod("chat-d-0-0-0", 1), pod("chat-p-0-3-0", 1), pod("chat-p-0-3-1", 1)]
    router = await discovering(both.port)
    response = await api.open.get()
    await until(lambda: all(b.state for b in router.fleet))
    if ends == "DELETED":
        await response.write(event("DELETED", pod("chat-p-0-3-0", 101)))
        await until(lambda: len(list(router.fleet)) == 1)
        assert both.calls == []  # its other pod may still write
        await response.write(event("DELETED", pod("chat-p-0-3-1", 102)))
    else:
        await response.write(event("MODIFIED", pod("chat-p-0-3-0", 101, phase="Failed")))
        await response.write(event("MODIFIED", pod("chat-p-0-3-1", 102, phase="Failed")))
    gone = {"uid-chat-p-0-3-0", f"inc-{both.port}"}
    await until(lambda: {seen.json["incarnation"] for seen in both.calls} == gone)
    await response.write(event("MODIFIED", pod("chat-d-0-0-0", 103, ready="False")))
    await until(lambda: any("not ready" in router.fleet.reason(b) for b in router.fleet))
    times = Counter(seen.json["incarnation"] for seen in both.calls)
    assert max(times.values()) <= 2  # once for each decode group that there is, and never again
    assert {seen.path for seen in both.calls} == {"/pds/peers/gone"}
    assert all("x-pds-signature" in seen.headers for seen in both.calls)
