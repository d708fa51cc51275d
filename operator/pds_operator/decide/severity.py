"""Which of several problems is the worst, and which of them nothing but a person ends. Pure."""

from collections.abc import Iterable

from pds_operator.decide.actions import Problem

STALLED = (
    "InvalidSpec",
    "NameTaken",
    "Forbidden",
    "Invalid",
    "FieldContested",
    "GangUnknown",
    "RevisionMissing",
    "WarmupFailed",
    "KvFingerprintMismatch",
    "ConfigurationError",
    "RevisionFailed",
    "RevisionFailing",
    "ProgressDeadlineExceeded",
    "InvalidImageName",
)
"""What is asked for will not come to be: somebody must change something. The worst first."""
LASTING = (
    "NamespaceTerminating",
    "QuotaExceeded",
    "LimitRange",
    "RouterPodsRefused",
    "RouterFailing",
    "CreateContainerConfigError",
    "ErrImageNeverPull",
    "ImagePullBackOff",
    "ApiError",
    "ApiUnreachable",
    "GroupFailing",
    "CrashLoopBackOff",
    "CacheClaimPending",
    "PodNotPrepared",
    "Unschedulable",
    "SidecarEnded",
    "PodStuck",
    "ClockSkew",
    "CacheVolumeUnusable",
    "SecretLost",
    "PredecessorLeaving",
    "GroupDisrupted",
)
"""What may end by itself or once there is room, the worst first; those of no name are in front."""

_RANKS = {reason: rank for rank, reason in enumerate((*STALLED, "", *LASTING))}


def worst_first(problems: Iterable[Problem]) -> list[Problem]:
    """Each once; equally bad ones stay in their order."""
    return sorted(dict.fromkeys(problems), key=lambda item: _RANKS.get(item.reason, _RANKS[""]))


def stalled(problems: Iterable[Problem]) -> Problem | None:
    """The worst of those that nothing but a person ends."""
    return next((item for item in worst_first(problems) if item.reason in STALLED), None)
