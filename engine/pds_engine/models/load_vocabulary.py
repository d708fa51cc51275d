"""Loading what stands before and after the layers: embedding, last norm, head."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pds_engine.layers.linear import Fp8Matrix, Matrix
from pds_engine.models.names import EMBEDDING, HEAD, NORM
from pds_engine.models.reader import Reader
from pds_engine.models.weights import Embedding
from pds_engine.parallel.layout import ModelPart

_Read = tuple[Embedding | None, Tensor | None, Matrix | None]


def read(reader: Reader, mine: ModelPart) -> _Read:
    """Embedding, last norm and head, where this rank has them; one where both are one."""
    embedding = _rows(reader, mine, EMBEDDING, HEAD) if mine.embeds else None
    if not mine.samples:
        return embedding, None, None
    head = None
    both = EMBEDDING in reader and HEAD in reader
    if both or embedding is None:
        head = _rows(reader, mine, HEAD, EMBEDDING)
    if head is not None and (embedding is None or not torch.equal(head, embedding)):
        return embedding, reader.norm(NORM), reader.packed(head)
    if embedding is None:
        raise ValueError("a rank that samples has a head, or an embedding in its place")
    both_in_one = reader.packed(embedding)
    if isinstance(both_in_one, Fp8Matrix):
        raise ValueError("no embedding is in FP8")
    return both_in_one, reader.norm(NORM), both_in_one


def _rows(reader: Reader, mine: ModelPart, name: str, tied: str) -> Tensor:
    """This shard's rows of an embedding, with zeros up to as many as all shards have.

    `tied` is the tensor that a checkpoint has in its place where both are one.
    """
    rows = reader.plain(name if name in reader else tied, mine.vocab)
    missing = mine.vocab_rows - len(rows)
    return F.pad(rows, (0, 0, 0, missing)) if missing else rows
