import json
from pathlib import Path

import pytest
import tokenizers
from pds_engine.errors import ConfigError
from pds_engine.text.tokenizer import Tokenizer
from tokenizers import decoders, models, pre_tokenizers
from transformers import AutoTokenizer


def test_reads_the_tiny_model(tokenizer: Tokenizer):
    assert tokenizer.eos_ids == (1,)
    assert tokenizer.special_ids == frozenset(range(6))
    assert tokenizer.vocabulary == 1536
    assert tokenizer.special("eos_token") == "<|end|>"
    assert tokenizer.special("bos_token") == ""


@pytest.mark.parametrize(
    "text", ["", "Hello, world.", "naïve 😀 漢字\n\ttabs", "<|user|>hi<|end|>"]
)
def test_what_is_encoded_decodes_to_itself(tokenizer: Tokenizer, text: str):
    assert tokenizer.decode(tokenizer.encode(text), skip_special=False) == text


def test_special_tokens_are_left_out(tokenizer: Tokenizer):
    assert tokenizer.decode(tokenizer.encode("<|user|>hi<|end|>")) == "hi"


def test_ids_beyond_the_tokenizer_have_no_text(tokenizer: Tokenizer):
    assert tokenizer.piece(10**6) == b""
    assert tokenizer.token(10**6) == ""


def test_sentence_piece_pieces(tmp_path: Path):
    vocabulary = {"<unk>": 0, "\u2581the": 1, "<0xE2>": 2, "<0x82>": 3, "<0xAC>": 4, "re": 5}
    inner = tokenizers.Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    inner.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer(tmp_path).decode([1, 5, 2, 3, 4]) == " there€"


@pytest.mark.parametrize(
    ("generation", "model", "expected"),
    [
        ({"eos_token_id": [5, 3]}, {"eos_token_id": 3}, (1, 3, 5)),
        ({"eos_token_id": 7}, {}, (1, 7)),
        ({}, {"eos_token_id": None}, (1,)),
    ],
)
def test_every_end_that_the_folder_names_counts(
    tmp_path: Path, generation: dict, model: dict, expected: tuple
):
    tiny = Path(__file__).parents[3] / "examples" / "models" / "tiny"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text((tiny / name).read_text())
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    (tmp_path / "config.json").write_text(json.dumps(model))
    assert Tokenizer(tmp_path).eos_ids == expected


def test_a_folder_without_tokenizer_is_a_setting_to_change(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        Tokenizer(tmp_path)


def test_a_template_file_goes_before_the_settings(tmp_path: Path):
    tiny = Path(__file__).parents[3] / "examples" / "models" / "tiny"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text((tiny / name).read_text())
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    template = Tokenizer(tmp_path).template
    assert template is not None
    assert template.render({"messages": [{"content": "hey"}]}, max_length=9) == "hey!"


def test_ids_beyond_the_model_s_embedding_are_no_inputs(tmp_path: Path):
    tiny = Path(__file__).parents[3] / "examples" / "models" / "tiny"
    (tmp_path / "tokenizer.json").write_text((tiny / "tokenizer.json").read_text())
    assert Tokenizer(tmp_path).vocabulary == 1536
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 100}))
    assert Tokenizer(tmp_path).vocabulary == 100


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The tiny model's tokenizer, to be changed."""
    tiny = Path(__file__).parents[3] / "examples" / "models" / "tiny"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text((tiny / name).read_text())
    return tmp_path


def settle(folder: Path, **keys: object) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


@pytest.mark.parametrize("where", ["settings", "files"])
def test_the_template_for_tools_is_the_one_that_transformers_takes(folder: Path, where: str):
    plain, tools = "{{ messages[0].content }}", "{{ tools[0].name }}"
    if where == "settings":
        named = {"default": plain, "tool_use": tools}
        listed = [{"name": name, "template": source} for name, source in named.items()]
        settle(folder, chat_template=listed)
    else:
        (folder / "chat_template.jinja").write_text(plain)
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates" / "tool_use.jinja").write_text(tools)
    ours, theirs = Tokenizer(folder).template, AutoTokenizer.from_pretrained(folder)
    assert ours is not None
    messages = [{"role": "user", "content": "hi"}]
    for given in (None, [{"name": "f"}]):
        text = ours.render({"messages": messages, "tools": given}, max_length=9)
        assert text == theirs.apply_chat_template(messages, tools=given, tokenize=False)
        assert text == ("f" if given else "hi")


@pytest.mark.parametrize(
    "keys",
    [
        {"added_tokens_decoder": {"1400": {"content": "<|new|>", "special": True}}},
        {"additional_special_tokens": ["<|end|>", "<|new|>"]},
        {"extra_special_tokens": {"image_token": "<|new|>"}},
        {"extra_special_tokens": ["<|new|>"]},
    ],
    ids=str,
)
def test_a_token_that_only_the_settings_name_is_refused(folder: Path, keys: dict):
    settle(folder, **keys)
    with pytest.raises(ConfigError, match=rf"{next(iter(keys))} has the token '<\|new\|>'"):
        Tokenizer(folder)


def test_tokens_that_both_files_name_are_served(folder: Path):
    settle(folder, additional_special_tokens=["<|end|>"], extra_special_tokens={"a": "<|user|>"})
    assert Tokenizer(folder).encode("<|end|>")
