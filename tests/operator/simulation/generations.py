"""Which control key is the active one, and which revisions can start, read from the Secrets."""

from typing import Any

from pds_operator import names, revision
from pds_operator.facts.reading import owner_uid
from simulation.server import ApiServer
from simulation.serving import RING

Object = dict[str, Any]


class Generations:
    """Of the PDServing `uid`: a predecessor's Secrets are none of its."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server
        self._began: dict[str, str] = {}
        """By operator, the active key when its round began."""

    def begins(self, operator: str, uid: str) -> None:
        """A round of `operator` begins."""
        self._began[operator] = self.active(uid)

    def target(self, spec: Object, uid: str, operator: str = "") -> str:
        """The revision that `spec` asks for; as it was when the round of `operator` began."""
        key = self._began.get(operator, "") if operator else self.active(uid)
        return revision.digest(spec, key)

    def active(self, uid: str) -> str:
        """The id of the control key that new revisions have; the first has none."""
        ring = self._server.find("Secret", RING)
        if ring is None or owner_uid(ring) not in (uid, ""):
            return ""
        secret = str((ring["metadata"].get("annotations") or {}).get(names.ACTIVE, ""))
        return secret.removeprefix("chat-control").removeprefix("-")

    def startable(self, digest: str) -> bool:
        """The Secret that its pods mount is there."""
        stored = self._server.find("ControllerRevision", names.revision("chat", digest))
        key = (stored or {}).get("data", {}).get("key", "")
        return self._server.find("Secret", names.control_secret("chat", key)) is not None
