"""The one thread of a worker that touches the transport.

Orders come from the worker's thread by a queue and an eventfd. Events are reported by `on_event`,
on this thread. It sleeps in epoll: TCP needs no polling. Only while a one-sided write
may be under way (NIXL has no event to wait for) does it poll, every 150 µs.
"""

import logging
import os
import secrets
import selectors
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final

from msgspec.msgpack import encode

from pds_engine.config import KvBackend, KvConfig
from pds_engine.errors import PdsError
from pds_engine.keys import Keys
from pds_engine.kv.pool import KvPool
from pds_engine.kv.transfer.base import Offer, Registered, TransferLimits, encode_offer
from pds_engine.kv.transfer.channel import INSTANCE, Channel, Credentials
from pds_engine.kv.transfer.receiver import Receiver
from pds_engine.kv.transfer.registry import start_backends
from pds_engine.kv.transfer.sender import Sender
from pds_engine.messages import (
    CloseTransfer,
    Expect,
    Fault,
    Forget,
    Forgotten,
    KvEndpoint,
    Message,
    OpenTransfer,
    Push,
)
from pds_engine.ports import KvAddress

_log = logging.getLogger(__name__)

POLL_SECONDS: Final = 150e-6
_TICK_SECONDS: Final = 0.1
_STOP_SECONDS: Final = 5.0

Order = OpenTransfer | Push | CloseTransfer | Expect | Forget


class TransferThread:
    """Writes this rank's pages to peers, and lets peers write into them.

    `on_event` is called on this thread with PushDone, PushFailed, TransferClosed, Forgotten, and
    Fault if the thread itself dies. It must not block.

    Raises:
        PortTaken: another process has a port of `at`.
        ConfigError: `at` is not this machine's, or none of `config.backends` works here.
    """

    def __init__(
        self,
        pool: KvPool,
        config: KvConfig,
        rank: int,
        at: KvAddress,
        on_event: Callable[[Message], None],
        keys: Keys,
        limits: TransferLimits | None = None,
    ) -> None:
        self._pool = pool
        self._config = config
        self._rank = rank
        self._at = at
        self._report = on_event
        self._key = keys.hmac
        self._limits = limits or TransferLimits()
        self._orders: deque[Order] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._stopping = False
        started: Future[KvEndpoint] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(started,), name=f"kv-transfer-{rank}", daemon=True
        )
        self._thread.start()
        try:
            self._endpoint = started.result()
        except BaseException:
            os.close(self._wake)
            raise

    def endpoint(self) -> KvEndpoint:
        """Where this rank's pages can be written: part of Ready."""
        return self._endpoint

    def open(self, order: OpenTransfer) -> None:
        """Connect to the peers of a transfer."""
        self._order(order)

    def push(self, order: Push) -> None:
        """Write pages that are complete (on CUDA: the step's event has been waited for)."""
        self._order(order)

    def close(self, order: CloseTransfer) -> None:
        """Stop posting; TransferClosed follows within `TransferLimits.drain_seconds`."""
        self._order(order)

    def expect(self, order: Expect) -> None:
        """Let the transfer write these pages."""
        self._order(order)

    def forget(self, order: Forget) -> None:
        """Place nothing more of the transfer; Forgotten follows."""
        self._order(order)

    def stop(self) -> None:
        """End the thread and close every connection. May be called twice."""
        if self._stopping:
            return
        self._stopping = True
        os.eventfd_write(self._wake, 1)
        self._thread.join(_STOP_SECONDS)
        if self._thread.is_alive():
            _log.error("the kv transfer thread does not end")
        else:
            os.close(self._wake)

    def _order(self, order: Order) -> None:
        if not self._stopping:
            self._orders.append(order)
            os.eventfd_write(self._wake, 1)

    # ---- on the thread ---------------------------------------------------------------------------

    def _run(self, started: "Future[KvEndpoint]") -> None:
        with selectors.DefaultSelector() as selector:
            try:
                loop = _Loop(self, selector)
            except Exception as error:
                started.set_exception(error)
                return
            started.set_result(loop.endpoint)
            try:
                while not self._stopping:
                    loop.turn()
            except Exception as error:
                _log.exception("the kv transfer thread failed")
                code = error.code if isinstance(error, PdsError) else PdsError.code
                self._report(Fault(rank=self._rank, code=code, message=f"kv transfer: {error}"))
            finally:
                loop.close()


