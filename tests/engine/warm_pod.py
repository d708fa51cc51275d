"""A pod of which only the warm-up and the loading of artefacts are real."""

import json
from pathlib import Path
from typing import Any

from pds_engine import warmup
from pds_engine.config import EngineConfig
from pds_engine.worker.kernels import prepare

MODEL = Path(__file__).parents[2] / "examples" / "models" / "tiny"


class WarmPod:
    """A pod: its warm-up, and then its engine, over one folder of its own."""

    def __init__(self, root: Path, name: str) -> None:
        self.volume, self.private, self.log = root / "volume", root / name, root / f"{name}.log"
        self.built: list[str] = []
        self.log.touch()
        self.volume.mkdir(exist_ok=True)

    def config(self, **cache: object) -> EngineConfig:
        given = {"path": self.volume, "private": self.private, "warmup": True, **cache}
        model = {"path": MODEL, "dtype": "float32"}
        return EngineConfig.model_validate({"model": model, "cache": given, "compile": True})

    def warm(self, **cache: object) -> dict[str, Any]:
        """The proof, and the exit status in it."""
        status = warmup.run(self.config(**cache))
        proof: dict[str, Any] = json.loads(self.log.read_text())
        return proof | {"status": status}

    def load(self) -> str:
        """The digest of what the engine loads, which compiles nothing."""
        before = len(self.built)
        kernels = prepare(self.config())
        assert kernels
        assert len(self.built) == before
        assert all(folder.is_relative_to(self.private) for folder in kernels.folders)
        return kernels.proof.manifest
