import re
import subprocess
import sys
import time

import pytest
import torch
from pds_engine.config import KvConfig
from pds_engine.errors import ConfigError, PortTaken
from pds_engine.keys import Keys
from pds_engine.kv.layout import KvFormat, shard
from pds_engine.kv.transfer import TransferThread
from pds_engine.kv.transfer.base import decode_offer
from pds_engine.messages import (
    CloseTransfer,
    Expect,
    Fault,
    Forget,
    Forgotten,
    OpenTransfer,
    Push,
    PushDone,
    PushFailed,
    TransferClosed,
)
from pds_engine.ports import KvAddress

FORMAT = KvFormat(digest="d", dtype="bfloat16", page_size=16, layers=4, kv_heads=2, head_dim=8)
WHOLE = shard(FORMAT, layers=(0, 4))
PAGE = WHOLE.page_bytes(FORMAT)


def push(src: tuple[int, ...], dst: tuple[int, ...], last: bool = True, name: str = "t") -> Push:
    return Push(transfer=name, src_pages=src, dst_pages=dst, last=last)


def open_to(*sides, name: str = "t", epoch: int = 1) -> OpenTransfer:
    return OpenTransfer(transfer=name, epoch=epoch, peers=tuple(s.endpoint() for s in sides))


def expect(pages: tuple[int, ...], name: str = "t", epoch: int = 1) -> Expect:
    return Expect(transfer=name, epoch=epoch, pages=pages)


def closed(name: str = "t", drained: bool = True) -> TransferClosed:
    return TransferClosed(transfer=name, rank=0, drained=drained)


def forgotten(name: str = "t", epoch: int = 1, fenced: bool = True) -> Forgotten:
    return Forgotten(transfer=name, epoch=epoch, rank=0, fenced=fenced)


@pytest.fixture(params=["tcp", "shm"])
def pair(request, side):
    """P with its pages filled, and D with its pages cleared."""
    prefill = side(FORMAT, WHOLE, 12, [request.param])
    decode = side(FORMAT, WHOLE, 12, [request.param])
    prefill.fill(7)
    return prefill, decode


def test_pages_arrive_where_the_push_says(pair) -> None:
    prefill, decode = pair
    decode.thread.expect(expect((9, 8, 2)))
    prefill.thread.open(open_to(decode))
    prefill.thread.push(push((0, 5), (9, 2), last=False))
    prefill.thread.push(push((11,), (8,)))
    done = prefill.event()
    assert isinstance(done, PushDone)
    assert (done.transfer, done.rank, done.bytes) == ("t", 0, 3 * PAGE)
    assert done.seconds > 0
    assert decode.page(9) == prefill.page(0)
    assert decode.page(2) == prefill.page(5)
    assert decode.page(8) == prefill.page(11)
    assert decode.written() == [2, 8, 9]
    prefill.thread.close(CloseTransfer(transfer="t"))
    assert prefill.event() == closed()
    decode.thread.forget(Forget(transfer="t", epoch=1))
    assert decode.event() == forgotten()


def test_the_log_names_the_backend_once_for_a_peer(side, caplog, backend: str) -> None:
    prefill, decode = (side(FORMAT, WHOLE, 12, [backend]) for _ in range(2))
    with caplog.at_level("INFO", logger="pds_engine.kv.transfer.sender"):
        for name in ("first", "second"):
            decode.thread.expect(expect((3,), name=name))
            prefill.thread.open(open_to(decode, name=name))
            prefill.thread.push(push((1,), (3,), name=name))
            assert isinstance(prefill.event(), PushDone)
    assert caplog.messages == [f"kv pages go by {backend}"]


def test_who_knocks_early_waits_for_the_expect(pair) -> None:
    prefill, decode = pair
    prefill.thread.open(open_to(decode))
    prefill.thread.push(push((1,), (3,)))
    assert prefill.event(0.2) is None
    decode.thread.expect(expect((3,)))
    assert isinstance(prefill.event(), PushDone)
    assert decode.written() == [3]


def test_pages_that_are_not_held_for_it_stay_untouched(pair) -> None:
    prefill, decode = pair
    decode.thread.expect(expect((3,)))
    decode.thread.expect(expect((4,), name="other"))
    prefill.thread.open(open_to(decode))
    prefill.thread.push(push((1, 2), (3, 4)))
    failed = prefill.event()
    assert isinstance(failed, PushFailed)
    assert "not all held for transfer t" in failed.message
    assert decode.written() == []


