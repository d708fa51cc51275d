"""What can be compiled ahead of time: one interface for every compiler.

A graph (AOTInductor, `pds_kernels.graph`), a Triton kernel (`builders.triton`) and a DeepGEMM
kernel look alike to the cache, the warm-up and the manifest.
"""

from pathlib import Path
from typing import Protocol


class Buildable(Protocol):
    """Something that a compiler makes into files. It can cross to another process."""

    @property
    def kind(self) -> str:
        """The compiler: artefacts of one kind lie in one folder of the cache."""

    @property
    def name(self) -> str:
        """Names it within a plan, for people and in the manifest."""

    @property
    def memory(self) -> int:
        """Bytes that its compiler may take."""

    def key_inputs(self) -> dict[str, str]:
        """All that decides the artefact, the toolchain and the target too; never a path.

        Raises:
            RuntimeError: its compiler is not here.
        """

    def build(self, folder: Path) -> None:
        """Compile into `folder`, which is empty.

        Raises:
            RuntimeError: the compiler refuses.
        """
