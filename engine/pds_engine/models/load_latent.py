"""Loading multi-head latent attention: this rank's heads of it, and the latent's part whole."""

from torch import Tensor

from pds_engine.layers.linear import Matrix
from pds_engine.models.matrices import Part, halved, matrix
from pds_engine.models.names import LatentNames
from pds_engine.models.reader import Reader
from pds_engine.models.weights import MlaWeights
from pds_engine.parallel.layout import ModelPart
from pds_engine.spec import MlaSpec


def mla(
    reader: Reader, spec: MlaSpec, names: LatentNames, mine: ModelPart, name: str
) -> MlaWeights:
    """The attention of the layer whose tensors' names begin with `name`.

    Each rank makes the latent of its tokens, so that all have the same pages.
    """
    attention = f"{name}self_attn."
    query, heads = spec.nope_dim + spec.rope_dim, mine.heads
    rows = range(heads.start * query, heads.stop * query)
    q_a: Matrix = reader.none()
    q_a_norm = reader.none()
    queries: Part = (f"{attention}{names.q}.weight", rows)
    if spec.q_rank is not None:
        q_a = matrix(reader, (f"{attention}{names.q_a}.weight",))
        q_a_norm = reader.read(f"{attention}{names.q_a_norm}.weight")
        queries = (f"{attention}{names.q_b}.weight", rows)
    latents: Part = (f"{attention}{names.kv_a}.weight",)
    if spec.rope.interleaved:
        q_b = halved(reader, queries, query, spec.nope_dim, spec.rope_dim)
        kv_a = halved(reader, latents, spec.latent, spec.kv_rank, spec.rope_dim)
    else:
        q_b, kv_a = matrix(reader, queries), matrix(reader, latents)
    uk, uv = _expanding(reader, spec, f"{attention}{names.kv_b}.weight", heads)
    values = range(heads.start * spec.value_dim, heads.stop * spec.value_dim)
    return MlaWeights(
        q_a=q_a,
        q_a_norm=q_a_norm,
        q_b=q_b,
        kv_a=kv_a,
        kv_a_norm=reader.read(f"{attention}{names.kv_a_norm}.weight"),
        uk=uk,
        uv=uv,
        out=matrix(reader, (f"{attention}{names.out}.weight", None, values)),
        out_bias=reader.none(),
    )


def _expanding(reader: Reader, spec: MlaSpec, name: str, heads: range) -> tuple[Tensor, Tensor]:
    """What makes the heads' keys of a latent, and their values.

    A checkpoint has a head's rows of both behind each other.
    """
    size = spec.nope_dim + spec.value_dim
    both = reader.plain(name, range(heads.start * size, heads.stop * size))
    uk, uv = both.view(len(heads), size, spec.kv_rank).split_with_sizes(
        [spec.nope_dim, spec.value_dim], dim=1
    )
    return reader.packed_heads(uk, uv)
