"""The list and watch against a scripted API server over real HTTP; and discovery on top of it."""

import asyncio
import json
from collections import Counter, deque

import aiohttp
import pytest
import yaml
from aiohttp import web
from pds_engine.errors import ConfigError
from pds_engine.router import kube
from pds_engine.router.app import Router
from pds_engine.router.config import KubernetesConfig, RouterConfig
from pds_engine.router.keyring import Keyring
from pds_engine.router.kube import PodWatch

KEY = b"k" * 32
EXEC = "client.authentication.k8s.io/v1"


async def until(holds, seconds=5.0):
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def pod(name, version, *, ip="127.0.0.1", ready="True", phase="Running", deleting=None):
    _, role, group, attempt, rank = name.split("-")
    return {
        "kind": "Pod",
        "metadata": {
            "name": name,
            "uid": f"uid-{name}",
            "resourceVersion": str(version),
            "deletionTimestamp": deleting,
            "labels": {
                "pdserving.io/role": {"p": "prefill", "d": "decode"}[role],
                "pdserving.io/group": group,
                "pdserving.io/attempt": attempt,
                "pdserving.io/rank-pod": rank,
            },
            "annotations": {"large": "x" * 100_000},
        },
        "spec": {"containers": [{"name": "engine"}]},
        "status": {
            "phase": phase,
            "podIP": ip,
            "conditions": [{"type": "ContainersReady", "status": ready, "reason": None}],
        },
    }


def event(kind, value):
    return json.dumps({"type": kind, "object": value}).encode() + b"\n"


class FakeApi:
    """Answers lists from `pods`; each watch plays the next of `watches`, then stays open."""

    def __init__(self):
        self.pods, self.version = [], 100
        self.watches = deque()
        self.lists, self.asked = 0, []
        self.refuse = 0
        self.mute = []  # the kind of call that gets no answer, once
        self.page = None
        self.tokens, self.expired = [], ""
        self.open = asyncio.Queue()

    async def start(self):
        app = web.Application()
        app.router.add_get("/api/v1/namespaces/ns/pods", self.serve)
        self.runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self.runner.addresses[0][1]}"

    async def serve(self, request):
        assert request.query["labelSelector"]
        if self.mute == ["watch" if "watch" in request.query else "list"]:
            self.mute.clear()
            await asyncio.sleep(3600)
        self.tokens.append(request.headers["Authorization"])
        if self.tokens[-1] == self.expired:
            return web.json_response({"code": 401}, status=401)
        if self.refuse:
            return web.json_response({"code": self.refuse}, status=self.refuse)
        if "watch" not in request.query:
            return self.list(request)
        self.asked.append(request.query["resourceVersion"])
        script = self.watches.popleft() if self.watches else [b"hold"]
        if isinstance(script, int):
            return web.json_response({"code": script, "message": "gone"}, status=script)
        response = web.StreamResponse()
        await response.prepare(request)
        for data in script:
            if data == b"hold":
                self.open.put_nowait(response)
                await asyncio.sleep(3600)
            await response.write(data)
        return response

    def list(self, request):
        self.lists += 1
        items, more = self.pods, ""
        if self.page:
            start = int(request.query.get("continue") or 0)
            items = self.pods[start : start + self.page]
            more = str(start + self.page) if start + self.page < len(self.pods) else ""
        meta = {"resourceVersion": str(self.version), "continue": more}
        return web.json_response({"kind": "PodList", "metadata": meta, "items": items})

    async def stop(self):
        await self.runner.cleanup()


@pytest.fixture
async def api():
    server = FakeApi()
    await server.start()
    yield server
    await server.stop()


def kubeconfig(folder, server, **user):
    tree = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": user or {"token": "t"}}],
    }
    path = folder / "config"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture
