"""Lists and watches against a small API server on loopback."""

import asyncio
import json
import time

import kopf
import pytest
from aiohttp import ClientTimeout, web
from kubernetes.aio.client import Configuration
from pds_operator import errors
from pds_operator.run import api, handlers
from pds_operator.run.api import Api
from pds_operator.run.cluster import Store, follow

KEY = ("team", "chat")


def service(name: str, version: int, **spec: object) -> dict:
    return {
        "kind": "Service",
        "metadata": {
            "name": name,
            "namespace": "team",
            "uid": f"uid-{name}",
            "resourceVersion": str(version),
            "labels": {"pdserving.io/name": "chat"},
        },
        "spec": spec,
    }


class WatchServer:
    """Answers lists from `items` and each watch from the next of `watches` (lines, then EOF)."""

    def __init__(self) -> None:
        self.items: list[dict] = []
        self.version = 10
        self.watches: list[list[dict]] = []
        self.asked: list[dict[str, str]] = []
        self.busy: list[str] = []
        """Retry-After of the answers before all others, each of which is a 429."""
        self.at: list[float] = []
        self.mute: list[str] = []
        """The kind of call that gets no answer, once."""
        self.done = asyncio.Event()
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(dict(request.query))
        self.at.append(time.monotonic())
        if self.busy:
            return web.Response(status=429, headers={"Retry-After": self.busy.pop(0)})
        if self.mute == ["watch" if "watch" in request.query else "list"]:
            self.mute.clear()
            await asyncio.Event().wait()
        if "watch" not in request.query:
            body = {
                "apiVersion": "v1",
                "metadata": {"resourceVersion": str(self.version)},
                "items": self.items,
            }
            return web.json_response(body)
        response = web.StreamResponse()
        await response.prepare(request)
        if not self.watches:
            self.done.set()
            await asyncio.Event().wait()
        for event in self.watches.pop(0):
            if "sleeps" in event:
                await asyncio.Event().wait()
            await response.write(json.dumps(event).encode() + b"\n")
        return response


@pytest.fixture
async def server():
    server = WatchServer()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield server
    await runner.cleanup()


async def followed(server: WatchServer) -> tuple[Store, list]:
    changed: list = []
    store = Store(changed.append)
    async with Api(Configuration(host=server.url)) as api:
        task = asyncio.create_task(follow(api, store, "Service", "team", asyncio.Event()))
        await asyncio.wait_for(server.done.wait(), 5)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    return store, changed


def names(store: Store) -> set[str]:
    return {name for _, name in store.owned(KEY).objects}


async def test_a_watch_resumes_where_the_last_one_ended(server):
    server.items = [service("a", 5)]
    bookmark = {"metadata": {"resourceVersion": "30"}}
    server.watches = [
        [{"type": "ADDED", "object": service("b", 20)}, {"type": "BOOKMARK", "object": bookmark}],
        [{"type": "DELETED", "object": service("a", 31)}],
    ]
    store, _ = await followed(server)
    assert names(store) == {"b"}
    versions = [query["resourceVersion"] for query in server.asked if "watch" in query]
    assert versions == ["10", "30", "31"]
    assert all(query["labelSelector"] == "pdserving.io/name" for query in server.asked)


async def test_a_watch_that_falls_silent_goes_on_where_it_was(server, monkeypatch):
    """Its packets are dropped both ways: nobody closes the connection."""
    assert api.WATCH_TIMEOUT.sock_read <= 90
    monkeypatch.setattr(api, "WATCH_TIMEOUT", ClientTimeout(sock_read=0.2))
    silence = {"sleeps": True}
    server.watches = [
        [{"type": "ADDED", "object": service("a", 20)}, silence],
        [{"type": "ADDED", "object": service("b", 21)}],
    ]
    store, _ = await followed(server)
    assert names(store) == {"a", "b"}
    watches = [query for query in server.asked if "watch" in query]
    assert [query["resourceVersion"] for query in watches] == ["10", "20", "21"]
    # The server ends it before that, where it has no bookmark to send.
    assert {query["timeoutSeconds"] for query in watches} == {"60"}


@pytest.mark.parametrize("kind", ["list", "watch"])
async def test_a_server_that_never_answers_is_asked_again(server, monkeypatch, kind):
    monkeypatch.setattr(api, "TIMEOUT", ClientTimeout(total=0.3))
    server.items, server.mute = [service("a", 5)], [kind]
    store, _ = await followed(server)
    assert names(store) == {"a"}
    assert server.mute == []


