"""Artefacts on a journey: an OCI image layout that a registry can hold, and back from it.

    <folder>/oci-layout, index.json, blobs/sha256/<digest>

One manifest lists a layer for each artefact: a tar file of its files and of `artefact.json`, which
says what it was made of (OCI Image Format Specification 1.1; tools like `oras` and `skopeo` copy
such a folder). The manifest's digest names the whole. Whoever takes artefacts gives the digest that
he trusts, since they are code; they are then sealed by his own key, under which they have names of
their own.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pds_kernels.cache import seal
from pds_kernels.cache.files import Files
from pds_kernels.cache.shelf import OTHERS, Damaged
from pds_kernels.cache.store import Cache
from pds_kernels.cache.tending import Entry, entries

ARTIFACT = "application/vnd.pdserving.compile-cache.v1"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_EMPTY = "application/vnd.oci.empty.v1+json"
_LAYOUT = {"imageLayoutVersion": "1.0.0"}
_ABOUT = "artefact.json"
_LARGEST = 1 << 30
"""Bytes of one artefact; they take some 400 KiB."""
_LISTED = 16 << 20
"""Bytes of a manifest."""


class BadLayout(Exception):
    """The folder is not what its digest says, or no such layout."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of the artefacts of a layout."""

    new: int
    present: int
    """They lay in the cache already."""
    unfit: int
    """They are for another target."""


def give(cache: Cache, folder: Path, target: str = "") -> tuple[str, int]:
    """Write the intact artefacts for `target`, or all, into `folder`, which must be empty.

    Returns the manifest's digest, and how many artefacts there are. Equal artefacts give equal
    digests.

    Raises:
        Trouble: the cache cannot be read.
        BadLayout: the folder is not empty.
        OSError: it cannot be written.
    """
    blobs = folder / "blobs" / "sha256"
    if folder.exists() and any(folder.iterdir()):
        raise BadLayout(f"{folder} is not empty")
    blobs.mkdir(parents=True)
    layers = [
        {**_blob(blobs, _LAYER, _packed(cache, entry)), "annotations": _said(entry)}
        for entry in sorted(entries(cache), key=lambda each: (each.kind, each.key))
        if entry.intact and fits(entry.target, target)
    ]
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "artifactType": ARTIFACT,
        "config": _blob(blobs, _EMPTY, b"{}"),
        "layers": layers or [_blob(blobs, _EMPTY, b"{}")],
    }
    listed = _blob(blobs, _MANIFEST, _text(manifest))
    index = {"schemaVersion": 2, "manifests": [{**listed, "artifactType": ARTIFACT}]}
    (folder / "index.json").write_bytes(_text(index))
    (folder / "oci-layout").write_bytes(_text(_LAYOUT))
    return str(listed["digest"]), len(layers)


def take(cache: Cache, folder: Path, digest: str, target: str) -> Taken:
    """Put what fits `target` from the layout in `folder` into the volume of `cache`.

    `digest` is the manifest's, sha256:…, as `give` has returned it to somebody who is trusted.

    Raises:
        Trouble: the volume takes nothing.
        BadLayout: a blob is missing or is not what its digest says; what came before it stays.
    """
    manifest = _object(_read(folder, digest, _LISTED), digest)
    if manifest.get("artifactType") != ARTIFACT:
        raise BadLayout(f"{digest} is no compile cache, but {manifest.get('artifactType')!r}")
    new = present = unfit = 0
    layers = manifest.get("layers")
    if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
        raise BadLayout(f"{digest}: its layers are no list of objects")
    for layer in layers:
        if layer.get("mediaType") != _LAYER:
            continue
        packed = _read(folder, str(layer.get("digest")), _LARGEST)
        about, files = _unpacked(packed, str(layer.get("digest")))
        if not fits(str(about["inputs"].get("target", "")), target):
            unfit += 1
        elif _put(cache, about, files):
            new += 1
        else:
            present += 1
    return Taken(new, present, unfit)


def fits(made_for: str, target: str) -> bool:
    """Whether an artefact made for `made_for` is wanted for `target`: "" is all, and cpu every
    CPU."""
    return target in ("", made_for) or (target == "cpu" and made_for.startswith("cpu-"))


