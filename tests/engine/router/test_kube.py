"""The list and watch against a scripted API server over real HTTP."""

import asyncio

import aiohttp
import pytest
from pds_engine.errors import ConfigError
from pds_engine.router import kube
from pds_engine.router.config import KubernetesConfig
from pds_engine.router.kube import PodWatch
from scripted_kube import event, kubeconfig, pod
from waiting import until

EXEC = "client.authentication.k8s.io/v1"


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
