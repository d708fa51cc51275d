"""Groups of every role that were warmed up, in processes that a witness watches (test_after_ready).

The program takes a configuration for each group, warms their pods up, starts them, and says
"ready". It then answers each line of lengths of prompts, once those are computed, with what the
groups say.
"""

import json
import os
import sys
import time
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from random import Random

import forked
from pds_engine import warmup
from pds_engine.config import EngineConfig
from pds_engine.keys import Keys
from pds_engine.messages import Sampling, Submit
from real_group import Group, handed_over
from witness import tell_of_triton

_TOKENS = 6
_VOCABULARY = 320


def child(log: Path, kind: str, folder: Path) -> forked.Forked:
    return forked.Forked(log, _child, kind, str(folder))


def _child(kind: str, folder: str) -> None:
    tell_of_triton(Path(os.environ["PDS_WITNESS"]))
    forked._child(kind, folder)


class Groups:
    """One of each role."""

    def __init__(self, trees: dict[str, object], folder: Path) -> None:
        configs = {role: EngineConfig.model_validate(tree) for role, tree in trees.items()}
        with redirect_stdout(sys.stderr):  # ours is for answers
            for config in configs.values():
                warmup.warm(config)
        keys, started = Keys.make(), {}
        for role, config in configs.items():
            (folder / role).mkdir()
            started[role] = Group(config, keys, folder / role, role, child)
        self._by_role = started
        self._random, self._asked = Random(3), 0
        for group in started.values():
            group.await_ready()

    def answer(self, lengths: list[int]) -> dict[str, object]:
        """The same prompts to the unified group, and to prefill and decode together."""
        asked = [self._submit(length) for length in lengths]
        whole = self._by_role["unified"].collect(*asked)
        apart = handed_over(self._by_role["prefill"], self._by_role["decode"], asked)
        proofs = {role: group.idle().kernels for role, group in self._by_role.items()}
        return {
            "whole": {name: [each.token for each in found] for name, found in whole.items()},
            "clock": time.monotonic(),
            "apart": {name: [each.token for each in found] for name, found in apart.items()},
            "proofs": {
                role: [each.compiled, each.reused, each.compiles_after_ready]
                for role, each in proofs.items()
                if each
            },
        }

    def workers(self) -> list[int]:
        return [each.pid for group in self._by_role.values() for each in group.workers]

    def close(self) -> None:
        for group in self._by_role.values():
            group.close()

    def _submit(self, length: int) -> Submit:
        self._asked += 1
        return Submit(
            request_id=f"r{self._asked}",
            prompt_ids=tuple(self._random.randrange(_VOCABULARY) for _ in range(length)),
            sampling=Sampling(max_tokens=_TOKENS, temperature=0.0),
            seed=1,
        )


def main(trees: str, folder: str) -> None:
    say = partial(print, flush=True)
    groups = Groups(json.loads(trees), Path(folder))
    try:
        say(json.dumps(groups.workers()))
        for line in sys.stdin:
            say(json.dumps(groups.answer(json.loads(line))))
    finally:
        groups.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
