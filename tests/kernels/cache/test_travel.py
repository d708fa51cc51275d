"""Artefacts leave a cache as an OCI layout and enter another: whole, by digest, if they fit."""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pds_kernels.cache import BadLayout, Cache, Taken, entries, give, take
from pds_kernels.cache.travel import ARTIFACT

SM_90, THIS_CPU = {"source": "a", "target": "sm_90"}, {"source": "b", "target": "cpu-0123"}


@pytest.fixture
def cache(tmp_path: Path) -> Callable[[str], Cache]:
    """A cache of that name, with a key of its own."""

    def make(name: str) -> Cache:
        (tmp_path / name).mkdir()
        return Cache(tmp_path / name, tmp_path / f"{name}-own", name.encode(), producer=name)

    return make


@pytest.fixture
def full(cache: Callable[[str], Cache]) -> Cache:
    found = cache("ours")
    for inputs in (SM_90, THIS_CPU):
        found.get("triton", inputs, build)
    return found


def build(folder: Path) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "kernel.cubin").write_bytes(b"\x7fELF" * 100)
    (folder / "kernel.json").write_text("{}")


def test_they_are_sealed_by_the_key_of_who_takes_them(
    full: Cache, cache: Callable[[str], Cache], tmp_path: Path
) -> None:
    digest, count = give(full, tmp_path / "layout")
    theirs = cache("theirs")
    assert count == 2
    assert take(theirs, tmp_path / "layout", digest, "sm_90") == Taken(1, 0, 1)
    assert take(theirs, tmp_path / "layout", digest, "sm_90") == Taken(0, 1, 1)
    [entry] = entries(theirs)
    assert (entry.intact, entry.target, entry.kind) == (True, "sm_90", "triton")
    found = theirs.find("triton", SM_90)
    assert found
    assert (found.folder / "deep" / "kernel.cubin").read_bytes() == b"\x7fELF" * 100
    assert theirs.find("triton", THIS_CPU) is None


def test_equal_artefacts_give_equal_digests_whenever_they_are_packed(
    full: Cache, tmp_path: Path
) -> None:
    assert give(full, tmp_path / "one") == give(full, tmp_path / "two")
    assert give(full, tmp_path / "cpu", "cpu") != give(full, tmp_path / "gpu", "sm_90")