async def watching(api, tmp_path):
    tasks = []

    async def start(**user):
        changes = []
        access = KubernetesConfig(kubeconfig=kubeconfig(tmp_path, api.url, **user))
        watch = PodWatch(access, "ns", "a=b,c in (d,e)", lambda: changes.append(1))
        await watch.login()
        tasks.append(asyncio.create_task(watch.run()))
        await until(lambda: changes or watch.trouble)
        return watch

    yield start
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def names(watch):
    return sorted(pod.metadata.name for pod in watch.pods.values())


async def test_added_modified_deleted(api, watching):
    api.pods = [pod("chat-p-0-0-0", 1)]
    api.watches.append(
        [
            event("ADDED", pod("chat-d-0-0-0", 101)),
            event("MODIFIED", pod("chat-p-0-0-0", 102, ready="False")),
            event("ADDED", pod("chat-p-1-0-0", 103)),
            event("DELETED", pod("chat-p-1-0-0", 104)),
            b"hold",
        ]
    )
    watch = await watching()
    await api.open.get()
    await until(lambda: not watch.pods["uid-chat-p-0-0-0"].ready)
    await until(lambda: names(watch) == ["chat-d-0-0-0", "chat-p-0-0-0"])
    assert api.lists == 1


async def test_a_clean_end_goes_on_from_the_last_version_seen(api, watching):
    api.watches.append([event("ADDED", pod("chat-p-0-0-0", 107))])
    api.watches.append([event("BOOKMARK", {"kind": "Pod", "metadata": {"resourceVersion": "150"}})])
    watch = await watching()
    await api.open.get()
    assert api.asked == ["100", "107", "150"]
    assert api.lists == 1
    assert names(watch) == ["chat-p-0-0-0"]


async def test_a_watch_that_falls_silent_goes_on_from_the_last_version_seen(
    api, watching, monkeypatch
):
    """Its packets are dropped both ways: nobody closes the connection."""
    assert kube.WATCH_TIMEOUT.sock_read <= 90
    monkeypatch.setattr(kube, "WATCH_TIMEOUT", aiohttp.ClientTimeout(sock_read=0.2))
    api.watches.append([event("ADDED", pod("chat-p-0-0-0", 107)), b"hold"])
    api.watches.append([event("ADDED", pod("chat-d-0-0-0", 108)), b"hold"])
    watch = await watching()
    await until(lambda: names(watch) == ["chat-d-0-0-0", "chat-p-0-0-0"])
    assert api.asked[:2] == ["100", "107"]
    assert (api.lists, watch.trouble) == (1, "")


@pytest.mark.parametrize("kind", ["list", "watch"])
async def test_a_server_that_never_answers_is_asked_again(api, watching, monkeypatch, kind):
    monkeypatch.setattr(kube, "LIST_TIMEOUT", aiohttp.ClientTimeout(total=0.3))
    api.mute, api.pods = [kind], [pod("chat-p-0-0-0", 1)]
    watch = await watching()
    await api.open.get()
    assert names(watch) == ["chat-p-0-0-0"]
    assert api.mute == []


@pytest.mark.parametrize(
    "gone",
    [410, [event("ERROR", {"kind": "Status", "code": 410, "message": "too old"})]],
    ids=["status 410", "event 410"],
)
async def test_410_lists_anew_and_drops_what_is_gone(api, watching, gone):
    api.pods = [pod("chat-p-0-0-0", 1), pod("chat-d-0-0-0", 1)]
    api.watches.append(gone)
    original = api.list

    def second(request):
        answer = original(request)
        api.pods, api.version = [pod("chat-d-0-0-0", 1)], 200
        return answer

    api.list = second
    watch = await watching()
    await api.open.get()
    assert api.asked == ["100", "200"]
    assert names(watch) == ["chat-d-0-0-0"]
    assert watch.trouble == ""


