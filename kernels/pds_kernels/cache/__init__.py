"""The compile cache: artefacts by content, shared by every pod that mounts the volume.

    <root>/v1/<kind>/<key[:2]>/<key>/   the artefact's files, meta.json, .committed
    <root>/v1/tmp/<uuid>/               in the making
    <root>/v1/locks/<key>               single flight: who builds, and its heartbeat; who has built
    <root>/v1/manifests/…               what a stage needs, and what it found or built

A key is the digest of everything that decides the artefact (sources, toolchain, target, constants),
never of the binary: compilers are not reproducible. An artefact appears by one rename, so that
a reader sees all of it or nothing. Each pod has a folder of the same layout of its own: it compiles
there, and runs what lies there. Whatever becomes of the volume costs sharing alone.
"""

from pds_kernels.cache.manifest import (
    Manifest,
    manifest_digest,
    read_manifest,
    write_manifest,
)
from pds_kernels.cache.own import own_folder
from pds_kernels.cache.store import Artefact, Cache, Held
from pds_kernels.cache.tending import Entry, entries, prune
from pds_kernels.cache.travel import BadLayout, Taken, give, take
from pds_kernels.cache.trouble import PlaceError, Trouble

__all__ = [
    "Artefact",
    "BadLayout",
    "Cache",
    "Entry",
    "Held",
    "Manifest",
    "PlaceError",
    "Taken",
    "Trouble",
    "entries",
    "give",
    "manifest_digest",
    "own_folder",
    "prune",
    "read_manifest",
    "take",
    "write_manifest",
]
