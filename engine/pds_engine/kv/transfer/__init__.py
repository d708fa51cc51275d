"""The hand-over of pages from one group's pools into another's (hand-over.md).

`TransferThread` is all that a worker needs; the rest is how it is made:

    thread     one thread, its orders and its events
    sender     P's side: dial, open, push, close           choose   which backend a pair uses
    receiver   D's side: accept, check, place              expectations   who may write where
    channel    an authenticated TCP connection             frames   what is said on it
    base       what a backend is: all that they differ in
    registry   which backends there are; tcp, nixl, shm   the backends
"""

from pds_engine.kv.transfer.base import TransferLimits
from pds_engine.kv.transfer.registry import shared_pool
from pds_engine.kv.transfer.thread import TransferThread

__all__ = ["TransferLimits", "TransferThread", "shared_pool"]
