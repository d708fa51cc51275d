"""The client's end of one call: where its answer goes, and whether it is still there."""

from pds_engine.body import Receive
from pds_engine.router.answers import Send
from pds_engine.wakeup import Wakeup


class Client:
    """`wakeup` is poked when anything happens that the call's task may wait for."""

    def __init__(self, send: Send) -> None:
        self.send = send
        self.wakeup = Wakeup()
        self.gone = False

    async def watch(self, receive: Receive) -> None:
        """Wait until it leaves, and note it."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        self.wakeup.set()

    async def give(self, data: bytes, *, more: bool) -> None:
        """A part of the body."""
        await self.send({"type": "http.response.body", "body": data, "more_body": more})
