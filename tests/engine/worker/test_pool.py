"""The pages that a worker makes: they must hold what one request holds at once."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from pds_engine.errors import ConfigError
from pds_engine.models.loader import load
from pds_engine.worker.process import kv_format, make_pool

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("window", "pages", "says"),
    [
        (None, 32, None),
        (None, 31, "31 pages hold 496 tokens, max_model_len is 512"),
        (32, 7, None),
        (32, 6, "6 pages hold 96 tokens, a request holds those of 112 at once"),
    ],
)
def test_pages_for_one_request(config, window, pages, says):
    """With a window of 32 tokens and two steps in flight of 32: 95 tokens, in at most 7 pages."""
    decoder = load(config, 0, CPU)
    bounds = config.scheduler.model_copy(update={"chunk_size": 32, "max_step_tokens": None})
    kv = config.kv.model_copy(update={"pages": pages, "page_size": 16})
    config = config.model_copy(update={"max_model_len": 512, "kv": kv, "scheduler": bounds})
    layers = decoder.spec.layers
    layers = tuple(replace(e, attention=replace(e.attention, window=window)) for e in layers)
    windowed = SimpleNamespace(spec=replace(decoder.spec, layers=layers), part=decoder.part)
    if says is None:
        assert make_pool(config, windowed, kv_format(config, decoder), CPU)[0] == pages
    else:
        with pytest.raises(ConfigError, match=says):
            make_pool(config, windowed, kv_format(config, decoder), CPU)
