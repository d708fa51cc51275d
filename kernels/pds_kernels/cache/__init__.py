"""The compile cache: artefacts by content, shared by every pod that mounts the volume.

    <root>/v1/<kind>/<key[:2]>/<key>/   the artefact's files, meta.json, .committed
    <root>/v1/tmp/<uuid>/               in the making
    <root>/v1/locks/<key>               single flight: who builds, and its heartbeat
    <root>/v1/manifests/…               what a stage needs, and what it found or built

A key is the digest of everything that decides the artefact (sources, toolchain, target, constants),
never of the binary: compilers are not reproducible. An artefact appears by one rename, so that
a reader sees all of it or nothing.
"""

from pds_kernels.cache.manifest import (
    Manifest,
    manifest_digest,
    read_manifest,
    write_manifest,
)
from pds_kernels.cache.store import Artefact, Cache, Entry, cache_key

__all__ = [
    "Artefact",
    "Cache",
    "Entry",
    "Manifest",
    "cache_key",
    "manifest_digest",
    "read_manifest",
    "write_manifest",
]