def test_a_forgotten_transfer_places_no_byte(pair) -> None:
    prefill, decode = pair
    decode.thread.expect(expect((3,)))
    prefill.thread.open(open_to(decode))
    prefill.thread.push(push((1,), (3,), last=False))
    decode.thread.forget(Forget(transfer="t", epoch=1))
    assert decode.event() == forgotten()
    decode.clear()
    prefill.thread.push(push((1,), (3,)))
    assert isinstance(prefill.event(), PushFailed)
    assert decode.written() == []
    prefill.thread.close(CloseTransfer(transfer="t"))
    assert prefill.event() == closed()


@pytest.mark.parametrize("held", [0, 2])
def test_a_wrong_epoch_places_no_byte(pair, held: int) -> None:
    prefill, decode = pair
    decode.thread.forget(Forget(transfer="t", epoch=1))
    if held:
        decode.thread.expect(expect((3,), epoch=held))
    prefill.thread.open(open_to(decode, epoch=1))
    prefill.thread.push(push((1,), (3,)))
    failed = prefill.event()
    assert isinstance(failed, PushFailed)
    assert "not expected" in failed.message
    assert decode.written() == []


def test_close_before_the_peer_opened_posts_nothing(pair) -> None:
    prefill, decode = pair
    prefill.thread.open(open_to(decode))
    prefill.thread.push(push((1,), (3,)))
    prefill.thread.close(CloseTransfer(transfer="t"))
    assert prefill.event() == closed()
    decode.thread.expect(expect((3,)))
    assert prefill.event(0.2) is None
    assert decode.written() == []


def test_close_of_an_unknown_transfer_is_answered(pair) -> None:
    prefill, _ = pair
    prefill.thread.close(CloseTransfer(transfer="nobody"))
    assert prefill.event() == closed("nobody")


def test_a_transfer_without_pages_is_done(pair) -> None:
    prefill, decode = pair
    decode.thread.expect(expect(()))
    prefill.thread.open(open_to(decode))
    prefill.thread.push(push((), ()))
    done = prefill.event()
    assert isinstance(done, PushDone)
    assert done.bytes == 0


def test_a_rank_that_owes_nothing_is_done_at_once(side) -> None:
    early = shard(FORMAT, layers=(0, 2))
    late = shard(FORMAT, layers=(2, 4), pp_rank=1)
    prefill, decode = side(FORMAT, early, 4, ["tcp"]), side(FORMAT, late, 4, ["tcp"])
    prefill.thread.open(open_to(decode))
    prefill.thread.push(push((1,), (1,)))
    done = prefill.event()
    assert isinstance(done, PushDone)
    assert done.bytes == 0


def test_unequal_splits_meet(side) -> None:
    """P: 2 stages of 1 and 3 layers; D: tp 2 of all layers."""
    cuts = [shard(FORMAT, layers=(0, 1)), shard(FORMAT, layers=(1, 4), pp_rank=1)]
    prefill = [side(FORMAT, part, 6, ["tcp"], rank=i) for i, part in enumerate(cuts)]
    halves = [shard(FORMAT, layers=(0, 4), tp_rank=t, tp=2) for t in range(2)]
    decode = [side(FORMAT, part, 6, ["tcp"], rank=i) for i, part in enumerate(halves)]
    for i, rank in enumerate(prefill):
        rank.fill(i)
    for rank in decode:
        rank.thread.expect(expect((4, 1)))
    for rank in prefill:
        rank.thread.open(open_to(*decode))
        rank.thread.push(push((2, 3), (4, 1)))
        assert isinstance(rank.event(), PushDone)
    first, second = (rank.pool.data.view(torch.int16) for rank in prefill)
    for t, rank in enumerate(decode):
        whole = rank.pool.data.view(torch.int16)
        for src, dst in ((2, 4), (3, 1)):
            assert torch.equal(whole[dst, :1], first[src, :, :, t : t + 1])
            assert torch.equal(whole[dst, 1:], second[src, :, :, t : t + 1])


def test_no_backend_in_common_fails_the_transfer(side) -> None:
    prefill, decode = side(FORMAT, WHOLE, 2, ["tcp"]), side(FORMAT, WHOLE, 2, ["shm"])
    prefill.thread.open(open_to(decode))
    failed = prefill.event()
    assert isinstance(failed, PushFailed)
    assert "no KV backend in common" in failed.message
    prefill.thread.close(CloseTransfer(transfer="t"))
    assert prefill.event() == closed()


def test_pages_outside_the_pools_fail_the_transfer(pair) -> None:
    prefill, decode = pair
    decode.thread.expect(expect((3,), name="a"))
    for name, order in {"a": push((99,), (3,), name="a"), "b": push((1,), (99,), name="b")}.items():
        decode.thread.expect(expect((3,), name=name))
        prefill.thread.open(open_to(decode, name=name))
        prefill.thread.push(order)
        failed = prefill.event()
        assert isinstance(failed, PushFailed)
        assert "not pages of" in failed.message


