"""A model with a window of 37 tokens, on as many pages as one request may hold at once."""

import pytest
import torch
import transformers
from comparing_groups import compare
from pds_engine.models.registry import read_spec
from pds_engine.scheduler.settings import Settings
from random_models import MODELS, saved

WINDOW = MODELS["MistralForCausalLM"]["sliding_window"]
OUTPUT = 96
PROMPT = 8 * WINDOW - OUTPUT


@pytest.mark.slow
@pytest.mark.parametrize("pp", [1, 2])
def test_eight_windows_are_answered_on_the_pages_of_one(
    start, shaped, prompt, submit, tmp_path, pp
):
    """With a page more for each of its 16 tokens there would be 19 pages, and no room for them."""
    model = saved("MistralForCausalLM", tmp_path / "model")
    keys = {"model__path": model, "max_model_len": 8 * WINDOW, "parallelism__pp": pp}
    bounds = {"scheduler__chunk_size": 16, "scheduler__max_running": 1}
    wide = shaped(**keys, **bounds)
    settings = Settings.of(wide, read_spec(model).window)
    pages = settings.at_once(settings.pages_for(8 * WINDOW))
    assert pages < 10
    group = start(shaped(**keys, **bounds, kv__pages=pages), "narrow")
    group.await_ready()
    asked = [submit(f"w{seed}", prompt(PROMPT, seed), OUTPUT) for seed in range(2)]
    found = group.collect(*asked)
    reference = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)

    def logprobs(ids: tuple[int, ...]) -> torch.Tensor:
        with torch.inference_mode():
            return reference(torch.tensor([ids])).logits[0].log_softmax(-1)

    for each in asked:
        compare(each, found[each.request_id], logprobs)