class _Loop:
    """What the thread owns."""

    def __init__(self, thread: TransferThread, selector: selectors.BaseSelector) -> None:
        self._thread = thread
        self._selector = selector
        self._instance = secrets.token_bytes(INSTANCE)
        self._next_tick = 0.0
        self._backends = start_backends(thread._config.backends, thread._pool, thread._at)
        self._receiver = self._listen()
        registered = self._register()
        self.endpoint = KvEndpoint(
            rank=thread._rank,
            shard=encode(thread._pool.shard),
            pages=thread._pool.pages,
            backends={name: encode_offer(each.offer) for name, each in registered.items()},
        )
        self._sender = Sender(
            thread._pool,
            thread._rank,
            registered,
            dial=self._dial,
            limits=thread._limits,
            report=thread._report,
        )
        selector.register(thread._wake, selectors.EVENT_READ)

    def turn(self) -> None:
        """Carry out the orders, move bytes, report what has ended; then wait for more."""
        self._obey()
        for backend in self._backends.values():
            for done in backend.poll():
                self._sender.ended(done)
        now = time.monotonic()
        timed = self._sender.timed or self._receiver.timed
        if timed and now >= self._next_tick:
            self._sender.tick(now)
            self._receiver.tick(now)
            self._next_tick = now + _TICK_SECONDS
        polling = self._receiver.polling or any(b.polling for b in self._backends.values())
        ready = self._selector.select(0 if polling else _TICK_SECONDS if timed else None)
        if polling and not ready:
            time.sleep(POLL_SECONDS)  # epoll counts in milliseconds
        now = time.monotonic()
        for key, events in ready:
            if isinstance(key.data, Channel):
                key.data.handle(events, now)
            elif key.data is self._receiver:
                self._receiver.accept(now)
            else:
                os.eventfd_read(self._thread._wake)

    def close(self) -> None:
        self._sender.shut()
        self._receiver.close()
        for backend in self._backends.values():
            backend.close()

    def _obey(self) -> None:
        orders = self._thread._orders
        while orders:
            match orders.popleft():
                case OpenTransfer() as order:
                    self._sender.open(order)
                case Push() as order:
                    self._sender.push(order)
                case CloseTransfer() as order:
                    self._sender.close(order)
                case Expect() as order:
                    self._receiver.expect(order)
                case Forget() as order:
                    fenced = self._receiver.forget(order)
                    self._thread._report(
                        Forgotten(
                            transfer=order.transfer,
                            epoch=order.epoch,
                            rank=self._thread._rank,
                            fenced=fenced,
                        )
                    )

    def _listen(self) -> Receiver:
        thread = self._thread
        return Receiver(
            thread._pool,
            self._backends,
            (thread._at.host, thread._at.channel),
            credentials=Credentials(thread._key, self._instance),
            limits=thread._limits,
            selector=self._selector,
        )

    def _register(self) -> dict[KvBackend, Registered]:
        registered: dict[KvBackend, Registered] = {}
        for name, backend in self._backends.items():
            described = backend.register()
            offer = Offer(
                host=self._thread._at.host,
                port=self._receiver.port,
                instance=self._instance,
                domain=described.domain,
                fabric=described.fabric,
                detail=described.offer,
            )
            registered[name] = Registered(backend, offer, described.open)
        return registered

    def _dial(self, offer: Offer, handler: Sender) -> Channel:
        return Channel.dial(
            (offer.host, offer.port),
            handler,
            self._selector,
            credentials=Credentials(self._thread._key, offer.instance),
            now=time.monotonic(),
        )
