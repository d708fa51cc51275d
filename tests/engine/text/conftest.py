from pathlib import Path

import pytest
from pds_engine.text.tokenizer import Tokenizer

TINY = Path(__file__).parents[3] / "examples" / "models" / "tiny"


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer(TINY)
