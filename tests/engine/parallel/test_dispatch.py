"""Rows get to the ranks of their experts, and back to their places."""

import pytest
import torch
from grid import on_grid
from pds_engine.parallel.collectives import Collectives
from pds_engine.parallel.dispatch import to_experts, to_tokens

CASES = {
    "even": ((2, 2), [[1, 2, 0, 1], [0, 1, 3, 1]]),
    "all to the last": ((2, 1), [[0, 0, 4], [0, 0, 2]]),
    "one sends nothing": ((1, 1), [[0, 0], [2, 3]]),
    "nobody sends anything": ((1, 1), [[0, 0], [0, 0]]),
    "a rank without experts": ((1, 1, 0), [[1, 2], [0, 1], [3, 1]]),
    "a rank without either": ((2, 1, 0), [[1, 2, 1], [0, 1, 0], [0, 0, 0]]),
}


@pytest.mark.parametrize("name", CASES)
def test_rows_go_to_their_experts_and_come_back(name):
    held, counts = CASES[name]
    first = [sum(held[:rank]) for rank in range(len(held))]

    def sent(rank: int) -> torch.Tensor:
        """A row names who sends it, its expert, and which of that expert's it is."""
        rows = [(rank, e, i) for e, n in enumerate(counts[rank]) for i in range(n)]
        return torch.tensor(rows, dtype=torch.float32).view(-1, 3)

    def work(_: Collectives, ranks: Collectives) -> None:
        me = ranks.rank
        received = to_experts(sent(me), torch.tensor(counts[me]), held, ranks)
        expected = [
            row
            for source in range(len(held))
            for row in sent(source).tolist()
            if first[me] <= row[1] < first[me] + held[me]
        ]
        assert received.rows.tolist() == expected
        assert received.experts.tolist() == [row[1] - first[me] for row in expected]
        back = to_tokens(received.rows * 10, received, ranks)
        assert torch.equal(back, sent(me) * 10)

    on_grid(len(held), 1, work)
