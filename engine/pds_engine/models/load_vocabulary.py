"""Loading what stands before and after the layers: embedding, last norm, head."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pds_engine.models.names import EMBEDDING, HEAD, NORM
from pds_engine.models.reader import Reader
from pds_engine.parallel.layout import ModelPart

_Read = tuple[Tensor | None, Tensor | None, Tensor | None]


def read(reader: Reader, mine: ModelPart) -> _Read:
    """Embedding, last norm and head, where this rank has them; one tensor where both are one."""
    embedding = _rows(reader, mine, EMBEDDING, HEAD) if mine.embeds else None
    if not mine.samples:
        return embedding, None, None
    head = None
    both = EMBEDDING in reader and HEAD in reader
    if both or embedding is None:
        head = _rows(reader, mine, HEAD, EMBEDDING)
    if head is None or (embedding is not None and torch.equal(head, embedding)):
        head = embedding
    return embedding, reader.norm(NORM), head


def _rows(reader: Reader, mine: ModelPart, name: str, tied: str) -> Tensor:
    """This shard's rows of an embedding, with zeros up to as many as all shards have.

    `tied` is the tensor that a checkpoint has in its place where both are one.
    """
    rows = reader.read(name if name in reader else tied, mine.vocab)
    missing = mine.vocab_rows - len(rows)
    return F.pad(rows, (0, 0, 0, missing)) if missing else rows