def test_kopfs_watch_of_pdservings_is_not_trusted_for_longer():
    settings = kopf.OperatorSettings()
    handlers.configure(settings)
    assert settings.watching.server_timeout <= 60
    assert settings.watching.inactivity_timeout <= 90
    assert settings.watching.client_timeout <= 90


async def test_gone_means_list_anew_and_drop_what_is_gone(server):
    server.items = [service("a", 5), service("b", 6)]
    gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}

    class Expired(list):
        """The list changes while this watch is answered."""

        def __iter__(self):
            server.items, server.version = [service("b", 6)], 50
            return super().__iter__()

    server.watches = [Expired([{"type": "ERROR", "object": gone}])]
    store, changed = await followed(server)
    assert names(store) == {"b"}
    assert KEY in changed
    assert [query.get("resourceVersion") for query in server.asked] == [None, "10", None, "50"]


async def test_a_server_without_room_is_asked_again_when_it_says(server):
    server.items, server.busy = [service("a", 5)], ["1"]
    store, _ = await followed(server)
    assert names(store) == {"a"}
    assert [query.get("resourceVersion") for query in server.asked] == [None, None, "10"]
    assert server.at[1] - server.at[0] >= 1


async def test_items_of_a_list_know_what_they_are(server):
    item = service("a", 5)
    del item["kind"]
    server.items = [item]
    store, _ = await followed(server)
    [(obj, _)] = store.owned(KEY).objects.values()
    assert (obj["apiVersion"], obj["kind"]) == ("v1", "Service")


async def test_an_event_of_a_megabyte_is_one_event(server):
    server.watches = [[{"type": "ADDED", "object": service("big", 20, text="x" * 1_000_000)}]]
    store, _ = await followed(server)
    assert names(store) == {"big"}


async def test_an_event_beyond_any_bound_is_listed_anew(server):
    """The client reads lines of 4 MiB; the API server takes objects of 3 MB."""

    class Then(list):
        def __iter__(self):
            server.items, server.version = list(server.items), 20
            server.items.append(service("huge", 20))
            return super().__iter__()

    server.watches = [
        Then([{"type": "ADDED", "object": service("huge", 20, text="x" * 5_000_000)}])
    ]
    store, _ = await followed(server)
    assert names(store) == {"huge"}
    assert [query.get("resourceVersion") for query in server.asked] == [None, "10", None, "20"]


def test_older_than_what_is_known_is_ignored():
    store = Store(lambda key: None)
    store.put(service("a", 9, color="new"))
    store.put(service("a", 8, color="old"))
    [(obj, _)] = store.owned(KEY).objects.values()
    assert obj["spec"] == {"color": "new"}


def pod(version: int, **status: object) -> dict:
    obj = service("chat-p-0-0-0", version)
    place = {"role": "prefill", "group": "0", "attempt": "0", "rank-pod": "0", "revision": "r"}
    obj["metadata"]["labels"] |= {f"pdserving.io/{key}": value for key, value in place.items()}
    return {**obj, "kind": "Pod", "status": status}


def test_what_says_nothing_new_is_no_reason_to_look():
    changed: list = []
    store = Store(changed.append)
    store.put(service("a", 9, color="new"))
    store.put(pod(10, phase="Pending"))
    assert changed == [KEY, KEY]
    store.put(service("a", 9, color="new"))  # our own write, come back by the watch
    store.put(service("a", 8, color="old"))
    store.put(pod(11, phase="Pending", hostIP="192.0.2.1"))  # of no interest
    assert changed == [KEY, KEY]
    store.put(pod(12, phase="Running"))
    assert changed == [KEY, KEY, KEY]


def test_a_pod_is_known_by_its_name_whatever_its_labels_say():
    changed: list = []
    store = Store(changed.append)
    store.put(pod(10))
    moved = pod(11)
    del moved["metadata"]["labels"]["pdserving.io/rank-pod"]
    moved["metadata"]["labels"]["pdserving.io/group"] = "7"
    store.put(moved)
    [(facts, _)] = store.owned(KEY).pods.values()
    assert (facts.role, facts.group, facts.attempt, facts.rank_pod) == ("prefill", 0, 0, 0)
    right = dict(facts.wrong)
    assert {right["pdserving.io/rank-pod"], right["pdserving.io/group"]} == {"0"}
    assert changed == [KEY, KEY]


@pytest.mark.parametrize(
    ("mounted", "revision", "right"),
    [("chat-0123456789", "0123456789", False), ("chat-mine", "r", True), ("mine", "r", True)],
)
def test_the_configuration_that_a_pod_mounts_says_its_revision(mounted, revision, right):
    """Where a podTemplate mounts another, the label does."""
    store, obj = Store(lambda key: None), pod(10)
    obj["spec"] = {"volumes": [{"name": "config", "configMap": {"name": mounted}}]}
    store.put(obj)
    [(facts, _)] = store.owned(KEY).pods.values()
    assert (facts.revision, not facts.wrong) == (revision, right)


