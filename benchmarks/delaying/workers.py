"""Passes of real workers, measured: two dp ranks on this machine, with plans made by hand.

The model has the shape that docs/ figures of CPU engines are about (Qwen3, hidden 512, 8 layers,
FFN 1,536), with random weights. What a pass takes is the longer of the two ranks' steps.
"""

import json
import os
import random
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
import zmq
from common import say
from msgspec.structs import replace
from pds_engine.config import EngineConfig
from pds_engine.keys import Keys
from pds_engine.messages import (
    Admit,
    AnyMessage,
    Assemble,
    Hello,
    Ready,
    Row,
    Sampling,
    StepDone,
    StepPlan,
    Welcome,
)
from pds_engine.scheduler.dp.batches import shapes
from pds_engine.wire import Authority, Hub

from delaying.costs import Load

DP, SLOTS, PAGE, LONGEST, CHUNK = 2, 33, 16, 1024, 512
PROMPT = SLOTS - 1
"""The slot of the prompt that chunks are of."""


class Ranks:
    """The workers of two dp ranks, and what stands in their schedulers' place."""

    def __init__(self, folder: Path, model: Path) -> None:
        self._context = zmq.Context()
        keys = Keys.make()
        keys.write(folder)
        addresses = [f"tcp://127.0.0.1:{_free_port()}" for _ in range(DP)]
        config = EngineConfig.model_validate(
            {
                "model": {"path": model, "dtype": "float32"},
                "max_model_len": LONGEST,
                "parallelism": {"dp": DP, "ranks_per_pod": DP},
                "kv": {"pages": (SLOTS + 1) * LONGEST // PAGE, "backends": ["tcp"], "port_base": 0},
                "scheduler": {"max_running": SLOTS, "chunk_size": CHUNK},
                "http": {"rendezvous_port": _free_port()},
                "log_level": "warning",
            }
        )
        (folder / "config.json").write_text(config.model_dump_json())
        launch = {"incarnation": "here", "binds": addresses, "schedulers": addresses}
        (folder / "launch.json").write_text(json.dumps(launch))
        self._authority = Authority(self._context, keys)
        self._hubs = [Hub(self._context, address, keys) for address in addresses]
        self._workers: dict[int, bytes] = {}
        self._step = 0
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        words = (sys.executable, "-m", "pds_engine.child")
        self._processes = [
            subprocess.Popen([*words, f"worker-{rank}", folder, str(os.getpid())], env=environment)
            for rank in range(DP)
        ]
        self._meet(f"127.0.0.1:{config.http.rendezvous_port}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        for hub in self._hubs:
            hub.close()
        self._authority.close()
        self._context.term()

    def run(self, loads: Sequence[Load], starts: Sequence[int]) -> float:
        """Seconds of a pass: rows of about `context` tokens together, and a chunk from `starts`."""
        counts = [load.rows + load.tokens for load in loads]
        shape = shapes(counts, 1, extends=any(load.tokens for load in loads))
        for rank, (load, start) in enumerate(zip(loads, starts, strict=True)):
            length = load.context // load.rows if load.rows else 0
            rows = [
                Row(slot=slot, gen=0, start=length - 1, length=1, samples=True)
                for slot in range(load.rows)
            ]
            if load.tokens:
                rows.append(Row(slot=PROMPT, gen=0, start=start, length=load.tokens))
            plan = StepPlan(
                step_id=self._step,
                rows=tuple(rows),
                expects_output=False,
                depends_on=-1,
                padded_tokens=shape[rank],
                dp_tokens=shape,
            )
            self._hubs[rank].send(self._workers[rank], plan)
        self._step += 1
        return max(self._await(rank, StepDone).elapsed for rank in range(DP))

    def _meet(self, rendezvous: str) -> None:
        for rank in range(DP):
            self._await(rank, Hello)
            self._hubs[rank].send(self._workers[rank], Welcome(incarnation="here"))
        for rank in range(DP):
            self._hubs[rank].send(self._workers[rank], Assemble(rendezvous=rendezvous))
        pages = LONGEST // PAGE
        admit = Admit(
            slot=0, gen=0, prompt_ids=tuple(range(3, 3 + LONGEST)), output_ids=(), pages=(),
            sampling=Sampling(max_tokens=1, temperature=0.0), seed=0,
        )  # fmt: skip
        for rank in range(DP):
            self._await(rank, Ready)
            for slot in range(SLOTS):
                own = tuple(range(slot * pages, (slot + 1) * pages))
                self._hubs[rank].send(self._workers[rank], replace(admit, slot=slot, pages=own))

    def _await(self, rank: int, kind: type[Any]) -> Any:
        """The next message of `kind` of a rank's worker; a watchdog's are passed over."""
        hub = self._hubs[rank]
        while True:
            if not hub.socket.poll(60_000):
                raise TimeoutError(f"dp rank {rank} said nothing for a minute")
            while (got := hub.receive()) is not None:
                identity, message = got
                if _first(message):
                    self._workers[rank] = identity
                if isinstance(message, kind) and self._workers.get(rank) == identity:
                    return message


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _first(message: AnyMessage) -> bool:
    return isinstance(message, Hello) and message.peer == "worker"


@contextmanager
def ranks() -> Iterator[Ranks]:
    """Both, ready, on a model that is made for them."""
    import transformers

    with tempfile.TemporaryDirectory() as name:
        folder, model = Path(name), Path(name) / "model"
        torch.manual_seed(1)
        shape = transformers.Qwen3Config(
            vocab_size=32_000, hidden_size=512, intermediate_size=1536, num_hidden_layers=8,
            num_attention_heads=8, num_key_value_heads=4, head_dim=64,
            max_position_embeddings=2 * LONGEST,
        )  # fmt: skip
        transformers.Qwen3ForCausalLM(shape).save_pretrained(model)
        with Ranks(folder, model) as made:
            yield made


def measured(passes: int, seed: int = 1) -> Iterator[tuple[list[Load], float]]:
    """So many passes of random loads, each the fastest of three turns, in an order of its own."""
    rng = random.Random(seed)
    drawn = [_drawn(rng) for _ in range(passes)]
    best = [float("inf")] * passes
    with ranks() as both:
        for loads, starts in drawn[:3]:
            both.run(loads, starts)
        for turn in range(3):
            say(f"turn {turn + 1} of 3")
            for at in rng.sample(range(passes), passes):
                best[at] = min(best[at], both.run(*drawn[at]))
    for (loads, _), seconds in zip(drawn, best, strict=True):
        yield loads, seconds


def _drawn(rng: random.Random) -> tuple[list[Load], list[int]]:
    """Loads of both dp ranks, and where their chunks start; at least one has a token."""
    prompts = rng.random() < 0.6
    loads, starts = [], []
    for _ in range(DP):
        rows = rng.choice((0, 1, 2, 4, 8, 16, 32))
        context = rows * rng.randint(16, LONGEST // 2)
        tokens = rng.choice((0, 16, 64, 128, 256, CHUNK)) if prompts else 0
        start = rng.choice((0, 128, LONGEST // 2))
        pairs = tokens * start + tokens * (tokens + 1) / 2
        loads.append(Load(rows, context, tokens, pairs))
        starts.append(start)
    if not any(load.rows or load.tokens for load in loads):
        return _drawn(rng)
    return loads, starts
