import pytest

from app.parallel import tree
from app.parallel.topology import Topology, slice_of

pytestmark = pytest.mark.fast


def expression(total: int, processes: int) -> str:
    """The sum over all micro-batches, written out with its parentheses."""

    def add(left: str, right: str) -> str:
        return f"({left}+{right})"

    nodes, values = [], []
    for rank in range(processes):
        merged: list[tuple[tree.Node, str]] = []
        for place in slice_of(total, processes, rank):
            tree.merge(merged, (place, 1), str(place), add)
        assert [n for n, _ in merged] == tree.subtrees(slice_of(total, processes, rank))
        nodes += [n for n, _ in merged]
        values += [v for _, v in merged]
    return tree.total(nodes, values, add)


def test_the_tree_of_six():
    assert expression(6, 1) == "(((0+1)+(2+3))+(4+5))"


@pytest.mark.parametrize("total", [1, 2, 3, 6, 7, 8, 16, 21, 128])
def test_any_number_of_processes_adds_the_same_pairs(total):
    assert {expression(total, p) for p in range(1, total + 1)} == {expression(total, 1)}


def test_shares_are_contiguous_and_even():
    assert [list(slice_of(8, 3, r)) for r in range(3)] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    for total in range(1, 30):
        for parts in range(1, total + 1):
            shares = [slice_of(total, parts, i) for i in range(parts)]
            assert [x for share in shares for x in share] == list(range(total))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_ranks_of_a_machine_share_its_cores():
    assert Topology(local_size=2).threads(8) == 4
    assert Topology(local_size=16).threads(2) == 1
