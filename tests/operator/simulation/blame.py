"""What a revision may be blamed for, and what comes before it."""

from typing import Any

from pds_operator import names
from simulation.generations import Generations
from simulation.kubelet import Kubelet
from simulation.server import ApiServer

Object = dict[str, Any]


class RevisionBlame:
    """Knows which revisions are good, and what was lost while nobody looked."""

    def __init__(self, server: ApiServer, kubelet: Kubelet, generations: Generations) -> None:
        self._server, self._kubelet, self._generations = server, kubelet, generations
        self._lost: tuple[str, str] | None = None
        """(role, revision) of a group that vanished, until it is made again."""
        self._left = False
        """Other groups of that are there, for all to see, and one more could start."""

    def begins(self) -> None:
        """A round begins."""
        able = self._lost is not None and self._generations.startable(self._lost[1])
        pods = self._server.all("Pod") if able else []
        self._left = any(self._is_lost(pod["metadata"]["labels"]) for pod in pods)

    def forget(self) -> None:
        """What was lost is not asked for any more."""
        self._lost = None

    def vanished(self, role: str, digest: str) -> None:
        """A group is gone without a trace, and a spec is asked for before anybody sees it."""
        self._lost = role, digest

    def rejected(self, wanted: Object, live: Object) -> str:
        """What is wrong with giving up a revision; nothing, if nothing is."""
        notes = wanted["metadata"].get("annotations") or {}
        digest = live["metadata"]["name"].removeprefix("chat-")
        if live["kind"] != "ControllerRevision" or not notes.get(names.FAILED):
            return ""
        others = [o for o in self._server.all("ControllerRevision") if o is not live]
        if not any(names.SERVED in (o["metadata"].get("annotations") or {}) for o in others):
            return f"revision {digest} is given up for one that never stood whole"
        # Whatever its control key is: the image says what it does.
        nature = str(live["data"]["spec"]["image"]).rpartition("-")[2]
        good = nature == "good" and digest not in self._kubelet.faulty
        return f"revision {digest} is good, and given up: {notes[names.FAILED]}" if good else ""

    def made(self, labels: Object) -> str:
        """What is wrong with making a pod of a new group."""
        if self._lost is None or labels[names.ROLE] != self._lost[0]:
            return ""
        if labels[names.REVISION] == self._lost[1]:
            self._lost = None
            return ""
        if not self._left:
            return ""  # nothing of it can be made whole, as far as this round knew
        return "something new is made before what was lost of the revision that serves"

    def _is_lost(self, labels: Object) -> bool:
        known = labels.get(names.NAME) == "chat"
        return known and (labels.get(names.ROLE), labels.get(names.REVISION)) == self._lost
