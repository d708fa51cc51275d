"""What goes over the wire, and how the operator proves who it is."""

import json
from pathlib import Path

import pytest
import yaml
from aiohttp import web
from kubernetes.aio.client import Configuration
from kubernetes.aio.config import incluster_config, kube_config
from pds_operator import errors
from pds_operator.run.api import Api, login

EXEC = "client.authentication.k8s.io/v1"
LEASE = {
    "kind": "Lease",
    "metadata": {"namespace": "team", "name": "it"},
    "spec": {"holderIdentity": "é"},
}
LEASES = "/apis/coordination.k8s.io/v1/namespaces/team/leases"
PODS = "/api/v1/namespaces/team/pods"
REVISIONS = "/apis/apps/v1/namespaces/team/controllerrevisions"
ODD = {"smile": "\U0001f600", "<&>": "\x7f\u2028\ufeff\x00", "one": [1, 1.5, None, True]}
"""What JSON, YAML and Go each write in a way of their own."""
REVISION = {
    "apiVersion": "apps/v1",
    "kind": "ControllerRevision",
    "metadata": {"namespace": "team", "name": "it"},
    "revision": 1,
    "data": ODD,
}


class EchoServer:
    """Answers with the object sent, unless `refuse` has another answer; keeps what was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, str], str, object]] = []
        self.tokens: list[str | None] = []
        self.refuse: dict[str, tuple[int, str]] = {}
        self.headers: dict[str, str] = {}
        self.url = ""

    async def handle(self, request: web.Request) -> web.Response:
        text = await request.text()
        read = yaml.safe_load if "yaml" in request.content_type else json.loads
        body = read(text) if text else None
        query = dict(request.query)
        self.asked.append((request.method, request.path, query, request.content_type, body))
        self.tokens.append(request.headers.get("Authorization"))
        status, answer = self.refuse.get(self.tokens[-1] or "", (200, text or "{}"))
        return web.Response(status=status, text=answer, headers=self.headers)


@pytest.fixture
async def server():
    server = EchoServer()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield server
    await runner.cleanup()


@pytest.fixture
async def api(server):
    async with Api(Configuration(host=server.url)) as api:
        yield api


MANAGED = {"fieldManager": "pds-operator"}
STRICTLY = {"dryRun": "All", "fieldValidation": "Strict"}
GONE = {
    "kind": "DeleteOptions",
    "apiVersion": "v1",
    "preconditions": {"uid": "u"},
    "propagationPolicy": "Background",
    "gracePeriodSeconds": 0,
}


@pytest.mark.parametrize(
    ("call", "asked"),
    [
        (
            lambda api: api.get("Lease", "team", "it"),
            ("GET", f"{LEASES}/it", {}, "application/json", None),
        ),
        (
            lambda api: api.create(LEASE),
            ("POST", LEASES, MANAGED, "application/json", LEASE),
        ),
        (
            lambda api: api.create(LEASE, dry_run=True),
            ("POST", LEASES, MANAGED | STRICTLY, "application/json", LEASE),
        ),
        (
            lambda api: api.create(REVISION),
            ("POST", REVISIONS, MANAGED, "application/yaml", REVISION),
        ),
        (
            lambda api: api.replace(LEASE),
            ("PUT", f"{LEASES}/it", {}, "application/json", LEASE),
        ),
        (
            lambda api: api.apply(LEASE),
            (
                "PATCH",
                f"{LEASES}/it",
                {**MANAGED, "force": "true"},
                "application/apply-patch+yaml",
                LEASE,
            ),
        ),
        (
            lambda api: api.merge("Pod", "team", "it", {"metadata": {"uid": "u"}}),
            (
                "PATCH",
                f"{PODS}/it",
                MANAGED,
                "application/merge-patch+json",
                {"metadata": {"uid": "u"}},
            ),
        ),
        (
            lambda api: api.strategic("Pod", "team", "it", {"status": {"x": None}}, "status"),
            (
                "PATCH",
                f"{PODS}/it/status",
                MANAGED,
                "application/strategic-merge-patch+json",
                {"status": {"x": None}},
            ),
        ),
        (
            lambda api: api.delete("Pod", "team", "it", "u", grace=0),
            ("DELETE", f"{PODS}/it", {}, "application/json", GONE),
        ),
    ],
    ids=[
        "get",
        "create",
        "dry run",
        "revision",
        "replace",
        "apply",
        "merge",
        "strategic",
        "delete",
    ],
)
async def test_each_call_as_the_api_server_sees_it(server, api, call, asked):
    await call(api)
    assert server.asked == [asked]


async def test_selectors_arrive_as_they_were_meant(server, api):
    server.refuse = {"": (200, '{"metadata": {"resourceVersion": "1"}, "items": null}')}
    selector, fields = "a=b,role in (x,y),!z", "status.phase!=Running"
    assert await api.list("Pod", None, selector, fields) == ([], "1")
    [(_, path, query, *_)] = server.asked
    assert path == "/api/v1/pods"
    assert query == {"labelSelector": selector, "fieldSelector": fields}


@pytest.mark.parametrize(
    ("status", "text", "kind", "message"),
    [
        (409, '{"reason": "AlreadyExists", "message": "taken"}', errors.Conflict, "taken"),
        (404, '{"reason": "NotFound", "message": "no it"}', errors.Missing, "no it"),
        (503, "<html>busy", errors.ApiError, "<html>busy"),
        (500, "", errors.ApiError, "HTTP 500"),
    ],
)
async def test_a_refusal_is_an_error_of_ours(server, api, status, text, kind, message):
    server.refuse = {"": (status, text)}
    with pytest.raises(kind) as caught:
        await api.get("Lease", "team", "it")
    assert (type(caught.value), caught.value.message) == (kind, message)
    assert caught.value.status == status


BUSY = '{"reason": "TooManyRequests", "details": {"retryAfterSeconds": 7}}'
"""What the API server says while it reads its storage anew."""


@pytest.mark.parametrize(
    ("status", "text", "headers", "after"),
    [
        (429, "Too many requests, please try again later.", {"Retry-After": "3"}, 3),
        (429, BUSY, {}, 7),
        (429, BUSY, {"Retry-After": "2"}, 2),
        (429, "", {}, 1),
        (429, "", {"Retry-After": "Sat, 21 Nov 2026 19:00:00 GMT"}, 1),
        (429, "", {"Retry-After": "86400"}, 60),
        (503, "shutting down", {"Retry-After": "5"}, 5),
        (504, '{"reason": "Timeout", "details": {"retryAfterSeconds": 4}}', {}, 4),
    ],
)
async def test_a_server_without_room_says_how_long_to_wait(
    server, api, status, text, headers, after
):
    server.refuse, server.headers = {"": (status, text)}, headers
    with pytest.raises(errors.Throttled) as caught:
        await api.replace(LEASE)
    assert (caught.value.status, caught.value.after) == (status, after)
    assert len(server.asked) == 1


def plugin(server: EchoServer, folder: Path) -> Path:
    """A kubeconfig whose credential plugin gives token-1, then token-2, and so on."""
    count = folder / "count"
    script = f"""printf x >> {count}; n=$(wc -c < {count})
    echo '{{"apiVersion":"{EXEC}","kind":"ExecCredential","status":{{"token":"token-'$n'"}}}}'"""
    user = {"exec": {"apiVersion": EXEC, "command": "sh", "args": ["-c", script]}}
    tree = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": server.url}}],
        "users": [{"name": "u", "user": user}],
    }
    path = folder / "config"
    path.write_text(yaml.safe_dump(tree))
    return path


async def test_a_refused_token_is_asked_for_anew_once(server, tmp_path, monkeypatch):
    path = plugin(server, tmp_path)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(path))
    async with Api(await login()) as api:
        server.refuse = {"Bearer token-1": (401, "expired")}
        assert await api.replace(LEASE) == LEASE
        assert server.tokens == ["Bearer token-1", "Bearer token-2"]
        server.refuse = {f"Bearer token-{number}": (401, "expired") for number in (2, 3, 4)}
        with pytest.raises(errors.ApiError, match="expired"):
            await api.replace(LEASE)
        assert server.tokens[2:] == ["Bearer token-2", "Bearer token-3"]


async def test_a_pod_uses_its_service_account(tmp_path, monkeypatch):
    for name, text in {"token": "first", "ca.crt": "certificate"}.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    found = await login()
    assert (found.host, found.ssl_ca_cert) == ("https://[fd00::1]:443", str(tmp_path / "ca.crt"))
    assert await found.get_api_key_with_prefix("BearerToken") == "bearer first"


async def test_without_a_cluster_the_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    with pytest.raises(errors.SettingsError, match="set KUBECONFIG"):
        await login()
