"""A scripted API server over real HTTP, its pods and their events."""

import asyncio
import json
from collections import deque

import yaml
from aiohttp import web


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
