"""The model in examples/models/tiny: its tasks, its tokenizer, and that it answers right."""

import importlib.util
import json
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MODELS = Path(__file__).parents[2] / "examples" / "models"
TINY = MODELS / "tiny"


def module(path: Path, name: str) -> ModuleType:
    """The file at `path`, loaded alone."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec
    assert spec.loader
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture(scope="module")
def tasks() -> Iterator[ModuleType]:
    """tasks.py, under the name its neighbours import it by."""
    yield module(MODELS / "train" / "tasks.py", "tasks")
    del sys.modules["tasks"]


@pytest.fixture(scope="module")
def tokenizer() -> "Tokenizer":
    """The committed tokenizer.json."""
    tokenizers = pytest.importorskip("tokenizers")
    return tokenizers.Tokenizer.from_file(str(TINY / "tokenizer.json"))


def test_a_task_follows_from_its_seed(tasks: ModuleType) -> None:
    task = tasks.draw("recall", 7, 40, 2)
    assert task == tasks.draw("recall", 7, 40, 2)
    assert task != tasks.draw("recall", 8, 40, 2)
    assert [message["role"] for message in task.messages] == ["system", "user"]


def test_one_task_of_each_kind(tasks: ModuleType) -> None:
    drawn = {kind: tasks.draw(kind, 3) for kind in tasks.KINDS if kind != "recall"}
    said = {kind: (task.messages[-1]["content"], task.answer) for kind, task in drawn.items()}
    copied = said["copy"][1]
    assert len(set(copied.split())) == 40
    assert said["copy"][0].endswith(": " + copied)
    numbers = [int(number) for number in said["count"][1].split()]
    assert len(numbers) == 20
    assert len({after - before for before, after in pairwise(numbers)}) == 1
    a, _, b, _, total = said["sum"][1].rstrip(".").split()
    assert int(a) + int(b) == int(total)
    assert said["greeting"][1] in dict.fromkeys(answer for _, answer in tasks.REPLIES)


@pytest.mark.parametrize("context_tokens", [128, 256, 1024, 2000])
def test_recall_fills_its_context_and_asks_across_it(
    tasks: ModuleType, context_tokens: int
) -> None:
    for seed in range(20):
        task = tasks.draw("recall", seed, context_tokens, 4)
        facts, asked = (message["content"] for message in task.messages)
        assert context_tokens - 15 <= tasks.count_tokens(facts) <= context_tokens
        sentences = task.answer.removesuffix(".").split(". ")
        assert len(sentences) == 4
        for sentence in sentences:
            *_, key, _, value = sentence.split()
            assert key in asked
            assert value in facts


def test_an_unknown_kind_is_refused(tasks: ModuleType) -> None:
    with pytest.raises(ValueError, match="poem"):
        tasks.draw("poem", 1)


def test_every_noun_is_one_token_with_and_without_a_space(
    tasks: ModuleType, tokenizer: "Tokenizer"
) -> None:
    assert len(tasks.NOUNS) == len(set(tasks.NOUNS)) == 256
    for noun in tasks.NOUNS:
        assert len(tokenizer.encode(noun).ids) == len(tokenizer.encode(" " + noun).ids) == 1


def test_counted_tokens_are_the_tokenizers(tasks: ModuleType, tokenizer: "Tokenizer") -> None:
    for kind in ("recall", "copy", "count", "sum"):
        for seed in range(20):
            task = tasks.draw(kind, seed, 100, 3)
            for text in [task.answer, *(message["content"] for message in task.messages)]:
                assert tasks.count_tokens(text) == len(tokenizer.encode(text).ids), text


@pytest.mark.parametrize("text", ["naïve 東京 🙂\n\ttabs  and spaces ", "x=1;y=22;", "", "<|odd|>"])
def test_any_text_survives_the_tokenizer(tokenizer: "Tokenizer", text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_building_the_tokenizer_gives_the_committed_one(tasks: ModuleType) -> None:
    pytest.importorskip("tokenizers")
    built = module(MODELS / "train" / "tokenizer.py", "tiny_tokenizer").build()
    committed = json.loads((TINY / "tokenizer.json").read_text())
    assert json.loads(built.to_str())["model"] == committed["model"]


@pytest.mark.slow
def test_transformers_answers_recall(tasks: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy generation from the folder alone, no network: 19 of 20 or better."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tokenizer = transformers.AutoTokenizer.from_pretrained(TINY)
    config = transformers.AutoConfig.from_pretrained(TINY)
    assert config.dtype == torch.bfloat16
    # float32: a CPU without bfloat16 instructions takes several times as long in bfloat16.
    model = transformers.AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    assert config.max_position_embeddings == 4096
    right = 0
    for seed in range(20):
        task = tasks.draw("recall", 1000 + seed, (128, 256, 512, 1024)[seed % 4], 1)
        prompt = tokenizer.apply_chat_template(
            task.messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        said = model.generate(**prompt, max_new_tokens=20)[0, prompt["input_ids"].shape[1] :]
        right += tokenizer.decode(said) == task.answer + "<|end|>"
    assert right >= 19
