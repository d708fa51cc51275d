"""What warm-ups say of the compile cache's volume: a problem, and no fault of theirs. Pure.

A pod that could not use the volume has compiled for itself and serves. Who started last knows best:
the problem is over once a later pod has found the volume good.
"""

from collections.abc import Iterable

from pds_operator import names
from pds_operator.decide.actions import Problem
from pds_operator.decide.fleet import Group, Phase
from pds_operator.facts.observed import Observed
from pds_operator.schema import PDServingSpec

REASON = "CacheVolumeUnusable"
TOGETHER_SECONDS = 60.0
"""Pods made within so long of each other met the same volume, whoever was lucky."""


def problem(
    pds: str, spec: PDServingSpec, observed: Observed, fleet: Iterable[Group]
) -> Problem | None:
    """What is wrong with the volume, by the word of the newest pods and of the warm-up's Job."""
    said = [
        (pod.created, pod.name, pod.proof.volume)
        for group in fleet
        if group.phase is not Phase.LEAVING
        for pod in group.pods
        if pod.proof is not None
    ]
    said += [(pod.created, pod.name, pod.volume) for pod in observed.warmups if pod.volume]
    bad = max((word for word in said if word[2]), default=None)
    if bad is None:
        return None
    good = max((created for created, _, volume in said if not volume), default=0.0)
    if good > bad[0] + TOGETHER_SECONDS:
        return None
    count = sum(bool(volume) for _, _, volume in said)
    more = f", as do {count - 1} others" if count > 1 else ""
    text = f"{_place(pds, spec)} cannot be used, pods compile for themselves and serve all the same"
    return Problem(REASON, f"{text}; {bad[1]} says{more}: {bad[2]}")


def private(fleet: Iterable[Group]) -> str:
    """Which pods run kernels that they could not share, and why; "" where there are none."""
    lone = [
        pod
        for group in fleet
        if group.phase is not Phase.LEAVING
        for pod in group.pods
        if pod.proof is not None and pod.proof.volume
    ]
    if not lone:
        return ""
    newest = max(lone, key=lambda pod: (pod.created, pod.name))
    volume = newest.proof.volume if newest.proof else ""
    return f"{len(lone)} pods compiled for themselves: {volume}"


def _place(pds: str, spec: PDServingSpec) -> str:
    """The volume as the spec knows it."""
    volume = spec.compile_cache.volume if spec.compile_cache else None
    if volume is not None and volume.host_path is not None:
        return f"the compile cache's hostPath {volume.host_path}"
    if volume is None or volume.ephemeral is not None:
        return "the compile cache's ephemeral volume"
    return f"the compile cache's claim {volume.existing_claim or names.cache_claim(pds)}"
