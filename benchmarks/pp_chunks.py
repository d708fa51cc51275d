"""How much faster a long prompt passes a pipeline whose chunks need not wait for outputs.

    python benchmarks/pp_chunks.py [--quick] [--stages N] [--chunks M] [--hidden WIDTH] ...

Real processes: a scheduler and a worker for each stage, their plans, ZMQ, and gloo transfers of
hidden states of the true size, bfloat16. Only a stage's computation is replaced: it takes a fixed
time for a step (asleep, as a host is while its GPU computes). Two groups take turns: one skips the
outputs that nobody reads, the other does as engines did (skip_output: false).

`value`: the old time to the first token over the new one. With M chunks on N stages the ideal is
M·N / (M + N − 1); vLLM's change (#38726) gave 3.29 at N = 4. `overhead_ms`: what a step takes
beyond the fixed time.
"""

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
import zmq
from common import doing
from pds_engine.config import EngineConfig
from pds_engine.keys import Keys
from pds_engine.messages import (
    Admit,
    Hello,
    Release,
    Sampling,
    State,
    StepDone,
    StepPlan,
    Submit,
    Token,
)
from pds_engine.models.registry import read_spec
from pds_engine.parallel.launch import Launched
from pds_engine.parallel.layout import part
from pds_engine.wire import Link
from pds_engine.worker import process as worker
from safetensors.torch import save_file
from torch import Tensor

VOCAB = 1000
STEP_MS = "PDS_BENCHMARK_STEP_MS"


# ---- one rank: the engine's worker, and a model that only takes its time ------------------------


class FixedModel:
    """What the worker asks of models.decoder.Decoder: what it is, not what it computes."""

    def __init__(self, config: EngineConfig, rank: int) -> None:
        self.spec = read_spec(config.model.path)
        self.part = part(self.spec, config.parallelism, rank)
        self.dtype = torch.bfloat16


class FixedRunner:
    """In runner.Runner's place: a step takes a fixed time, and makes hidden states of its size."""

    compiles = 0
    unneeded = 0
    attention = "none"

    def __init__(self, seconds: float, model: FixedModel) -> None:
        self._seconds = seconds
        self._model = model

    def launch(self, plan: StepPlan, hidden: Tensor | None) -> Launched[Tensor]:
        begun = time.perf_counter()
        time.sleep(self._seconds)
        if not self._model.part.samples:
            shape = plan.padded_tokens, self._model.spec.hidden
            return Launched(plan, hidden=torch.empty(shape, dtype=self._model.dtype))
        tokens = (7,) * sum(row.samples for row in plan.rows)
        elapsed = time.perf_counter() - begun
        done = StepDone(step_id=plan.step_id, tokens=tokens, logprobs=(), elapsed=elapsed)
        return Launched(plan, read=lambda: done)

    def accept(self, plan: StepPlan, tokens: tuple[int, ...]) -> None:
        """Nothing reads them."""

    def admit(self, order: Admit) -> None:
        """It has no slots."""

    def release(self, order: Release) -> None:
        """It has no slots."""


def serve(folder: Path, rank: int) -> None:
    """The worker's process, as pds_engine.child runs it."""
    config = EngineConfig.model_validate_json((folder / "config.json").read_text())
    launch = json.loads((folder / "launch.json").read_text())
    seconds = float(os.environ[STEP_MS]) / 1000
    replaced = {
        "load": lambda config, rank, *_: FixedModel(config, rank),
        "Runner": lambda _, model, *__: FixedRunner(seconds, model),
    }
    vars(worker).update(replaced)
    worker.run(config, Keys.read(folder), launch["schedulers"], rank, launch["incarnation"])


# ---- the group, and a client in the API server's place -----------------------------------------


class Group:
    """All processes of a group; a context manager."""

    def __init__(self, asked: argparse.Namespace, folder: Path, *, skip: bool) -> None:
        folder.mkdir()
        self.name = folder.name
        self.stages: int = asked.stages
        self._chunk: int = asked.chunk_size
        address = f"tcp://127.0.0.1:{_free_port()}"
        keys = Keys.make()
        keys.write(folder)
        config = _config(asked, folder, skip)
        (folder / "config.json").write_text(config.model_dump_json())
        launch = {"incarnation": self.name, "binds": [address], "schedulers": [address]}
        (folder / "launch.json").write_text(json.dumps(launch))
        environment = os.environ | {STEP_MS: str(asked.step_ms), "OMP_NUM_THREADS": "1"}
        commands = [["-m", "pds_engine.child", "scheduler", str(folder), str(os.getpid())]]
        commands += [[__file__, "--serve", str(folder), str(rank)] for rank in range(self.stages)]
        self._log = (folder / "log").open("w+b")
        self._processes = [
            subprocess.Popen([sys.executable, *command], env=environment, stderr=self._log)
            for command in commands
        ]
        self._context = zmq.Context()
        self._link = Link(self._context, address, keys)
        self._link.send(Hello(peer="server", group=self.name, incarnation=self.name, rank=0))
        self._asked = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if error is not None:
            self._log.seek(0)
            sys.stderr.write(self._log.read().decode())
        self._link.close()
        self._context.term()
        for process in self._processes:
            process.kill()
            process.wait()
        self._log.close()

    def await_ready(self) -> None:
        while True:
            message = self._receive()
            if isinstance(message, State) and message.ranks_ready == self.stages:
                return

    def first_token(self, chunks: int) -> float:
        """Seconds from asking to the first token of a prompt of so many chunks."""
        self._asked += 1
        request = Submit(
            request_id=f"{self.name}-{self._asked}",
            prompt_ids=tuple([self._asked % VOCAB] * (chunks * self._chunk)),
            sampling=Sampling(max_tokens=1, temperature=0.0),
            seed=0,
        )
        begun = time.perf_counter()
        self._link.send(request)
        while not isinstance(self._receive(), Token):
            pass
        return time.perf_counter() - begun

    def _receive(self) -> Any:
        deadline = time.monotonic() + 120.0
        while (message := self._link.receive(timeout=1.0)) is None:
            if any(process.poll() is not None for process in self._processes):
                raise RuntimeError(f"a process of group {self.name} has ended")
            if time.monotonic() > deadline:
                raise TimeoutError(f"group {self.name} said nothing for two minutes")
        return message