@pytest.mark.parametrize(
    "bad",
    [
        [event("ERROR", {"kind": "Status", "code": 500, "message": "etcd"})],
        [b"not json\n"],
        429,
    ],
)
async def test_other_errors_list_anew_after_a_pause(api, watching, bad):
    api.pods = [pod("chat-p-0-0-0", 1)]
    api.watches.append(bad)
    watch = await watching()
    await api.open.get()
    assert api.lists == 2
    assert names(watch) == ["chat-p-0-0-0"]


async def test_a_list_in_pages(api, watching):
    api.pods, api.page = [pod(f"chat-p-{i}-0-0", i) for i in range(5)], 2
    watch = await watching()
    await api.open.get()
    assert len(watch.pods) == 5
    assert api.lists == 3


async def test_an_outage_keeps_what_was_known(api, watching):
    api.pods = [pod("chat-p-0-0-0", 1)]
    api.watches.append([event("ADDED", pod("chat-d-0-0-0", 101))])
    api.watches.append(503)
    original = api.list

    def then_down(request):
        api.refuse = 0 if api.lists == 0 else 503
        return original(request)

    api.list = then_down
    watch = await watching()
    await until(lambda: api.asked == ["100", "101"])
    await until(lambda: "503" in watch.trouble)
    assert names(watch) == ["chat-d-0-0-0", "chat-p-0-0-0"]


async def test_a_pod_of_a_megabyte_is_one_line_and_one_beyond_the_bound_is_listed(api, watching):
    large = pod("chat-p-0-0-0", 101)
    large["metadata"]["annotations"]["large"] = "x" * 1_000_000
    larger = pod("chat-p-1-0-0", 102)
    larger["metadata"]["annotations"]["large"] = "x" * 5_000_000
    api.watches.append([event("ADDED", large), event("ADDED", larger)])
    watch = await watching()
    await until(lambda: names(watch) == ["chat-p-0-0-0"])
    api.pods, api.version = [large, larger], 102
    await api.open.get()
    assert names(watch) == ["chat-p-0-0-0", "chat-p-1-0-0"]
    assert (api.lists, api.asked) == (2, ["100", "102"])


async def test_a_plugins_token_that_expired_is_asked_for_anew(api, watching, tmp_path):
    """The plugin gives token-1, then token-2."""
    (tmp_path / "count").write_text("")
    script = f"""printf x >> {tmp_path}/count; n=$(wc -c < {tmp_path}/count)
    echo '{{"apiVersion":"{EXEC}","kind":"ExecCredential","status":{{"token":"token-'$n'"}}}}'"""
    api.expired = "Bearer token-1"
    watch = await watching(exec={"apiVersion": EXEC, "command": "sh", "args": ["-c", script]})
    await api.open.get()
    assert api.tokens == ["Bearer token-1", "Bearer token-2", "Bearer token-2"]
    assert watch.trouble == ""


@pytest.mark.parametrize(
    ("text", "context", "why"),
    [
        ("", None, "NoneType"),
        ("{}", None, "current-context"),
        ("current-context: [", None, "parsing a flow"),
        (None, "other", "name other"),
        (None, None, "current-context"),
    ],
    ids=["empty", "nothing chosen", "no YAML", "no such context", "no such file"],
)
async def test_a_kubeconfig_that_cannot_be_used_is_named(tmp_path, text, context, why):
    path = tmp_path / "config"
    if context:
        kubeconfig(tmp_path, "https://127.0.0.1:1")
    elif text is not None:
        path.write_text(text)
    watch = PodWatch(KubernetesConfig(kubeconfig=path, context=context), "ns", "a=b", list)
    with pytest.raises(ConfigError, match=f"{path}.*{why}"):
        await watch.login()


async def test_without_any_cluster_the_error_says_what_to_do(monkeypatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ConfigError, match="--backend"):
        await PodWatch(KubernetesConfig(), "ns", "a=b", list).login()


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
async def test_decode_groups_are_told_of_a_prefill_group_that_is_gone(
    api, discovering, engine, ends
):
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
