import pytest
from pds_engine.kv.transfer.base import Offer
from pds_engine.kv.transfer.choose import choose


def offer(domain: str = "", *fabric: str) -> Offer:
    return Offer(host="h", port=1, instance=b"i", domain=domain, fabric=fabric)


TCP = {"tcp": offer()}


@pytest.mark.parametrize(
    ("ours", "theirs", "chosen"),
    [
        (TCP, TCP, "tcp"),
        (TCP, {"nixl": offer()}, None),
        ({"nixl": offer("a")}, {"nixl": offer("b")}, "nixl"),
        # between pods without a fabric NIXL goes over the kernel's TCP too
        ({**TCP, "nixl": offer("a")}, {**TCP, "nixl": offer("b")}, "tcp"),
        ({**TCP, "nixl": offer("a", "rdma")}, {**TCP, "nixl": offer("b")}, "tcp"),
        ({**TCP, "nixl": offer("a", "rdma")}, {**TCP, "nixl": offer("b", "rdma")}, "nixl"),
        ({**TCP, "nixl": offer("a", "cuda")}, {**TCP, "nixl": offer("b", "rdma")}, "tcp"),
        # on one host, in one set of namespaces, it copies from process to process
        ({**TCP, "nixl": offer("a")}, {**TCP, "nixl": offer("a")}, "nixl"),
        ({**TCP, "nixl": offer("")}, {**TCP, "nixl": offer("")}, "tcp"),
        ({**TCP, "shm": offer("a")}, {**TCP, "shm": offer("a")}, "shm"),
        ({**TCP, "shm": offer("a")}, {**TCP, "shm": offer("b")}, "tcp"),
        ({"shm": offer("a")}, {"shm": offer("b")}, None),
        ({}, {}, None),
    ],
)
def test_choose(ours: dict[str, Offer], theirs: dict[str, Offer], chosen: str | None) -> None:
    assert choose(ours, theirs) == chosen
    assert choose(theirs, ours) == chosen
