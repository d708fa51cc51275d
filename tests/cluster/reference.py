"""Greedy decoding by transformers, on the CPU: what the endpoint's answers are compared with."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import torch
from pds_engine.text.tokenizer import Tokenizer
from serving import MODEL, Serving
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

logging.disable_progress_bar()
torch.set_num_threads(1)

STEPS = 12
TIE = 1e-4
LENGTHS = (10, 127, 257, 700, 1800)
"""Tokens of the prompts, where chunks are of 128: the last has 15."""


@dataclass(frozen=True)
class Greedy:
    """The best token at each step."""

    ids: list[int]
    leads: list[float]
    """By how much each one's score leads the second best."""
    logprobs: Tensor
    """[steps, vocabulary] float32."""

    def differs(self, ids: Sequence[int]) -> int | None:
        """The first step at which `ids` are others; None where they are the same."""
        steps = enumerate(zip(self.ids, ids, strict=True))
        return next((step for step, (ours, theirs) in steps if ours != theirs), None)


class Reference:
    """The model of a folder in one dtype.

    bfloat16 is transformers' own, its matrix products aside: each takes bfloat16 inputs, sums in
    float32 and rounds the sum to bfloat16, as bfloat16 instructions do. A CPU without these does
    the same in a loop that takes four times as long (largest difference of two scores: 0.125,
    one last place of bfloat16).
    """

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        self._model.generation_config.eos_token_id = None
        if dtype == torch.bfloat16:
            for module in self._model.modules():
                if isinstance(module, nn.Linear):
                    module.forward = partial(_product, module.weight.detach().float().t())

    def chat(self, messages: list[dict[str, str]]) -> list[int]:
        """The ids of a chat, up to where the answer begins."""
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        return self.ids(text)

    def ids(self, text: str) -> list[int]:
        found: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return found

    @torch.inference_mode()
    def generate(self, prompt: list[int], tokens: int) -> Greedy:
        """`tokens` greedy tokens, the end of text being a token like others."""
        ids = torch.tensor([prompt])
        said = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        found = _greedy(torch.cat(said.logits))
        if found.ids != said.sequences[0, len(prompt) :].tolist():
            raise AssertionError("transformers' generate has not taken the best tokens")
        return found

    @torch.inference_mode()
    def follow(self, prompt: list[int], output: list[int]) -> Greedy:
        """The best token at each step of `output`, given all before it, in one pass.

        Where they are the same, greedy decoding says `output`; where they differ first, it is
        greedy decoding up to there.
        """
        ids = torch.tensor([prompt + output[:-1]])
        return _greedy(self._model(ids, logits_to_keep=len(output)).logits[0])


def _product(weight: Tensor, x: Tensor) -> Tensor:
    return (x.float() @ weight).to(x.dtype)


def _greedy(scores: Tensor) -> Greedy:
    """`scores`: [steps, vocabulary]."""
    scores = scores.float()
    best = scores.topk(2)
    leads = best.values[:, 0] - best.values[:, 1]
    return Greedy(best.indices[:, 0].tolist(), leads.tolist(), scores.log_softmax(-1))


def assert_equals_transformers(serving: Serving, client: httpx.Client, model: Path = MODEL) -> None:
    """In float32, greedy, but from a step on at which the top two scores tie."""
    reference, tokenizer = Reference(model, torch.float32), Tokenizer(model)
    rng, equal = random.Random("stages"), 0
    for length in LENGTHS:
        prompt = [rng.randrange(6, 1536) for _ in range(length)]
        greedy = reference.generate(prompt, STEPS)
        answer = serving.complete(client, prompt, max_tokens=STEPS, ignore_eos=True, logprobs=1)
        assert answer.status_code == 200, answer.text
        told = answer.json()["choices"][0]["logprobs"]["tokens"]
        # Parts of characters are all spelled alike.
        wanted = [tokenizer.piece(id).decode(errors="replace") for id in greedy.ids]
        steps = enumerate(zip(wanted, told, strict=True))
        step = next((step for step, (ours, theirs) in steps if ours != theirs), None)
        assert step is None or greedy.leads[step] < TIE, (length, step, greedy.leads[step])
        equal += step is None
    print(f"{equal} of {len(LENGTHS)} prompts equal in {STEPS} tokens, the others differ at a tie")
