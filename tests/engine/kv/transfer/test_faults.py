"""Killed, stopped and lying peers. What must hold: a bounded answer, and no byte out of place."""

import random
import signal
import socket
import struct
import time

import pytest
from pds_engine.keys import Keys
from pds_engine.kv.layout import ByteRun, KvFormat, shard
from pds_engine.kv.transfer import TransferLimits
from pds_engine.kv.transfer.base import decode_offer
from pds_engine.kv.transfer.channel import MAGIC, _mac
from pds_engine.kv.transfer.frames import (
    HEAD,
    AnyFrame,
    Nack,
    Open,
    Opened,
    Write,
    encode,
    pack_runs,
)
from pds_engine.kv.transfer.frames import decode as decode_frame
from pds_engine.messages import (
    CloseTransfer,
    Expect,
    Forget,
    Forgotten,
    OpenTransfer,
    Push,
    PushDone,
    PushFailed,
    TransferClosed,
)

FORMAT = KvFormat(digest="d", dtype="bfloat16", page_size=16, layers=8, kv_heads=8, head_dim=64)
WHOLE = shard(FORMAT, layers=(0, 8))
PAGE = WHOLE.page_bytes(FORMAT)  # 256 KiB
PAGES = 256
MANY = tuple(range(PAGES))
"""64 MiB: more than both sockets' buffers hold, so that a push to a stopped peer hangs midway."""
SHORT = TransferLimits(
    handshake_seconds=0.3, stall_seconds=60, drain_seconds=0.4, expect_seconds=60
)

SMALL = KvFormat(digest="d", dtype="float32", page_size=1, layers=1, kv_heads=1, head_dim=8)
SMALL_SHARD = shard(SMALL, layers=(0, 1))


def open_order(endpoint, name: str = "t", epoch: int = 1) -> OpenTransfer:
    return OpenTransfer(transfer=name, epoch=epoch, peers=(endpoint,))


def push_order(src, dst, name: str = "t", last: bool = True) -> Push:
    return Push(transfer=name, src_pages=tuple(src), dst_pages=tuple(dst), last=last)


def knock(endpoint) -> socket.socket:
    offer = decode_offer(next(iter(endpoint.backends.values())))
    return socket.create_connection((offer.host, offer.port), timeout=10)


def hung_up(sock: socket.socket) -> bool:
    """Whether the other side closes within the socket's time-out."""
    try:
        while sock.recv(4096):
            pass
    except ConnectionResetError:
        pass
    return True


@pytest.fixture(params=["tcp", "nixl"])
def stopped(request, remote, monkeypatch):
    """P, and a D that was stopped once it had opened the transfer."""
    if request.param == "nixl":
        pytest.importorskip("nixl", reason="pip install nixl")
        # As between pods: by copies from process to process a stopped peer is no obstacle.
        monkeypatch.setenv("UCX_TLS", "tcp,self")
    prefill = remote(FORMAT, WHOLE, PAGES, [request.param], limits=SHORT)
    decode = remote(FORMAT, WHOLE, PAGES, [request.param], limits=SHORT)
    prefill.fill(1)
    decode.order("expect", Expect(transfer="t", epoch=1, pages=MANY))
    decode.order("expect", Expect(transfer="first", epoch=1, pages=(0,)))
    prefill.order("open", open_order(decode.endpoint(), "first"))
    prefill.order("push", push_order((0,), (0,), "first"))
    assert isinstance(prefill.event(), PushDone)
    prefill.order("open", open_order(decode.endpoint()))
    prefill.order("push", push_order((1,), (1,), last=False))
    wait_for(lambda: decode.written() == [0, 1])
    decode.signal(signal.SIGSTOP)
    prefill.order("push", push_order(MANY, MANY))
    return request.param, prefill, decode


