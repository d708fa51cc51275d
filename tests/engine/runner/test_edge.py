"""What crosses between host and device: uploads that wait for nothing, copies that are awaited."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from pds_engine.config import EngineConfig
from pds_engine.kv.pool import KvPool
from pds_engine.messages import Admit, Row, Sampling, StepPlan
from pds_engine.models import meta
from pds_engine.models.loader import load
from pds_engine.models.registry import read_spec
from pds_engine.parallel.collectives import ALONE
from pds_engine.parallel.layout import part
from pds_engine.runner.edge import HostPassage, edge
from pds_engine.runner.runner import Runner
from pds_engine.sizing import kv_format, kv_shard
from pds_kernels.launching import recording
from pds_kernels.targets import gpu
from pds_kernels.upload import sent, upload
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

LENGTH = 20
OPTIONS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.8, "min_p": 0.1},
    {"frequency_penalty": 0.5, "logprobs": 2},
    {"logit_bias": {5: 1.0}, "min_tokens": 3, "stop_token_ids": (7,)},
    {"prompt_logprobs": 1},
)


def frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def by_upload() -> bool:
    return any(frame.f_code in (sent.__code__, upload.__code__) for frame in frames())


class Written(TorchFunctionMode):
    """Notes what is written in Python so that numbers cross below the dispatcher."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        away = func is torch.tensor and torch.device(kwargs.get("device") or "cpu").type != "cpu"
        indexes = func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__)
        at = args[1] if indexes and isinstance(args[1], tuple) else args[1:2]
        if (away or (indexes and any(isinstance(each, list) for each in at))) and not by_upload():
            self.found.append(func.__name__)
        return func(*args, **kwargs)


class Crossings(TorchDispatchMode):
    """Notes what takes numbers from one device to another, or to Python, but by `upload`."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        reads = func is torch.ops.aten._local_scalar_dense.default
        out = torch.empty(()).item() if reads else func(*args, **kwargs)
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)]
        # A number on the host is an argument of the kernel.
        devices = {x.device.type for x in tensors if x.dim() or x.device.type != "cpu"}
        if (reads or len(devices) > 1) and not by_upload():
            self.found.append(str(func))
        return out


def admitted(runner: Runner, config: EngineConfig) -> tuple[Row, ...]:
    """A row for each of OPTIONS, a prompt's first chunk."""
    for slot, keys in enumerate(OPTIONS):
        runner.admit(
            Admit(
                slot=slot,
                gen=1,
                prompt_ids=(7,) * LENGTH,
                output_ids=(),
                sampling=Sampling(max_tokens=9, **keys),
                seed=slot,
                pages=(2 * slot, 2 * slot + 1),
            )
        )
    return tuple(
        Row(slot=s, gen=1, start=0, length=LENGTH, samples=True, scores="prompt_logprobs" in keys)
        for s, keys in enumerate(OPTIONS)
    )


def following(rows: tuple[Row, ...], nth: int) -> tuple[Row, ...]:
    """The `nth` decode step."""
    end = LENGTH + nth
    new = (end % 16 == 0) * (30,)
    return tuple(
        Row(slot=row.slot, gen=1, start=end - 1, length=1, samples=True, new_pages=new)
        for row in rows
    )


def plan(step: int, rows: tuple[Row, ...]) -> StepPlan:
    tokens = sum(row.length for row in rows)
    return StepPlan(
        step_id=step, rows=rows, expects_output=False, depends_on=-1, padded_tokens=tokens
    )


def test_a_launch_moves_nothing_to_or_from_the_device_but_by_uploads(llama: Path) -> None:
    """An ordinary copy would wait until the step before is computed. On the meta device nothing is
    computed, and every copy shows."""
    config = EngineConfig.model_validate({"model": {"path": llama}, "max_model_len": 64})
    spec = read_spec(llama)
    mine = part(spec, config.parallelism, 0, config.role)
    decoder = meta.decoder(config, spec, mine, gpu("sm_90"))
    pool = KvPool(kv_format(config, spec), kv_shard(kv_format(config, spec), mine), 4, "meta")
    runner = Runner(config, decoder, [pool.layer(at) for at in range(len(decoder.layers))])
    found: list[str] = []
    with Crossings(found), Written(found), recording():
        rows = admitted(runner, config)
        runner.launch(plan(0, rows), None)
        for nth in range(1, 16):
            runner.launch(plan(nth, following(rows, nth)), None)
    assert sorted(set(found)) == []


@pytest.mark.parametrize(
    "cross",
    [
        lambda x: torch.tensor([1, 2], device=x.device),
        lambda x: torch.zeros(3).to(x.device),
        lambda x: x[[1, 2]],
        lambda x: x[:, [1, 2]],
        lambda x: x.__setitem__(1, torch.zeros(3)),
        lambda x: x.sum().item(),
    ],
)
def test_what_waits_for_the_device_would_be_found(cross: Callable[[torch.Tensor], Any]) -> None:
    found: list[str] = []
    with Crossings(found), Written(found):
        cross(torch.empty(5, 3, device="meta"))
    assert len(found) == 1


def test_on_a_cpu_all_is_there_when_it_is_launched() -> None:
    passage = edge(torch.device("cpu"))()
    assert isinstance(passage, HostPassage)
    tensor = torch.tensor([3])
    assert passage.copy(tensor) is tensor
    passage.close()
    passage.wait()
    assert passage.fired
    assert passage.seconds() > 0


@pytest.mark.gpu
def test_copies_of_a_gpu_arrive_with_the_event() -> None:
    device = torch.device("cuda")
    passage = edge(device)()
    x = torch.ones(1 << 12, 1 << 12, device=device)
    for _ in range(50):
        x = x @ x / (1 << 12)
    there = passage.copy(x.sum())
    passage.close()
    assert not passage.fired
    passage.wait()
    assert passage.fired
    assert there.is_pinned()
    assert there.item() == 1 << 24
    assert passage.seconds() > 0


@pytest.mark.gpu
def test_a_launch_does_not_wait_for_the_gpu(llama: Path) -> None:
    """PyTorch itself says where the host would wait."""
    device = torch.device("cuda")
    config = EngineConfig.model_validate({"model": {"path": llama}, "max_model_len": 64})
    decoder = load(config, 0, device, ALONE)
    kv = kv_format(config, decoder.spec)
    pool = KvPool(kv, kv_shard(kv, decoder.part), 40, "cuda")
    runner = Runner(config, decoder, [pool.layer(at) for at in range(len(decoder.layers))])
    rows = admitted(runner, config)
    runner.launch(plan(0, rows), None).collect()
    runner.launch(plan(1, following(rows, 1)), None).collect()
    torch.cuda.set_sync_debug_mode("error")
    try:
        launched = [runner.launch(plan(nth, following(rows, nth)), None) for nth in range(2, 16)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [len(each.collect().tokens) for each in launched] == [len(OPTIONS)] * 14