def test_it_is_an_oci_layout(full: Cache, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    digest, _ = give(full, layout, "sm_90")
    assert json.loads((layout / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    [listed] = json.loads((layout / "index.json").read_text())["manifests"]
    assert listed["digest"] == digest
    manifest = json.loads((layout / "blobs/sha256" / digest[7:]).read_text())
    [layer] = manifest["layers"]
    for blob in (listed, manifest["config"], layer):
        assert (layout / "blobs/sha256" / blob["digest"][7:]).stat().st_size == blob["size"]
    with tarfile.open(layout / "blobs/sha256" / layer["digest"][7:]) as tar:
        assert tar.getnames() == ["artefact.json", "deep/kernel.cubin", "kernel.json"]


def test_an_empty_cache_gives_a_layout_without_artefacts(
    cache: Callable[[str], Cache], tmp_path: Path
) -> None:
    digest, count = give(cache("ours"), tmp_path / "layout")
    assert count == 0
    assert take(cache("theirs"), tmp_path / "layout", digest, "cpu") == Taken(0, 0, 0)


@pytest.mark.parametrize("what", ["changed", "missing", "another digest", "no digest", "full"])
def test_what_is_not_what_its_digest_says_is_refused(
    full: Cache, cache: Callable[[str], Cache], tmp_path: Path, what: str
) -> None:
    layout = tmp_path / "layout"
    digest, _ = give(full, layout)
    manifest = json.loads((layout / "blobs/sha256" / digest[7:]).read_text())
    blob = layout / "blobs/sha256" / manifest["layers"][0]["digest"][7:]
    expected = {
        "changed": "another content",
        "missing": "cannot be read",
        "another digest": "cannot be read",
        "no digest": "is no digest",
        "full": "is not empty",
    }
    if what == "changed":
        blob.write_bytes(blob.read_bytes() + b" ")
    elif what == "missing":
        blob.unlink()
    elif what == "another digest":
        digest = "sha256:" + "0" * 64
    elif what == "no digest":
        digest = "../../../etc/passwd"
    theirs = cache("theirs")
    with pytest.raises(BadLayout, match=expected[what]):
        give(full, layout) if what == "full" else take(theirs, layout, digest, "sm_90")
    assert list(entries(theirs)) == []


@pytest.mark.parametrize(
    "change",
    [
        {"files": {"../kernel.json": "0"}},
        {"files": {}},
        {"kind": "../triton"},
        {"seconds": "soon"},
        {"inputs": ["target"]},
        {"producer": None},
    ],
)
def test_a_layer_that_lies_about_itself_is_refused(
    full: Cache,
    cache: Callable[[str], Cache],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, object],
) -> None:
    """Its digests are right: whoever packed it was trusted, and was wrong."""
    from pds_kernels.cache import travel

    honest = travel._text
    monkeypatch.setattr(
        travel, "_text", lambda value: honest({**value, **(change if "kind" in value else {})})
    )
    digest, _ = give(full, tmp_path / "layout")
    monkeypatch.undo()
    theirs = cache("theirs")
    with pytest.raises(BadLayout):
        take(theirs, tmp_path / "layout", digest, "sm_90")
    assert list(entries(theirs)) == []


class Layout:
    """One that somebody has made by hand."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._blobs = folder, folder / "blobs" / "sha256"
        self._blobs.mkdir(parents=True)

    def blob(self, content: bytes) -> str:
        name = hashlib.sha256(content).hexdigest()
        (self._blobs / name).write_bytes(content)
        return f"sha256:{name}"

    def of(self, layers: Any) -> str:
        return self.blob(json.dumps({"artifactType": ARTIFACT, "layers": layers}).encode())

    def of_files(self, files: Any, content: dict[str, bytes], **about: Any) -> str:
        said = {"kind": "k", "inputs": {"target": "cpu"}, "seconds": 1, "producer": "x"}
        text = json.dumps({**said, "files": files, **about}).encode()
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for name, data in {"artefact.json": text, **content}.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        return self.of_tar(packed.getvalue())

    def of_tar(self, packed: bytes) -> str:
        media = "application/vnd.oci.image.layer.v1.tar"
        return self.of([{"mediaType": media, "digest": self.blob(packed)}])


ONE = hashlib.sha256(b"1").hexdigest()


@pytest.mark.parametrize(
    ("files", "about"),
    [
        ([], {}),
        ({"meta.json": ONE}, {}),
        ({"deep/.committed": ONE}, {}),
        ({"a": ONE, "a/b": ONE}, {}),
        ({"./a": ONE}, {}),
        ({"a": ONE}, {"kind": "locks"}),
        ({"a": ONE}, {"kind": "tmp"}),
        ({"a": ONE}, {"seconds": 10**400}),
        ({"a": ONE}, {"inputs": []}),
    ],
)
def test_an_artefact_that_would_not_be_one_is_the_layout_s_fault(
    cache: Callable[[str], Cache], tmp_path: Path, files: Any, about: dict[str, Any]
) -> None:
    layout, theirs = Layout(tmp_path / "layout"), cache("theirs")
    digest = layout.of_files(files, dict.fromkeys(files, b"1"), **about)
    with pytest.raises(BadLayout):
        take(theirs, layout.folder, digest, "")
    assert list(entries(theirs)) == []


@pytest.mark.parametrize("layers", [None, ["x"], "x", {"a": 1}])
def test_layers_that_are_no_list_of_objects_are_refused(
    cache: Callable[[str], Cache], tmp_path: Path, layers: Any
) -> None:
    layout = Layout(tmp_path / "layout")
    with pytest.raises(BadLayout, match="no list of objects"):
        take(cache("theirs"), layout.folder, layout.of(layers), "")


def test_a_small_blob_does_not_grow(cache: Callable[[str], Cache], tmp_path: Path) -> None:
    """A sparse file of 1 TiB takes 10 KiB."""
    member, packed = tarfile.TarInfo("big"), io.BytesIO()
    content = b"1\n0\n0\n".ljust(512, b"\0")
    member.size = len(content)
    sparse = {"major": "1", "minor": "0", "realsize": str(1 << 40), "name": "big"}
    member.pax_headers = {f"GNU.sparse.{name}": value for name, value in sparse.items()}
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(member, io.BytesIO(content))
    layout = Layout(tmp_path / "layout")
    with pytest.raises(BadLayout, match="big is no plain file"):
        take(cache("theirs"), layout.folder, layout.of_tar(packed.getvalue()), "")
