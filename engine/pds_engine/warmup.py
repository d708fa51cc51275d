"""`pds-engine warmup`: everything a pod will run is compiled before the pod is asked for a token.

It runs in an init container, before any collective exists, on all stages and replicas at once. Each
graph is compiled once per volume; the proof goes to the termination message, for the operator.
"""

import json
import logging
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch
from pds_kernels.cache import Artefact, Cache, Manifest, write_manifest
from pds_kernels.cache.manifest import manifest_path
from pds_kernels.graph import Graph

from pds_engine import log
from pds_engine.config import EngineConfig
from pds_engine.errors import ConfigError
from pds_engine.keys import Keys, read_secret
from pds_engine.models import tensors
from pds_engine.models.registry import check
from pds_engine.parallel.layout import part
from pds_engine.runner import graphs

TERMINATION_LOG = Path("/dev/termination-log")
_PROOF_BYTES = 4096  # what Kubernetes keeps of a termination message
logger = logging.getLogger("pds.warmup")


def run(config: EngineConfig) -> int:
    """Fill the cache for every rank of this pod; the exit status.

    Raises:
        ConfigError: the model or the layout cannot work, or no cache is mounted.
    """
    log.configure(config.log_level)
    if config.cache.path is None:
        raise ConfigError("cache.path is not set", hint="give the mount point of the compile cache")
    tensors.contents(config.model.path, check(config))  # nothing is compiled in vain
    started = time.monotonic()
    try:
        manifest, problem = warm(config)
    except (OSError, RuntimeError, TimeoutError) as error:
        logger.exception("warm-up failed")
        _prove({"manifest": "", "compiled": 0, "reused": 0, "error": str(error)}, started)
        return 1
    proof = {
        "manifest": manifest.digest,
        "compiled": manifest.compiled,
        "reused": manifest.reused,
        "error": problem,
    }
    _prove(proof, started)
    return 0


def warm(config: EngineConfig) -> tuple[Manifest, str]:
    """Compile or find all graphs of this pod's ranks, and write the manifest of each of its stages.

    A graph depends on the shapes of a layer alone, so that all stages need the same ones.

    Returns the manifest, and why the volume could not take it all ("": it did). The pod is served
    even then: it compiles for itself.
    """
    started = time.monotonic()
    wanted = {graph.name: graph for graph in _wanted(config)}
    cache = open_cache(config)
    found = {name: cache.find(graphs.KIND, g.key_inputs()) for name, g in wanted.items()}
    missing = [name for name, artefact in found.items() if artefact is None]
    made = _compile(config, missing)
    artefacts = {name: made.get(name) or found[name] for name in wanted}
    manifest = Manifest(
        artefacts={name: artefact.key for name, artefact in artefacts.items() if artefact},
        compiled=sum(artefact.built for artefact in made.values()),
        reused=len(wanted) - sum(artefact.built for artefact in made.values()),
        seconds=round(time.monotonic() - started, 3),
        producer=config.pod.name,
    )
    try:
        for path in _manifest_paths(config):
            write_manifest(path, manifest)
    except OSError as error:
        return manifest, f"the cache volume cannot be written: {error}"
    alone = [name for name, artefact in artefacts.items() if artefact and not artefact.shared]
    return manifest, f"the cache volume did not take {', '.join(alone)}" if alone else ""


def open_cache(config: EngineConfig) -> Cache:
    """The cache at config.cache.path, sealed by its own key, else by the control key, if any.

    Raises:
        ConfigError: there is no path, or the key cannot be read.
    """
    if config.cache.path is None:
        raise ConfigError("cache.path is not set", hint="give the mount point of the compile cache")
    return Cache(config.cache.path, _seal(config), producer=config.pod.name)


def _seal(config: EngineConfig) -> bytes:
    if config.cache.key_dir is not None:
        hint = "mount the Secret <pdserving>-cache-key at cache.key_dir, or leave key_dir out"
        return read_secret(config.cache.key_dir / "cache.key", hint=hint)
    return Keys.read(config.http.keys_dir).hmac if config.http.keys_dir else b""


def _wanted(config: EngineConfig) -> tuple[Graph, ...]:
    spec = check(config)
    first = config.pod.index * config.parallelism.ranks_per_pod
    device = torch.device("cuda" if _on_cuda(config) else "cpu")
    return graphs.plan(config, spec, part(spec, config.parallelism, first, config.role), device)


def _on_cuda(config: EngineConfig) -> bool:
    return config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())


def _compile(config: EngineConfig, names: list[str]) -> dict[str, Artefact]:
    """Build `names` on a pool of processes: compilers are single-threaded and not re-entrant."""
    if not names:
        return {}
    workers = min(config.cache.workers, len(names))
    # Its server imports what the compiler needs, 8 s on a CPU, once for all workers.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "torch._inductor.compile_fx"])
    made: dict[str, Artefact] = {}
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        started = {pool.submit(_compile_one, config, name): name for name in names}
        for future in as_completed(started, timeout=config.cache.timeout_seconds):
            made[started[future]] = artefact = future.result()
            logger.info(
                "%s %s in %.1f s",
                "compiled" if artefact.built else "reused",
                started[future],
                artefact.seconds,
            )
    return made


def _compile_one(config: EngineConfig, name: str) -> Artefact:
    torch.set_num_threads(1)
    (graph,) = (graph for graph in _wanted(config) if graph.name == name)
    try:
        return graphs.fetch(graph, open_cache(config), config.cache.timeout_seconds)
    except Exception as error:  # some of torch's own errors cannot cross a process
        raise RuntimeError(f"graph {name}: {type(error).__name__}: {error}") from None


def _manifest_paths(config: EngineConfig) -> list[Path]:
    root, pod, split = config.cache.path or Path(), config.pod, config.parallelism
    first = pod.index * split.ranks_per_pod
    stages = range(first // split.tp, (first + split.ranks_per_pod - 1) // split.tp + 1)
    return [
        manifest_path(root, config.model.name, pod.revision, config.role, stage) for stage in stages
    ]


def _prove(proof: dict[str, object], started: float) -> None:
    text = json.dumps({**proof, "seconds": round(time.monotonic() - started, 2)})
    print(text)
    if TERMINATION_LOG.exists():
        TERMINATION_LOG.write_text(text[:_PROOF_BYTES])