def wait_for(condition, timeout: float = 20.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def test_a_peer_killed_in_mid_push_fails_it_at_once(stopped) -> None:
    _, prefill, decode = stopped
    assert prefill.event(0.3) is None
    begin = time.monotonic()
    decode.signal(signal.SIGKILL)
    failed = prefill.event()
    assert isinstance(failed, PushFailed)
    assert time.monotonic() - begin < 2.0
    prefill.order("close", CloseTransfer(transfer="t"))
    assert prefill.event() == TransferClosed(transfer="t", rank=0, drained=False)


def test_a_stopped_peer_holds_a_push_but_not_its_close(stopped) -> None:
    backend, prefill, decode = stopped
    assert prefill.event(0.3) is None
    prefill.order("close", CloseTransfer(transfer="t"))
    begin = time.monotonic()
    answer = prefill.event()
    assert isinstance(answer, TransferClosed)
    assert not answer.drained
    assert time.monotonic() - begin < SHORT.drain_seconds + 2.0

    decode.signal(signal.SIGCONT)
    decode.order("forget", Forget(transfer="t", epoch=1))
    forgotten = decode.event()
    assert isinstance(forgotten, Forgotten)
    if backend == "tcp":
        assert forgotten.fenced
        decode.clear()
        assert prefill.event(0.3) is None
        assert decode.written() == []
    # the pair works again, over the same connection
    decode.order("expect", Expect(transfer="next", epoch=2, pages=(7,)))
    prefill.order("open", open_order(decode.endpoint(), "next", 2))
    prefill.order("push", push_order((3,), (7,), "next"))
    assert isinstance(prefill.event(), PushDone)
    assert decode.page(7) == prefill.page(3)


def test_nixl_is_fenced_only_when_the_sender_says_that_it_has_ended(remote) -> None:
    pytest.importorskip("nixl", reason="pip install nixl")
    prefill, decode = (remote(SMALL, SMALL_SHARD, 4, ["nixl"]) for _ in range(2))
    decode.order("expect", Expect(transfer="never", epoch=1, pages=(1,)))
    decode.order("forget", Forget(transfer="never", epoch=1))
    assert decode.event() == Forgotten(transfer="never", epoch=1, rank=0, fenced=True)

    decode.order("expect", Expect(transfer="t", epoch=1, pages=(1,)))
    prefill.order("open", open_order(decode.endpoint()))
    prefill.order("push", push_order((1,), (1,)))
    assert isinstance(prefill.event(), PushDone)
    decode.order("forget", Forget(transfer="t", epoch=1))
    assert decode.event() == Forgotten(transfer="t", epoch=1, rank=0, fenced=False)
    prefill.order("close", CloseTransfer(transfer="t"))
    assert prefill.event() == TransferClosed(transfer="t", rank=0)


def test_a_peer_that_restarted_is_another_one(side) -> None:
    prefill, first = (side(SMALL, SMALL_SHARD, 4, ["tcp"]) for _ in range(2))
    offer = decode_offer(first.endpoint().backends["tcp"])
    stale = first.endpoint()
    first.stop()
    second = side(SMALL, SMALL_SHARD, 4, ["tcp"], port=offer.port)
    second.thread.expect(Expect(transfer="t", epoch=1, pages=(1,)))
    prefill.thread.open(open_order(stale))
    failed = prefill.event()
    assert isinstance(failed, PushFailed)
    assert "has restarted" in failed.message


def test_nobody_listens(side) -> None:
    prefill, decode = (side(SMALL, SMALL_SHARD, 4, ["tcp"]) for _ in range(2))
    endpoint = decode.endpoint()
    decode.stop()
    prefill.thread.open(open_order(endpoint))
    failed = prefill.event()
    assert isinstance(failed, PushFailed)
    assert "refused" in failed.message.lower()


def test_a_stranger_without_the_key_cannot_write(side) -> None:
    decode = side(SMALL, SMALL_SHARD, 4, ["tcp"])
    stranger = side(SMALL, SMALL_SHARD, 4, ["tcp"], keys=Keys.make())
    stranger.fill(1)
    decode.thread.expect(Expect(transfer="t", epoch=1, pages=(1,)))
    stranger.thread.open(open_order(decode.endpoint()))
    stranger.thread.push(push_order((1,), (1,)))
    assert isinstance(stranger.event(), PushFailed)
    assert decode.written() == []


@pytest.mark.parametrize(
    "bytes_sent",
    [b"", b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 64, b"\xff" * 10_000],
    ids=["silent", "http", "zeros", "long"],
)
def test_garbage_connections_are_dropped(side, keys: Keys, bytes_sent: bytes, caplog) -> None:
    prefill = side(SMALL, SMALL_SHARD, 4, ["tcp"])
    decode = side(SMALL, SMALL_SHARD, 4, ["tcp"], limits=SHORT)
    with knock(decode.endpoint()) as sock:
        sock.sendall(bytes_sent)
        assert hung_up(sock)
    wait_for(lambda: "kv connection dropped" in caplog.text)
    _still_works(prefill, decode)


def test_half_closed_connections_are_dropped(side, caplog) -> None:
    caplog.set_level("INFO")
    prefill = side(SMALL, SMALL_SHARD, 4, ["tcp"])
    decode = side(SMALL, SMALL_SHARD, 4, ["tcp"], limits=SHORT)
    with knock(decode.endpoint()) as sock:
        sock.shutdown(socket.SHUT_WR)
        assert hung_up(sock)
    wait_for(lambda: "closed by the other side" in caplog.text)
    _still_works(prefill, decode)


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (struct.pack("!II", 1 << 30, 0), "a frame of 1073741824 bytes"),
        (struct.pack("!II", 4, 1 << 31), "2147483648 of data"),
        (struct.pack("!II", 0, 0), "a frame of 0 bytes"),
        (struct.pack("!II", 4, 0) + b"\xc1\xc1\xc1\xc1", "an unreadable frame"),
        (struct.pack("!II", 4, 0) + b"\x92\xa3Ack\x01"[:4], "an unreadable frame"),
        (struct.pack("!II", 6, 0) + b"\x92\xa3Ack\x01", "Ack is not for a receiver"),
        (struct.pack("!II", 100, 0) + b"\x00", "silent for"),
    ],
)
def test_a_peer_that_talks_nonsense_is_dropped(
    side, keys: Keys, frame: bytes, reason: str, caplog
) -> None:
    caplog.set_level("INFO")
    decode = side(SMALL, SMALL_SHARD, 4, ["tcp"], limits=TransferLimits(stall_seconds=0.3))
    with knock(decode.endpoint()) as sock:
        _prove(sock, keys)
        sock.sendall(frame)
        assert hung_up(sock)
    wait_for(lambda: reason in caplog.text)
    _still_works(side(SMALL, SMALL_SHARD, 4, ["tcp"]), decode)


