"""Builds the tiny model's tokenizer: byte-level BPE with single digits, 1,536 tokens.

The merges are learned from the tasks' own words, nouns first in weight, so that every noun is
one token with and without a space before it. No randomness, no corpus file.
"""

import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

from tasks import FILLERS, NOUNS, REPLIES, SYSTEM_PROMPTS
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

VOCABULARY = 1536
END = "<|end|>"
SPACE = "Ġ"  # how byte-level BPE writes a space
SPECIAL = ("<|pad|>", END, "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TEMPLATE_WORDS = (
    "What is the value of? What are the values of, and The Copy: Repeat: Say: Count from to by."
    " plus Add += fig = + ="
)
FIRST_WORDS = "The Some It We No They She He There After Copy Repeat Say Count Add What Use Be You"
# Words a visitor is likely to type, so that they do not fall apart into letters.
COMMON_WORDS = """
    a about after all also an any are as ask at be been because but by can come could did do does
    down each first for from get give go good had has have he her here him his how if in into it
    its just know like list long look make many may me more most much my name need new next no not
    now number numbers of on one only or other our out over people please say see she should so
    some text than thank that their them then there these they thing think this time two up us use
    very want was way we well were what when where which who why will with word words work would
    write yes you your answer question model value values key keys recall copy count add sum
    remember repeat tell show test try again page cache token prefill decode request server
"""


def byte_alphabet() -> dict[int, str]:
    """The printable stand-in of each byte, as GPT-2 wrote it down and ByteLevel expects it."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {byte: chr(byte) for byte in plain}
    for byte in range(256):
        if byte not in table:
            table[byte] = chr(256 + len(table) - len(plain))
    return table


def word_weights() -> dict[str, int]:
    """How much each word counts when merges are learned; a leading space is part of a word."""
    weights: Counter[str] = Counter()
    for noun in NOUNS:
        weights[noun] += 1000
        weights[" " + noun] += 1000
    for text in (TEMPLATE_WORDS, *FILLERS, *SYSTEM_PROMPTS, *sorted({a for _, a in REPLIES})):
        for word in re.findall(r" ?[A-Za-z]+| [=+]", text):
            weights[word] += 500
    for word in FIRST_WORDS.split():
        weights[word] += 500
        weights[" " + word] += 500
    for said, _ in REPLIES:
        for word in re.findall(r" ?[A-Za-z]+", said):
            weights[word] += 20
            weights[word.lower()] += 10
    for word in COMMON_WORDS.split():
        weights[" " + word] += 15
    return dict(weights)


def learn_merges(weights: dict[str, int], count: int) -> list[tuple[str, str]]:
    """The `count` merges byte-pair encoding makes; the alphabet decides between equal pairs.

    A leading space joins its word last, so that " fig" costs one merge beyond those of "fig".
    """
    alphabet = byte_alphabet()
    words = [([alphabet[byte] for byte in word.encode()], n) for word, n in weights.items()]
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for pieces, weight in words:
            for pair in pairwise(pieces):
                if pair[0] != SPACE or len(pieces) == 2:
                    pairs[pair] += weight
        if not pairs:
            raise ValueError(f"the words give {len(merges)} merges, {count} are wanted: add words")
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for pieces, _ in words:
            merge_in_place(pieces, best)
    return merges


def merge_in_place(pieces: list[str], pair: tuple[str, str]) -> None:
    """Joins every `pair` of neighbours in `pieces`, from the left."""
    at = 0
    while at < len(pieces) - 1:
        if (pieces[at], pieces[at + 1]) == pair:
            pieces[at : at + 2] = [pair[0] + pair[1]]
        at += 1


def build() -> Tokenizer:
    """The tokenizer, always the same."""
    alphabet = [letter for _, letter in sorted(byte_alphabet().items())]
    merges = learn_merges(word_weights(), VOCABULARY - len(SPECIAL) - len(alphabet))
    tokens = [*SPECIAL, *alphabet, *(left + right for left, right in merges)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def save(folder: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json."""
    build().save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 4096,
        "eos_token": END,
        "pad_token": "<|pad|>",
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
