"""Which bytes of weight files are read ahead: what a pod's ranks load, in the order they do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from model_folder import Folder
from pds_engine.models import ahead
from pds_engine.models.ahead import Ahead, spans, wanted
from pds_engine.models.headers import Scale, Stored
from pds_engine.models.registry import check, read_spec
from pds_engine.models.tensors import contents
from pds_engine.parallel.layout import part
from random_models import saved


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def names(folder, ranks, **split) -> list[str]:
    """Tensors that a pod with these ranks reads ahead, shortened."""
    config = folder.engine(parallelism=split)
    spec = check(config)
    found = contents(folder.path, spec)
    parts = [part(spec, config.parallelism, rank) for rank in ranks]
    by_place = {stored.begin: name for name, stored in found.items()}
    return [
        by_place[stored.begin].removeprefix("model.").split(".weight")[0]
        for stored in wanted(found, spec, parts)
    ]


def layers(found: list[str]) -> list[str]:
    """Each once, in order: what is of a layer by its layer alone."""
    return list(dict.fromkeys(n.split(".")[1] if n.startswith("layers") else n for n in found))


def test_embedding_and_head_come_first_then_layer_after_layer(folder):
    found = names(folder, [0])
    assert layers(found) == ["embed_tokens", "lm_head", "0", "1"]
    assert len(found) == 2 + 2 * 11


def test_a_stage_reads_its_own_layers(folder):
    assert layers(names(folder, [0], pp=2)) == ["embed_tokens", "0"]
    assert layers(names(folder, [1], pp=2)) == ["lm_head", "1"]


def test_ranks_of_a_pod_that_load_the_same_read_it_once(folder):
    assert names(folder, [0, 1], tp=2) == names(folder, [0])
    assert layers(names(folder, [0, 1], pp=2)) == ["embed_tokens", "lm_head", "0", "1"]


def test_experts_that_are_whole_are_read_by_who_holds_them(tmp_path):
    path = saved("Qwen3MoeForCausalLM", tmp_path)
    spec = read_spec(path)
    found = contents(path, spec)
    config = Folder.__new__(Folder)
    config.path = path
    split = config.engine(parallelism={"tp": 2, "ep": True}).parallelism
    each = [wanted(found, spec, [part(spec, split, rank)]) for rank in range(2)]
    every = {stored for one in each for stored in one}
    assert every == {stored for name, stored in found.items() if name != "model.norm.weight"}
    experts = {stored for name, stored in found.items() if ".experts." in name}
    assert experts
    assert not experts & set(each[0]) & set(each[1])


FILE = Path("weights")


def test_spans_are_pieces_of_tensors_and_their_scales(monkeypatch):
    monkeypatch.setattr(ahead, "_PIECE", 100)
    scale = Stored(Path("scales"), "F32", (3,), 8)
    found = [
        Stored(FILE, "BF16", (125,), 1000),
        Stored(FILE, "F8_E4M3", (50,), 2000, Scale(scale, "tensor")),
    ]
    whole = [
        (FILE, 1000, 100),
        (FILE, 1100, 100),
        (FILE, 1200, 50),
        (FILE, 2000, 50),
        (Path("scales"), 8, 12),
    ]
    assert list(spans(found, 10_000)) == whole
    assert list(spans(found, 220)) == [*whole[:2], (FILE, 1200, 20)]


def test_the_kernel_is_asked_in_order(tmp_path, monkeypatch):
    path, asked = tmp_path / "weights", []
    path.write_bytes(bytes(64))

    def note(descriptor: int, begin: int, length: int, advice: int) -> None:
        asked.append((os.readlink(f"/proc/self/fd/{descriptor}"), begin, length, advice))

    monkeypatch.setattr(os, "posix_fadvise", note)
    reading = Ahead([(path, 8, 16), (path, 32, 8), (tmp_path / "absent", 0, 8), (path, 0, 8)])
    reading.wait()
    advice = os.POSIX_FADV_WILLNEED
    assert asked == [(str(path), 8, 16, advice), (str(path), 32, 8, advice)]
    assert reading.asked == 24


def test_it_stops_between_two_pieces(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(bytes(64))
    reading = None

    def endless():
        while True:
            yield path, 0, 8

    reading = Ahead(endless())
    reading.stop()
    assert reading.asked % 8 == 0


def test_launch_reads_ahead_without_torch(folder):
    code = (
        "import sys\nfrom pds_engine import launch\nfrom pds_engine.config import EngineConfig\n"
        f"config = EngineConfig.model_validate({{'model': {{'path': {str(folder.path)!r}}}, "
        "'max_model_len': 64})\n"
        "found = list(launch._ahead(config, launch.check(config)))\n"
        "print(sum(length for _, _, length in found), 'torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    size = sum(stored.length for stored in contents(folder.path, check(folder.engine())).values())
    assert said.stdout.split() == [str(size - 16 * 4), "False"]  # all but the last norm
