"""How each engine is set up to be at its best, for what is measured here."""

import os
import secrets
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import ROOT, say

from comparing.machine import cpus
from comparing.models import Shape
from comparing.peers import CACHE, LLAMA, MISTRAL, PEERS, VLLM
from comparing.sessions import HERE, Session


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is asked of the engines."""

    prompt: int
    """Tokens of a prompt, where prompts are measured."""
    prompts: tuple[int, ...]
    """How many at once."""
    batches: tuple[int, ...]
    context: int
    """Tokens of a prompt, where steps are measured."""
    steps: int
    compiled: bool = True
    chunk: int = 2048
    """Tokens of prompts in one step."""

    @property
    def longest(self) -> int:
        """Tokens of a request, and some to spare."""
        return max(self.prompt, self.context + 2 * self.steps) + 64

    @property
    def held(self) -> int:
        """Tokens that are held at once, at most."""
        return self.longest * max(max(self.prompts), max(self.batches))

    @property
    def running(self) -> int:
        return max(*self.prompts, *self.batches)


NAMES = ("ours", *PEERS)
_ARCHITECTURES = {"Qwen3ForCausalLM": "Qwen3", "Qwen3MoeForCausalLM": "Qwen3Moe"}
_ARCHITECTURES["LlamaForCausalLM"] = "Llama"
PAGE = 16


def session(name: str, shape: Shape, model: Path, sizes: Sizes, folder: Path) -> Session:
    """The engine `name` with this model, in a process that loads it.

    Raises:
        NotInstalled: its environment cannot be made.
        OSError: what it reads cannot be written.
    """
    log = folder / f"{name}-{shape.name}.log"
    if name == "ours":
        settings: dict[str, Any] = {"flags": flags(model, sizes, len(cpus()))}
        return _started(name, sys.executable, "drive_ours.py", settings, {}, log)
    if name == "vllm":
        arguments = {"model": str(model), **vllm_arguments(sizes)}
        settings = {"arguments": arguments}
        more = vllm_environment(tuple(cpus()))
        return _started(name, str(VLLM.python), "drive_vllm.py", settings, more, log)
    if name == "llama.cpp":
        settings = {
            "file": str(gguf(model)),
            "threads": len(cpus()),
            "requests": sizes.running,
            "tokens": sizes.held,
            "batch": sizes.chunk,
            "ubatch": min(sizes.chunk, 512),
        }
        return _started(name, str(LLAMA.python), "drive_llama.py", settings, {}, log)
    architecture = _ARCHITECTURES[shape.architecture]
    settings = {"model": str(model), "architecture": architecture, "requests": sizes.running}
    return _started(name, str(MISTRAL.python), "drive_mistral.py", settings, {}, log)


def _started(
    name: str,
    python: str,
    script: str,
    settings: Mapping[str, Any],
    more: Mapping[str, str],
    log: Path,
) -> Session:
    paths = [str(ROOT / "engine"), str(ROOT / "kernels")] if name == "ours" else []
    found = {**more, "PYTHONPATH": os.pathsep.join(paths)}
    return Session(name, [python, str(HERE / script)], settings, found, log)


def flags(model: Path, sizes: Sizes, threads: int) -> dict[str, Any]:
    """Our engine's settings, by dotted key."""
    found: dict[str, Any] = {
        "model.path": str(model),
        "device": "cpu",
        "threads": threads,
        "max_model_len": sizes.longest,
        "scheduler.chunk_size": sizes.chunk,
        "scheduler.max_running": sizes.running,
        "scheduler.prefix_cache": False,
        "kv.page_size": PAGE,
        "kv.pages": -(-sizes.held // PAGE) + sizes.running + 64,
    }
    if sizes.compiled:
        found |= {"compile": True, **cache()}
    return found


def cache() -> dict[str, str]:
    """Where our artefacts are kept from one run to the next: sealed by a key of its own, since
    groups have new control keys each time."""
    volume, keys = CACHE / "ours", CACHE / "ours-key"
    for folder in (volume, keys):
        folder.mkdir(parents=True, exist_ok=True)
    key = keys / "cache.key"
    if not key.exists():
        key.write_text(secrets.token_hex(32))
    return {"cache.path": str(volume), "cache.key_dir": str(keys)}


def vllm_arguments(sizes: Sizes) -> dict[str, Any]:
    """Of vLLM's offline engine and of its server alike."""
    return {
        "dtype": "bfloat16",
        "max_model_len": sizes.longest,
        "max_num_seqs": sizes.running,
        "max_num_batched_tokens": max(sizes.chunk, sizes.running),
        "enable_prefix_caching": False,
        "enforce_eager": not sizes.compiled,
    }


def vllm_environment(on: tuple[int, ...]) -> dict[str, str]:
    """As vLLM's own guide tunes it for a CPU: threads bound, Intel's OpenMP, tcmalloc."""
    libraries = (VLLM.library("libtcmalloc_minimal.so.4"), VLLM.library("libiomp5.so"))
    return {
        "LD_PRELOAD": ":".join(filter(None, libraries)),
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, on)),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CACHE_ROOT": str(CACHE / "vllm-cache"),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "HF_HUB_OFFLINE": "1",
    }


def gguf(model: Path) -> Path:
    """The model as llama.cpp reads it; made where it is not there yet.

    Raises:
        OSError: it cannot be written.
    """
    target = model / "model.gguf"
    if not target.exists():
        say(f"writing {target}")
        partial = target.with_suffix(".part")
        words = [str(LLAMA.python), str(HERE / "gguf_file.py"), str(model), str(partial)]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            raise OSError(f"{target}: {done.stderr[-500:]}")
        partial.rename(target)
    return target