def test_of_endpoints_only_those_of_the_endpoints_service_are_kept():
    store = Store(lambda key: None)
    for name, ready in (("chat", True), ("chat-ranks", True)):
        obj = {**service(f"{name}-1", 10), "kind": "EndpointSlice"}
        obj["metadata"]["labels"]["kubernetes.io/service-name"] = name
        obj["endpoints"] = [
            {"conditions": {"ready": ready}, "targetRef": {"kind": "Pod", "name": "r1"}},
            {"conditions": {"ready": False}, "targetRef": {"kind": "Pod", "name": "r2"}},
            {"conditions": {}, "targetRef": {"kind": "Pod", "name": "r3"}},
        ]
        store.put(obj)
    [(obj, _)] = store.owned(KEY).objects.values()
    assert obj["metadata"]["name"] == "chat-1"
    assert obj["ready"] == ["r1", "r3"]


def parent(version: int, generation: int, **status: object) -> dict:
    meta = {"name": "chat", "namespace": "team", "uid": "u", "resourceVersion": str(version)}
    return {"metadata": {**meta, "generation": generation}, "spec": {}, "status": status}


def test_a_status_that_we_have_written_is_no_reason_to_look_but_a_new_spec_in_its_answer_is():
    changed: list = []
    store = Store(changed.append)
    store.put_parent(parent(1, 1))
    store.put_parent(parent(2, 1, ready="yes"), ours=True)
    store.put_parent(parent(2, 1, ready="yes"))  # the same by the watch
    assert changed == [KEY]
    assert store.parent(KEY)["status"] == {"ready": "yes"}
    store.put_parent(parent(4, 2, ready="no"), ours=True)
    assert changed == [KEY, KEY]
    store.put_parent(parent(5, 2, ready="a lie"))  # by somebody else
    assert changed == [KEY, KEY, KEY]


@pytest.mark.parametrize(
    ("status", "body", "kind", "reason"),
    [
        (404, {"message": "x"}, errors.Missing, "Missing"),
        (409, {"reason": "AlreadyExists"}, errors.Conflict, "Conflict"),
        (410, {"reason": "Expired"}, errors.Gone, "Gone"),
        (
            403,
            {"message": "pods is forbidden: exceeded quota: q"},
            errors.AdmissionDenied,
            "QuotaExceeded",
        ),
        (
            403,
            {"message": "x", "details": {"causes": [{"reason": "NamespaceTerminating"}]}},
            errors.AdmissionDenied,
            "NamespaceTerminating",
        ),
        (403, {"message": "maximum cpu usage per Pod is 1"}, errors.AdmissionDenied, "LimitRange"),
        (403, {"message": "User cannot create"}, errors.ApiError, "Forbidden"),
        (422, {"message": "spec.x: Invalid"}, errors.Invalid, "Invalid"),
        (400, {"message": "strict decoding error: unknown x"}, errors.Invalid, "Invalid"),
        (400, {"message": "json: cannot unmarshal"}, errors.ApiError, "ApiError"),
        (429, None, errors.Throttled, "Throttled"),
        (500, None, errors.ApiError, "ApiError"),
    ],
)
def test_refusals(status, body, kind, reason):
    error = errors.from_status(status, body)
    assert type(error) is kind
    assert error.reason == reason


@pytest.mark.parametrize(
    ("secret", "label", "key", "right"),
    [
        ("chat-control", "", "", True),
        ("chat-control-0123456789", "0123456789", "0123456789", True),
        ("chat-control-0123456789", "", "0123456789", False),
        ("chat-control-0123456789", "9876543210", "0123456789", False),
        ("chat-control", "9876543210", "", True),  # a label more than ours
        ("mine", "9876543210", "9876543210", True),
        ("mine", "mine", "", True),
    ],
)
def test_the_secret_that_a_pod_mounts_says_its_control_key(secret, label, key, right):
    """Where a podTemplate mounts another, the label does."""
    store, obj = Store(lambda key: None), pod(10)
    obj["metadata"]["labels"] |= {"pdserving.io/key": label} if label else {}
    obj["spec"] = {"volumes": [{"name": "keys", "secret": {"secretName": secret}}]}
    store.put(obj)
    [(facts, _)] = store.owned(KEY).pods.values()
    assert (facts.key, not facts.wrong) == (key, right)
