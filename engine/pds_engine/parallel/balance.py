"""Which layers each stage has, so that no stage has much more to do than the others. Pure."""

from collections.abc import Sequence
from functools import cache
from itertools import accumulate

from pds_engine.messages import Role
from pds_engine.parallel.share import elements
from pds_engine.spec import DecoderSpec


def balanced(spec: DecoderSpec, stages: int, role: Role) -> tuple[int, ...]:
    """Layers of each stage: the most work of one is as little as can be, then all are as even."""
    return cut(work(spec, role), stages)


def work(spec: DecoderSpec, role: Role) -> list[int]:
    """Of each layer: parameters that a step multiplies with.

    On role=decode the last layer's are the head's too, so that its stage has fewer layers where the
    vocabulary is large. Chunks of a prompt pass the head by, all but the last, and of the embedding
    a step reads a row a token. Of a mixture of experts, role=prefill counts those that a token
    passes, which take its time to compute; the other roles count all, since a step of many requests
    reads nearly all of them from memory.
    """
    found = [elements(spec, layer, passed=role == "prefill") for layer in spec.layers]
    found[-1] += spec.vocab * spec.hidden * (role == "decode")
    return found


def cut(sizes: Sequence[int], stages: int) -> tuple[int, ...]:
    """How many of `sizes`, one after another, each of `stages` parts takes, one at least.

    The largest part is as small as can be; of the cuts for which that is so the one with the least
    sum of squares is taken, and of equals the one whose first parts have more.
    """
    ends = [0, *accumulate(sizes)]

    @cache
    def bottleneck(first: int, parts: int) -> int:
        """Of the sizes from `first` on, in so many parts."""
        if parts == 1:
            return ends[-1] - ends[first]
        return min(
            max(ends[end] - ends[first], bottleneck(end, parts - 1))
            for end in range(first + 1, len(sizes) - parts + 2)
        )

    most = bottleneck(0, stages)

    @cache
    def evenest(first: int, parts: int) -> tuple[int, tuple[int, ...]] | None:
        """The sum of squares, and how many sizes each part has, negated to sort; None: too much."""
        if parts == 1:
            size = ends[-1] - ends[first]
            return (size**2, (first - len(sizes),)) if size <= most else None
        found = []
        for end in range(first + 1, len(sizes) - parts + 2):
            size, rest = ends[end] - ends[first], evenest(end, parts - 1)
            if size <= most and rest is not None:
                found.append((size**2 + rest[0], (first - end, *rest[1])))
        return min(found, default=None)

    best = evenest(0, stages)
    return tuple(-count for count in best[1]) if best else ()
