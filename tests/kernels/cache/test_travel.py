"""Artefacts leave a cache as an OCI layout and enter another: whole, by digest, if they fit."""

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from pds_kernels.cache import BadLayout, Cache, Taken, entries, give, take

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
