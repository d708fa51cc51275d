"""What poison.py sends: requests that must harm nobody but whoever sent them."""

import itertools
import json
from collections.abc import Callable, Sequence

from pds_engine.text.tokenizer import Tokenizer

from common import ROOT

MODEL = ROOT / "examples" / "models" / "tiny"
C, H, T, D = "/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"
MB8 = (8 << 20) - 1024

Attack = Sequence[tuple[str, bytes]]
"""Paths and bodies that are sent by turns."""


def numbers() -> Attack:
    fields = (
        "n", "max_tokens", "min_tokens", "temperature", "top_p", "top_k", "min_p", "seed",
        "logprobs", "presence_penalty", "frequency_penalty", "repetition_penalty",
        "prompt_logprobs", "priority", "best_of",
    )  # fmt: skip
    values = (
        str(2**31), str(-(2**31)), str(2**63), str(2**63 - 1), str(2**64), str(-(2**63) - 1),
        "1e308", "-1e308", "NaN", "-1", "0", "1" * 4000,
    )  # fmt: skip
    ids = ("stop_token_ids", "allowed_token_ids")
    bodies = [
        f'{{"prompt":"a","max_tokens":4,"{name}":{value}}}' for name in fields for value in values
    ]
    bodies += [f'{{"prompt":"a","{name}":[{value}]}}' for name in ids for value in values]
    bodies += [f'{{"prompt":[{value}]}}' for value in values]
    bodies += [f'{{"prompt":"a","logit_bias":{{"{v}":1}}}}' for v in values]
    bodies += [f'{{"prompt":"a","logit_bias":{{"5":{v}}}}}' for v in values]
    chat = '{"messages":[{"role":"user","content":"a"}],"max_tokens":4,"logprobs":true,"%s":%s}'
    names = ("max_completion_tokens", "top_logprobs", "top_k", "seed", "n")
    return [
        *((C, body.encode()) for body in bodies),
        *((H, (chat % pair).encode()) for pair in itertools.product(names, values)),
        *((D, f'{{"tokens":[{value}]}}'.encode()) for value in values),
    ]


def bodies() -> Attack:
    def filled(start: str, piece: str, end: str) -> bytes:
        return (start + piece * ((MB8 - len(start) - len(end)) // len(piece)) + end).encode()

    said = '{"messages":[{"role":"user","content":"a"}],'
    message = '{"role":"user"}'
    part = '{"type":"text","text":""}'
    return [
        (T, filled('{"prompt":"', "a b, ", '"}')),
        (T, filled('{"messages":[', message + ",", message + "]}")),
        (D, filled('{"tokens":[', "7,", "7]}")),
        (C, filled('{"prompt":"', "a b, ", '"}')),
        (C, filled('{"prompt":"', r"\n", '"}')),
        (C, filled('{"prompt":[', "7,", "7]}")),
        (C, filled('{"prompt":[', '"a",', '"a"]}')),
        (C, filled('{"prompt":[', "[7],", "[7]]}")),
        (C, filled('{"prompt":[[7],', "7,", "7]}")),
        (C, filled('{"prompt":["a",', "7,", "7]}")),
        (C, filled('{"prompt":"a","pds_resume":{', '"":7,', '"output_ids":[7]}}')),
        (C, filled('{"prompt":"a","seed":[', "[],", "[]]}")),
        (C, filled('{"prompt":"a","unknown":[', "[],", "[]]}")),
        (C, filled('{"prompt":"a","stop":[', '"a",', '"a"]}')),
        (H, filled('{"messages":[', message + ",", message + "]}")),
        (H, filled('{"messages":[{"role":"user","content":"', "a {, ", '"}]}')),
        (H, filled('{"messages":[{"role":"user","content":[', part + ",", part + "]}]}")),
        (H, filled('{"messages":[{"role":"user","name":[', "[],", "[]]}]}")),
        (H, filled(said + '"tools":[', "{},", "{}]}")),
        (H, filled(said + '"tools":[{"a":[', "1" * 4000 + ",", "1]}]}")),
        (H, filled('{"messages":[{"role":"user","x":[', "1" * 4000 + ",", "1]}]}")),
        (H, filled(said + '"chat_template_kwargs":{"a":[', "[],", "[]]}}")),
    ]


def choices() -> Attack:
    """48 choices of little but "a", and an ending at times that is like no stop string's."""
    (a,), (space,) = map(Tokenizer(MODEL).encode, ("a", " "))
    body = {"prompt": "a a a a", "n": 48, "max_tokens": 200, "stream": True, "ignore_eos": True}
    body |= {"temperature": 2.0, "logit_bias": {str(a): 50, str(space): 45}}
    return [(C, json.dumps(body).encode())]


def stops() -> Attack:
    strings = ["a" * (1023 - at * 60) + " " * (at * 60) + chr(0x100 + at) for at in range(16)]
    return [
        (path, b'{"stop":%s,' % json.dumps(strings).encode() + body[1:]) for path, body in choices()
    ]


ATTACKS: dict[str, Callable[[], Attack]] = {
    "numbers": numbers, "bodies": bodies, "choices": choices, "stops": stops,
}  # fmt: skip
