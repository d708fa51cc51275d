"""Which ranks are gone, where gloo names the pod's address alone. Pure."""

import re
from collections.abc import Sequence

from pds_engine.parallel.layout import Numbering

_ADDRESS = re.compile(r"\[([0-9a-fA-F.:]+)\]:\d+")
"""As gloo writes a peer's: "Read error [10.0.0.1]:5825: Connection reset by peer"."""


def named(words: str, addresses: Sequence[str], rank: int, numbering: Numbering) -> str:
    """`words`, an error of this `rank`, behind the names of the ranks that it speaks of.

    Args:
        addresses: of the ranks' pods, by rank; none of a single rank. Of this pod's own, `launch`
            says which has ended.
    """
    others = {*_ADDRESS.findall(words)} - {*addresses[rank : rank + 1]}
    gone = [other for other, address in enumerate(addresses) if address in others]
    if not gone:
        return words
    names = " or ".join(map(numbering.name, gone))
    return f"{names} is gone: {words}"
