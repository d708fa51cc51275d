"""A rank's compiled artefacts: in memory before its group meets.

A collective must not wait for a compiler, whose time is longer than any time-out of a collective
(sglang #9867, #29170). Warm-up has left a copy of every artefact in this pod's own folder, so that
the volume is not asked; what is missing there or damaged comes from the volume, or is compiled
here, before the rank says Hello.
"""

import logging
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from pds_kernels import cpu
from pds_kernels.building import Buildable
from pds_kernels.cache import Artefact, Cache, manifest_digest

from pds_engine.artefacts.plan import CPU, Plan, plan
from pds_engine.cache import open_cache
from pds_engine.config import EngineConfig
from pds_engine.errors import ConfigError
from pds_engine.messages import KernelsProof

logger = logging.getLogger("pds.worker")
_TRITON, _DEEP_GEMM = "triton", "deep_gemm"
"""Folders of the libraries' own caches, in the pod's own one."""


class Kernels:
    """What this pod's ranks run, and the proof of it."""

    def __init__(self, found: Mapping[str, Artefact], proof: KernelsProof) -> None:
        self.proof = proof
        self._found = found

    @property
    def folders(self) -> list[Path]:
        """Where the artefacts lie: in the pod's own folder."""
        return [artefact.folder for artefact in self._found.values()]


def _fetched(cache: Cache, wanted: Buildable, config: EngineConfig) -> Artefact:
    inputs, limit = wanted.key_inputs(), config.cache.timeout_seconds
    artefact = cache.get(wanted.kind, inputs, wanted.build, timeout=limit)
    if artefact.built:
        why = cache.damage.get(artefact.key, "not in the cache")
        words = wanted.kind, wanted.name, why, artefact.seconds
        logger.warning("%s %s was not warm (%s): compiled in %.1f s", *words)
    return artefact


def install(planned: Plan, found: Mapping[str, Artefact], cache: Cache) -> None:
    """Give the kernels to whoever looks them up, before any layer is loaded: layers choose by what
    is there, and DeepGEMM reads where its kernels are just once."""
    if planned.target == CPU:
        for name, artefact in found.items():
            cpu.provide(name, artefact.folder)
        cpu.use_threads(torch.get_num_threads())
        return
    from pds_kernels.builders import deep_gemm, triton

    ours, theirs = cache.private / _TRITON, cache.private / _DEEP_GEMM
    for wanted in planned.wanted:
        folder = found[wanted.name].folder
        if isinstance(wanted, deep_gemm.DeepGemmKernel):
            deep_gemm.install(wanted, folder, theirs)
        else:
            triton.install(folder, ours)
    triton.look_up(ours)
    if any(isinstance(wanted, deep_gemm.DeepGemmKernel) for wanted in planned.wanted):
        deep_gemm.look_up(theirs)


def prepare(config: EngineConfig) -> Kernels | None:
    """Find or compile what the ranks of this pod run; None: it is not to be compiled ahead.

    Raises:
        ConfigError: there is no cache to take it from, or no compiler for CPUs.
        RuntimeError: something cannot be compiled.
    """
    if not config.compile:
        return None
    cache, begun, planned = open_cache(config), time.monotonic(), plan(config)
    try:
        found = {each.name: _fetched(cache, each, config) for each in planned.wanted}
    except cpu.NoCompiler as error:
        hint = "install g++, name another compiler by CXX, or leave compile out"
        raise ConfigError(str(error), hint=hint) from error
    install(planned, found, cache)
    compiled = sum(artefact.built for artefact in found.values())
    proof = KernelsProof(
        manifest=manifest_digest({name: artefact.key for name, artefact in found.items()}),
        compiled=compiled,
        reused=len(found) - compiled,
        seconds=round(time.monotonic() - begun, 3),
    )
    return Kernels(found, proof)