def _put(cache: Cache, about: Mapping[str, Any], files: Mapping[str, bytes]) -> bool:
    """False: it is there."""
    kind, inputs = str(about["kind"]), dict(about["inputs"])
    key, shelf = cache.key(inputs), cache.volume.shelf
    meta = {
        "inputs": inputs,
        "seal_key": cache.seal_key,
        "files": about["files"],
        "seconds": float(about["seconds"]),
        "producer": str(about["producer"]),
    }

    def put(visited: Files) -> bool:
        with suppress(Damaged):
            if shelf.check(visited, kind, key) is not None:
                return False
        shelf.put(visited, kind, key, meta, lambda name: [files[name]])
        return True

    return cache.volume.write(put)


def _packed(cache: Cache, entry: Entry) -> bytes:
    """The artefact as a tar file in which nothing tells when or by whom it was packed."""
    shelf = cache.volume.shelf

    def read(files: Files) -> tuple[Mapping[str, Any], dict[str, bytes]]:
        item = shelf.find(files, entry.kind, entry.key)
        if item is None:
            raise BadLayout(f"{entry.kind}/{entry.key} went meanwhile")
        return item.meta, {name: b"".join(item.content(files, name)) for name in item.files}

    meta, content = cache.volume.read(read)
    about = {
        "kind": entry.kind,
        "inputs": meta["inputs"],
        "files": meta["files"],
        "seconds": meta["seconds"],
        "producer": meta["producer"],
    }
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in [(_ABOUT, _text(about)), *sorted(content.items())]:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return packed.getvalue()


def _unpacked(packed: bytes, name: str) -> tuple[Mapping[str, Any], dict[str, bytes]]:
    """What an artefact was made of, and its files, each as it was sealed.

    Raises:
        BadLayout: it has other files, or they are others.
    """
    found = dict(_members(packed, name))
    about = _object(found.pop(_ABOUT, b""), name)
    try:
        known, digests = seal.inside(about["files"]), dict(about["files"])
        readable = isinstance(about["inputs"], dict) and float(about["seconds"]) >= 0
        kind = str(about["kind"])
        named = kind.isidentifier() and kind not in OTHERS and isinstance(about["producer"], str)
    except KeyError as error:
        raise BadLayout(f"{name}: {_ABOUT} lacks {error}") from None
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BadLayout(f"{name}: {_ABOUT} is not as it is written: {error}") from None
    same = {each: hashlib.sha256(data).hexdigest() for each, data in found.items()} == digests
    if not (known and readable and named and same):
        raise BadLayout(f"{name}: its files are not those that {_ABOUT} lists")
    return about, found


def _members(packed: bytes, name: str) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(fileobj=io.BytesIO(packed), mode="r:") as tar:
            for member in tar:
                # A sparse one may be as large as it says, however small the blob is.
                plain = member.isreg() and not member.issparse()
                file = tar.extractfile(member) if plain else None
                if file is None:
                    raise BadLayout(f"{name}: {member.name} is no plain file")
                yield member.name, file.read()
    except tarfile.TarError as error:
        raise BadLayout(f"{name} is no tar file: {error}") from None


def _read(folder: Path, digest: str, most: int) -> bytes:
    """The blob of that digest."""
    kind, _, name = digest.partition(":")
    if kind != "sha256" or len(name) != 64 or not set(name) <= set("0123456789abcdef"):
        raise BadLayout(f"{digest!r} is no digest: write it as sha256: and 64 hexadecimal digits")
    try:
        with (folder / "blobs" / "sha256" / name).open("rb") as file:
            found = file.read(most + 1)
    except OSError as error:
        raise BadLayout(f"the blob {digest} cannot be read: {error.strerror}") from error
    if len(found) > most:
        raise BadLayout(f"the blob {digest} has more than {most} bytes")
    if hashlib.sha256(found).hexdigest() != name:
        raise BadLayout(f"the blob {digest} has another content than its digest says")
    return found


def _blob(blobs: Path, media: str, content: bytes) -> dict[str, Any]:
    """Write it; its descriptor."""
    name = hashlib.sha256(content).hexdigest()
    (blobs / name).write_bytes(content)
    return {"mediaType": media, "digest": f"sha256:{name}", "size": len(content)}


def _said(entry: Entry) -> dict[str, str]:
    return {"io.pdserving.kind": entry.kind, "io.pdserving.target": entry.target}


def _object(content: bytes, name: str) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise BadLayout(f"{name} is no JSON object")
    return found


def _text(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode()