def test_an_impossible_order_is_a_fault_of_the_rank(pair) -> None:
    _, decode = pair
    decode.thread.expect(expect((12,)))
    fault = decode.event()
    assert isinstance(fault, Fault)
    assert "outside the pool's 12" in fault.message


def test_a_taken_port_is_named(side, keys: Keys) -> None:
    first = side(FORMAT, WHOLE, 2, ["tcp"])
    port = decode_offer(first.endpoint().backends["tcp"]).port
    config, at = KvConfig(backends=("tcp",)), KvAddress("127.0.0.1", port)
    with pytest.raises(PortTaken, match=f"cannot listen on 127.0.0.1:{port}, the port of KV"):
        TransferThread(first.pool, config, 0, at, first.events.put, keys)


def test_an_address_of_another_machine_is_an_error_of_the_configuration(side, keys: Keys) -> None:
    first = side(FORMAT, WHOLE, 2, ["tcp"])
    config, at = KvConfig(backends=("tcp",)), KvAddress("192.0.2.1", 0)
    with pytest.raises(ConfigError, match=r"cannot listen on 192.0.2.1:0, the port of KV"):
        TransferThread(first.pool, config, 0, at, first.events.put, keys)


def test_ports_of_ucx_that_are_all_taken_are_named(side, keys: Keys) -> None:
    """UCX itself would look for a free one for ever."""
    first = side(FORMAT, WHOLE, 2, ["tcp"])
    taken = decode_offer(first.endpoint().backends["tcp"]).port
    config, at = (
        KvConfig(backends=("nixl", "tcp")),
        KvAddress("127.0.0.1", 0, range(taken, taken + 1)),
    )
    with pytest.raises(
        PortTaken, match=f"cannot listen on 127.0.0.1:{taken}-{taken}, the port of UCX"
    ):
        TransferThread(first.pool, config, 0, at, first.events.put, keys)


def test_an_idle_thread_costs_nothing(pair) -> None:
    """Also while a transfer is open over tcp: it sleeps in epoll, without a time-out."""
    prefill, decode = pair
    decode.thread.expect(expect((3,)))
    prefill.thread.open(open_to(decode))
    prefill.thread.push(push((1,), (3,), last=False))
    deadline = time.monotonic() + 10
    while not decode.written() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    before = time.process_time()
    time.sleep(1.0)
    assert time.process_time() - before < 0.01


STARTS = """
import ctypes, os, sys
from pds_engine.kv.layout import KvFormat, shard
from pds_engine.kv.pool import KvPool
from pds_engine.kv.transfer.nixl import NixlBackend

kv = KvFormat(digest="d", dtype="bfloat16", page_size=16, layers=1, kv_heads=1, head_dim=8)
def code():
    libc = ctypes.CDLL(None)
    found = [getattr(libc, name) for name in ("mmap", "munmap", "mremap", "madvise", "brk")]
    return [ctypes.string_at(ctypes.cast(each, ctypes.c_void_p).value, 16) for each in found]

before = code()
ports = range(*map(int, sys.argv[1:]))
backend = NixlBackend(KvPool(kv, shard(kv, layers=(0, 1)), 2), "127.0.0.1", ports)
print("rewritten:", before != code())
folder = "/proc/self/fd/"
own = {os.readlink(folder + fd) for fd in os.listdir(folder) if os.path.islink(folder + fd)}
for line in open("/proc/self/net/tcp"):
    _, address, _, state, *more = line.split()
    if state == "0A" and f"socket:[{more[5]}]" in own:
        print("listens on", int(address.partition(":")[2], 16))
os._exit(0)
"""


def test_ucx_takes_a_free_port_of_its_own_range(side) -> None:
    """Of a process: UCX reads its settings once. The first port of the range is another's."""
    taken = decode_offer(side(FORMAT, WHOLE, 2, ["tcp"]).endpoint().backends["tcp"]).port
    words = [sys.executable, "-c", STARTS, str(taken), str(taken + 8)]
    printed = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stdout
    (port,) = re.findall(r"listens on (\d+)", printed)
    assert taken < int(port) < taken + 8


def test_ucx_leaves_the_code_of_libc_alone() -> None:
    """A thread that is in madvise while UCX writes a jump over it ends the process."""
    words = [sys.executable, "-c", STARTS, "0", "0"]
    printed = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "rewritten: False" in printed
