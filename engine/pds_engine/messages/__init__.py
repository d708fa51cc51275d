"""Everything that crosses a process, declared once (processes.md).

All of it is frozen msgspec structs, encoded as tagged MessagePack: no pickle on any socket.
Who sends what:

    API server → scheduler   Submit, Cancel, Drain, PeerGone, Claimed, Bound
    scheduler → API server   Token, Failed, State, Room, Offered, Withdrawn
    scheduler → worker       Assemble, Admit, StepPlan, Release, OpenTransfer, CloseTransfer,
                             Expect, Forget
    worker → scheduler       Ready, StepDone, PushDone, PushFailed, TransferClosed, Forgotten, Fault
    worker's watchdog → scheduler   Progress
    D scheduler → P scheduler   TransferOffer, Abort
    P scheduler → D scheduler   Queued, Refused, TransferDone, AbortAck
    scheduler ↔ schedulers of other dp ranks   Wake, Lives, Halt, Halted, Relay,
                             RelayLost
    scheduler → worker's sync thread   Gather, answered by Gathered
    any DEALER → its ROUTER   Hello, first

On the wire each is preceded by its sequence number: see `wire`.
"""

from pds_engine.messages.base import PROTOCOL, FinishReason, Message, Peer, Role
from pds_engine.messages.handover import (
    Abort,
    AbortAck,
    CloseTransfer,
    Expect,
    Forget,
    Forgotten,
    OpenTransfer,
    PushDone,
    PushFailed,
    Queued,
    Refused,
    TransferClosed,
    TransferDone,
    TransferOffer,
)
from pds_engine.messages.joining import (
    Assemble,
    Fault,
    Hello,
    KernelsProof,
    KvEndpoint,
    Ready,
    Welcome,
)
from pds_engine.messages.passes import (
    Gather,
    Gathered,
    Halt,
    Halted,
    Lives,
    Relay,
    RelayLost,
    Wake,
)
from pds_engine.messages.requests import (
    Bound,
    Cancel,
    Claimed,
    Drain,
    Failed,
    Offered,
    PeerGone,
    Room,
    Sampling,
    Source,
    Submit,
    Token,
    TokenLogprobs,
    Withdrawn,
)
from pds_engine.messages.state import STATE_METRICS, State
from pds_engine.messages.steps import Admit, Push, Release, Row, StepDone, StepPlan
from pds_engine.messages.watching import Doing, Progress, Traffic

# fmt: off
AnyMessage = (
    Hello | Welcome | Assemble | Ready | Fault | Progress
    | Submit | Cancel | Drain | PeerGone | Token | Failed | State
    | Admit | StepPlan | StepDone | Release
    | OpenTransfer | CloseTransfer | PushDone | PushFailed | TransferClosed
    | Expect | Forget | Forgotten
    | TransferOffer | Queued | Refused | TransferDone | Abort | AbortAck
    | Wake | Gather | Gathered | Lives | Halt | Halted | Relay | RelayLost
    | Room | Offered | Withdrawn | Claimed | Bound
)
# fmt: on

__all__ = [
    "PROTOCOL",
    "STATE_METRICS",
    "Abort",
    "AbortAck",
    "Admit",
    "AnyMessage",
    "Assemble",
    "Bound",
    "Cancel",
    "Claimed",
    "CloseTransfer",
    "Doing",
    "Drain",
    "Expect",
    "Failed",
    "Fault",
    "FinishReason",
    "Forget",
    "Forgotten",
    "Gather",
    "Gathered",
    "Halt",
    "Halted",
    "Hello",
    "KernelsProof",
    "KvEndpoint",
    "Lives",
    "Message",
    "Offered",
    "OpenTransfer",
    "Peer",
    "PeerGone",
    "Progress",
    "Push",
    "PushDone",
    "PushFailed",
    "Queued",
    "Ready",
    "Refused",
    "Relay",
    "RelayLost",
    "Release",
    "Role",
    "Room",
    "Row",
    "Sampling",
    "Source",
    "State",
    "StepDone",
    "StepPlan",
    "Submit",
    "Token",
    "TokenLogprobs",
    "Traffic",
    "TransferClosed",
    "TransferDone",
    "TransferOffer",
    "Wake",
    "Welcome",
    "Withdrawn",
]