def test_a_forget_in_the_middle_of_a_write_throws_the_rest_away(side, keys: Keys) -> None:
    decode = side(SMALL, SMALL_SHARD, 1024, ["tcp"])
    decode.thread.expect(Expect(transfer="t", epoch=1, pages=tuple(range(1024))))
    with knock(decode.endpoint()) as sock:
        _prove(sock, keys)
        sock.sendall(encode(Open(transfer="t", epoch=1, backend="tcp")))
        assert _answer(sock) == Opened(transfer="t", epoch=1)
        whole = decode.pool.bytes
        runs = pack_runs([ByteRun(0, 0, whole)])
        sock.sendall(encode(Write(transfer="t", epoch=1, ticket=8, runs=runs), whole))
        sock.sendall(b"\x01" * (whole // 2))
        wait_for(lambda: decode.written() == list(range(512)))
        decode.thread.forget(Forget(transfer="t", epoch=1))
        assert decode.event() == Forgotten(transfer="t", epoch=1, rank=0, fenced=True)
        sock.sendall(b"\x01" * (whole // 2))
        assert _answer(sock) == Nack(ticket=8, message="transfer t was forgotten")
        assert decode.written() == list(range(512))
        # and whoever has not opened it is not listened to
        sock.sendall(encode(Write(transfer="u", epoch=1, ticket=9, runs=runs), whole))
        sock.sendall(b"\x01" * whole)
        assert _answer(sock) == Nack(ticket=9, message="transfer u is not open at epoch 1")
        assert decode.written() == list(range(512))


def test_connections_beyond_the_bound_are_closed(side) -> None:
    decode = side(SMALL, SMALL_SHARD, 4, ["tcp"], limits=TransferLimits(connections=2))
    first, second, third = (knock(decode.endpoint()) for _ in range(3))
    with first, second, third:
        assert hung_up(third)
        assert _read(first, len(MAGIC)) == _read(second, len(MAGIC)) == MAGIC


def test_an_abort_storm_leaves_no_byte_and_no_question_behind(side, backend: str) -> None:
    """200 transfers, each aborted somewhere between its opening and its end, by P, D or both."""
    draw = random.Random(20)
    prefill, decode = (side(SMALL, SMALL_SHARD, 64, [backend]) for _ in range(2))
    prefill.fill(5)
    names = [f"t{i}" for i in range(200)]
    for name in names:
        pages = tuple(draw.sample(range(32), 8))
        steps = [
            lambda n=name, p=pages: decode.thread.expect(Expect(transfer=n, epoch=1, pages=p)),
            lambda n=name: prefill.thread.open(open_order(decode.endpoint(), n)),
            lambda n=name, p=pages: prefill.thread.push(push_order(p[:4], p[:4], n, last=False)),
            lambda n=name, p=pages: prefill.thread.push(push_order(p[4:], p[4:], n)),
        ]
        for step in steps[: draw.randint(1, 4)]:
            step()
        ends = [
            lambda n=name: prefill.thread.close(CloseTransfer(transfer=n)),
            lambda n=name: decode.thread.forget(Forget(transfer=n, epoch=1)),
        ]
        draw.shuffle(ends)
        for end in ends:
            end()
    closed = [e for e in _until(prefill, TransferClosed, 200) if isinstance(e, TransferClosed)]
    assert sorted(e.transfer for e in closed) == sorted(names)
    assert all(e.drained for e in closed)
    answers = _until(decode, Forgotten, 200)
    assert [e.transfer for e in answers] == names
    assert all(e.fenced for e in answers)
    assert all(page < 32 for page in decode.written())
    for page in decode.written():
        assert decode.page(page) == prefill.page(page)
    decode.clear()
    _still_works(prefill, decode)
    assert decode.written() == [2]


def _until(one, kind: type, count: int) -> list:
    events: list = []
    while sum(isinstance(event, kind) for event in events) < count:
        events.append(one.event())
        assert events[-1] is not None, f"only {events}"
    return events


def _still_works(prefill, decode) -> None:
    prefill.fill(9)
    decode.thread.expect(Expect(transfer="works", epoch=1, pages=(2,)))
    prefill.thread.open(open_order(decode.endpoint(), "works"))
    prefill.thread.push(push_order((1,), (2,), "works"))
    done = prefill.event()
    assert isinstance(done, PushDone)
    assert done.transfer == "works"
    assert decode.page(2) == prefill.page(1)


def _read(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = sock.recv(count - len(data))
        assert part
        data += part
    return data


def _prove(sock: socket.socket, keys: Keys) -> None:
    """The dialer's side of the handshake."""
    theirs = _read(sock, len(MAGIC) + 32)[len(MAGIC) :]
    sock.sendall(b"n" * 32 + _mac(keys.hmac, b"dialer", theirs, b"n" * 32))
    _read(sock, 48)


def _answer(sock: socket.socket) -> AnyFrame:
    body_bytes, data_bytes = HEAD.unpack(_read(sock, HEAD.size))
    assert data_bytes == 0
    return decode_frame(_read(sock, body_bytes))
