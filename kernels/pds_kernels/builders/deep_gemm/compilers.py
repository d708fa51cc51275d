"""Programs that stand in the place of nvcc, and compile nothing."""

import os
import shlex
from pathlib import Path

from pds_kernels.builders.deep_gemm.toolchain import Toolchain

_ANSWERS = """#!/bin/sh
case "$1" in --version) printf '%s' {version}; exit;; esac
"""
_NOTES = """out=
for word in "$@"; do
  [ "$out" = next ] && { out=$word; break; }
  [ "$word" = -o ] || [ "$word" = --output-file ] && out=next
done
printf '%s\\n' "$@" > "$out"
"""
_REFUSES = """echo "nvcc $*" >> {log}
echo "no kernel is compiled while serving: the plan of warm-up lacks this shape" >&2
exit 1
"""


def noting(path: Path, toolchain: Toolchain) -> None:
    """Write a program that says it is `toolchain`'s nvcc. In place of a kernel it writes the words
    that it was called with, one a line."""
    _write(path, _NOTES, toolchain)


def refusing(path: Path, toolchain: Toolchain) -> None:
    """Write a program that says it is `toolchain`'s nvcc, and fails when it is to compile.

    Each such call is a line of the file beside it, `<path>.refused`.
    """
    _write(path, _REFUSES.format(log=shlex.quote(f"{path}.refused")), toolchain)


def _write(path: Path, then: str, toolchain: Toolchain) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(_ANSWERS.format(version=shlex.quote(toolchain.version)) + then)
    part.chmod(0o755)
    part.replace(path)  # at once: another rank of this pod may run it
