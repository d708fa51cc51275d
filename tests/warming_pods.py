"""Three pods of benchmarks/warmup.py that begin together, with builds that cost nothing; twice.

    warming_pods.py FOLDER

Prints what was built each time, as JSON. A process of its own, as pods are forked from it.
"""

import json
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import ClassVar

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from warming.building import together
from warming.figures import per_key


@dataclass(frozen=True)
class Word:
    name: str
    kind: ClassVar[str] = "word"
    memory: ClassVar[int] = 1

    def key_inputs(self) -> dict[str, str]:
        return {"name": self.name}

    def build(self, folder: Path) -> None:
        (folder / "word").mkdir()
        (folder / "word" / "text").write_text(self.name)


def main() -> None:
    root = Path(sys.argv[1])
    words = {name: Word(name) for name in "abcde"}
    begins = [Fraction(pod, 3) for pod in range(3)]
    cold = together(root, {f"pod-{pod}": words for pod in range(3)}, begins)
    warm = together(root, {f"again-{pod}": words for pod in range(3)}, begins, warm=True)
    print(json.dumps([per_key(cold), per_key(warm)]))


if __name__ == "__main__":
    main()