def _config(asked: argparse.Namespace, folder: Path, skip: bool) -> EngineConfig:
    model = folder / "model"
    model.mkdir()
    sizes = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": asked.hidden,
        "num_hidden_layers": asked.stages,
        "num_attention_heads": 1,
        "head_dim": 16,
        "intermediate_size": 16,
        "vocab_size": VOCAB,
        "max_position_embeddings": 1 << 20,
    }
    (model / "config.json").write_text(json.dumps(sizes))
    save_file({"nothing": torch.zeros(1)}, model / "model.safetensors")
    longest = (asked.chunks + 1) * asked.chunk_size
    return EngineConfig.model_validate(
        {
            "model": {"path": model},
            "device": "cpu",
            "max_model_len": longest,
            "parallelism": {"pp": asked.stages, "ranks_per_pod": asked.stages},
            "kv": {"pages": longest // 16 + 1, "backends": ["tcp"], "port_base": 0},
            "scheduler": {"chunk_size": asked.chunk_size, "step_timeout": 300},
            "pipeline": {"skip_output": skip},
            "http": {"rendezvous_port": _free_port()},
            "pod": {"group": folder.name},
            "log_level": "warning",
        }
    )


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextmanager
def groups(asked: argparse.Namespace) -> Iterator[tuple[Group, Group]]:
    """One that skips, and one that does not."""
    with tempfile.TemporaryDirectory() as folder:
        new = Group(asked, Path(folder) / "new", skip=True)
        with new, Group(asked, Path(folder) / "old", skip=False) as old:
            new.await_ready()
            old.await_ready()
            yield new, old


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    new_s, old_s = [], []
    with groups(asked) as (new, old):
        for group in (new, old):
            group.first_token(2)
        for _ in range(asked.repeat):
            new_s.append(new.first_token(asked.chunks))
            old_s.append(old.first_token(asked.chunks))
    stages, chunks, fixed = asked.stages, asked.chunks, asked.step_ms / 1000
    new_time, old_time = statistics.median(new_s), statistics.median(old_s)
    ticks = chunks + stages - 1
    return {
        "value": round(old_time / new_time, 3),
        "baseline": round(chunks * stages / ticks, 3),
        "ratio": round(old_time / new_time / (chunks * stages / ticks), 3),
        "new_ms": round(1000 * new_time, 1),
        "old_ms": round(1000 * old_time, 1),
        "new_range_ms": [round(1000 * each, 1) for each in (min(new_s), max(new_s))],
        "old_range_ms": [round(1000 * each, 1) for each in (min(old_s), max(old_s))],
        "overhead_ms": round(1000 * (new_time / ticks - fixed), 2),
        "old_overhead_ms": round(1000 * (old_time / (chunks * stages) - fixed), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="8 chunks, once")
    parser.add_argument("--stages", type=int, default=4)
    parser.add_argument("--chunks", type=int, default=32)
    parser.add_argument("--chunk-size", type=int, default=512, help="tokens")
    parser.add_argument("--hidden", type=int, default=4096, help="width of the hidden states")
    parser.add_argument("--step-ms", type=float, default=20.0)
    parser.add_argument("--repeat", type=int, default=5)
    asked = parser.parse_args()
    if asked.serve:
        serve(Path(asked.serve[0]), int(asked.serve[1]))
        return
    if asked.quick:
        asked.chunks, asked.repeat = 8, 1
    with doing(f"{asked.chunks} chunks on {asked.stages} stages", 600 if asked.quick else 3600):
        found = measure(asked)
    result = {
        "name": "pp_chunks",
        "unit": "× (old time / new time)",
        "better": "higher",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        **found,
        "stages": asked.stages,
        "chunks": asked.chunks,
        "hidden_mib": asked.chunk_size * asked.hidden * 2 / (1 << 20),
        "step_ms": asked.step_ms,
    }
    print(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    main()
