"""S2: which ranks run an idle batch, and how batches are padded. Two questions, two functions.

(In sglang #25025 both stood in one `if`: where no idle batch was needed, the padding went too.)
"""

from collections.abc import Sequence


def needs_idle_batch(dp: int, gathered: Sequence[int] | None) -> bool:
    """Whether a rank without tokens takes part in the pass all the same.

    Args:
        gathered: tokens of all ranks in this pass. None: nothing is gathered (`dp.gather: none`),
            so that a rank cannot know that all others are idle.
    """
    if gathered is None:
        return dp > 1
    return max(gathered, default=0) > 0


def needs_padding(batch: bool) -> bool:
    """Whether the step has padded tokens: whenever there is a batch, idle ones included, at dp 1 as
    well. The ranks of one attention group share its tokens out evenly (models/decoder.py)."""
    return batch


def padded(tokens: int, tp: int) -> int:
    """`tokens`, up to the next multiple of attention's tp."""
    return tokens + -tokens % tp


def shapes(tokens: Sequence[int], tp: int, *, extends: bool) -> tuple[int, ...]:
    """Padded tokens of every rank in a pass, from the tokens of each.

    All alike (MAX_LEN) makes the MLP's gather one even collective; as they are (SUM_LEN) computes
    no more than needed. Even pays while it at most doubles the tokens. A pass that extends is never
    even: an idle rank would get a prompt's length of padding, and with it the extend path (sglang
    #25404).
    """
    own = tuple(padded(count, tp) for count in tokens)
    even = max(own) * len(own)
    return (max(own),) * len(own) if not extends and even < 2 * sum(own) else own
