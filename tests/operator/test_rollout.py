"""Rollouts, round by round."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pds_operator.decide.rollout import Move, Role, RolloutLimits, step

Fleet = dict[str, Role]


def rounds(fleet: Fleet, limits: RolloutLimits, most: int = 200) -> list[str]:
    """Play a rollout in which all that is created turns ready, then all that leaves is gone.

    Each entry is one round: what every role creates (+) and retires (-).
    """
    lines: list[str] = []
    for _ in range(most):
        moves = step(fleet, limits).moves
        lines.append(", ".join(filter(None, (_line(name, moves[name]) for name in fleet))))
        if not lines[-1]:
            return lines[:-1]
        for name, move in moves.items():
            fleet = {**fleet, name: _settled(fleet[name], move)}
    raise AssertionError(f"no end: {lines[:10]}")


def _settled(role: Role, move: Move) -> Role:
    unready = role.old - role.old_ready
    old = role.old - move.retire_old + move.create_old
    new = role.new + move.create - move.retire_new
    return replace(
        role,
        old=old,
        old_ready=old - max(0, unready - move.retire_old),
        new=new,
        new_ready=new,
    )


def _line(name: str, move: Move) -> str:
    parts = [f"+{move.create}"] if move.create else []
    parts += [f"-{move.retire_old}"] if move.retire_old else []
    parts += [f"-{move.retire_new} new"] if move.retire_new else []
    parts += [f"+{move.create_old} old"] if move.create_old else []
    return f"{name} {' '.join(parts)}" if parts else ""


def serving(want: int, old: int | None = None) -> Role:
    old = want if old is None else old
    return Role(want=want, old=old, old_ready=old)


def test_first_start_creates_everything():
    assert rounds({"prefill": Role(want=2), "decode": Role(want=1)}, RolloutLimits()) == [
        "prefill +2, decode +1"
    ]


def test_two_prefill_one_decode_surge_one():
    assert rounds({"prefill": serving(2), "decode": serving(1)}, RolloutLimits()) == [
        "prefill +1, decode +1",  # the first step holds a pair
        "prefill -1",  # the old decode stays for the old prefill
        "prefill +1",
        "prefill -1, decode -1",
    ]


def test_surge_nothing_unavailable_one():
    assert rounds({"unified": serving(2)}, RolloutLimits(surge=0, unavailable=1)) == [
        "unified -1",
        "unified +1",
        "unified -1",
        "unified +1",
    ]


def test_three_prefill_four_decode_do_not_lock_each_other():
    assert rounds({"prefill": serving(3), "decode": serving(4)}, RolloutLimits()) == [
        "prefill +1, decode +1",
        "prefill -1, decode -1",
        "prefill +1, decode +1",
        "prefill -1, decode -1",
        "prefill +1, decode +1",
        "decode -1",  # the last old prefill stays for the last old decode
        "decode +1",
        "prefill -1, decode -1",
    ]


def test_scale_down_while_the_template_changes():
    assert rounds({"unified": serving(1, old=3)}, RolloutLimits()) == [
        "unified -2",
        "unified +1",
        "unified -1",
    ]


def test_a_spec_that_changes_in_mid_rollout_makes_room_before_it_surges():
    """Two of the first revision and one of the second, when the third comes."""
    assert rounds({"unified": serving(2, old=3)}, RolloutLimits()) == [
        "unified -1",
        "unified +1",
        "unified -1",
        "unified +1",
        "unified -1",
    ]


def test_scale_up_while_the_template_changes():
    assert rounds({"unified": serving(3, old=1)}, RolloutLimits()) == [
        "unified +1",
        "unified +1",
        "unified +1",
        "unified -1",
    ]


def test_a_role_that_the_new_revision_lacks_serves_to_the_end():
    fleet = {
        "prefill": serving(0, old=2),
        "decode": serving(0, old=1),
        "unified": Role(want=2),
    }
    assert rounds(fleet, RolloutLimits()) == ["unified +2", "prefill -2, decode -1"]


def test_a_new_prefill_without_its_decode_replaces_nothing():
    fleet = {
        "prefill": Role(want=1, old=1, old_ready=1, new=1, new_ready=1),
        "decode": Role(want=1, old=1, old_ready=1, new=1, new_ready=0),
    }
    assert step(fleet, RolloutLimits()).moves == {"prefill": Move(), "decode": Move()}


def test_draining_groups_count_against_the_surge():
    fleet = {"unified": Role(want=2, old=1, old_ready=1, new=1, new_ready=1, leaving=1)}
    assert step(fleet, RolloutLimits()).moves["unified"] == Move()


def test_scale_down_of_the_new_revision_retires_it():
    assert step({"prefill": Role(want=1, new=3, new_ready=3)}, RolloutLimits()).moves == {
        "prefill": Move(retire_new=2)
    }


@pytest.mark.parametrize(
    ("limits", "want", "expected"),
    [
        (RolloutLimits(), 4, (1, 0)),
        (RolloutLimits(surge="25%", unavailable="25%"), 4, (1, 1)),
        (RolloutLimits(surge="25%", unavailable="25%"), 3, (1, 0)),  # surge up, unavailable down
        (RolloutLimits(surge="0%", unavailable="10%"), 4, (0, 1)),  # never both nothing
        (RolloutLimits(surge=0, unavailable=2), 1, (0, 2)),
    ],
)
def test_limits(limits, want, expected):
    assert limits.of(want) == expected


def test_five_prefill_three_decode_go_together():
    assert rounds({"prefill": serving(5), "decode": serving(3)}, RolloutLimits()) == [
        "prefill +1, decode +1",
        "prefill -1, decode -1",  # a decode more than its share leaves: step 2 needs its room
        "prefill +1, decode +1",
        "prefill -1",
        "prefill +1",
        "prefill -1, decode -1",
        "prefill +1, decode +1",
        "prefill -1",
        "prefill +1",
        "prefill -1, decode -1",
    ]


def test_percent_of_each_role():
    """A surge of 4 and of 1; a step makes what it needs, so that the roles stay together."""
    fleet = {"prefill": serving(8), "decode": serving(2)}
    assert rounds(fleet, RolloutLimits("50%", "25%")) == [
        "prefill +1, decode +1",
        "prefill +1 -1",
        "prefill +1 -1",
        "prefill +1 -1",
        "prefill +1 -1, decode -1",
        "decode +1",
        "prefill +1 -1",
        "prefill +1 -1",
        "prefill +1 -1",
        "prefill -1, decode -1",
    ]


def test_a_role_of_nothing_is_no_obstacle():
    fleet = {"prefill": serving(2), "decode": serving(0)}
    assert rounds(fleet, RolloutLimits()) == [
        "prefill +1",
        "prefill -1",
        "prefill +1",
        "prefill -1",
    ]


def test_a_partition_holds_the_last_steps_back():
    fleet = {"prefill": serving(4), "decode": serving(2)}
    assert rounds(fleet, RolloutLimits(partition=2)) == [
        "prefill +1, decode +1",
        "prefill -1",
        "prefill +1",
        "prefill -1, decode -1",
    ]
    assert rounds(fleet, RolloutLimits(partition="100%")) == []
    assert rounds(fleet, RolloutLimits(partition="75%")) == [
        "prefill +1, decode +1",
        "prefill -1",  # three old prefills keep two old decodes, with the surge's room
    ]


def test_what_a_partition_holds_is_scaled_with_the_revision_that_served():
    held = {"unified": Role(want=6, old=2, old_ready=2, new=2, new_ready=2)}
    assert rounds(held, RolloutLimits(partition=4)) == ["unified +2 old"]
    fewer = {"unified": Role(want=2, old=3, old_ready=3, new=1, new_ready=1)}
    assert rounds(fewer, RolloutLimits(partition="75%")) == ["unified -1", "unified -1"]


def test_a_partition_that_grows_takes_nothing_back():
    fleet = {"unified": Role(want=4, old=1, old_ready=1, new=3, new_ready=3)}
    assert rounds(fleet, RolloutLimits(partition=3)) == []


def test_a_paused_rollout_ends_the_step_it_has_reached_and_begins_none():
    assert rounds({"unified": serving(3)}, RolloutLimits(paused=True)) == []
    begun = {"unified": Role(want=3, old=3, old_ready=3, new=1, new_ready=0)}
    assert step(begun, RolloutLimits(paused=True)).moves == {"unified": Move()}
    reached = {"unified": Role(want=3, old=3, old_ready=3, new=1, new_ready=1)}
    assert rounds(reached, RolloutLimits(paused=True)) == ["unified -1"]


def test_a_paused_rollout_is_scaled_all_the_same():
    held = {"unified": Role(want=5, old=2, old_ready=2, new=1, new_ready=1)}
    assert rounds(held, RolloutLimits(paused=True)) == ["unified +2 old"]
    none = {"unified": Role(want=2, old=3, old_ready=3)}
    assert rounds(none, RolloutLimits(paused=True)) == ["unified -1"]


amounts = st.integers(min_value=0, max_value=7)
all_limits = st.sampled_from(
    [
        RolloutLimits(1, 0),
        RolloutLimits(0, 1),
        RolloutLimits(2, 1),
        RolloutLimits("25%", "25%"),
        RolloutLimits("100%", 0),
    ]
)


pairs = st.tuples(amounts, amounts)


@given(pairs, pairs, pairs, all_limits)
def test_every_rollout_ends_at_what_is_wanted_and_never_below_its_floor(old, new, want, limits):
    fleet = {
        name: replace(serving(want[i], old=old[i]), new=new[i], new_ready=new[i])
        for i, name in enumerate(("prefill", "decode"))
    }
    for _ in range(100):
        moves = step(fleet, limits).moves
        if all(move == Move() for move in moves.values()):
            break
        for name, move in moves.items():
            before, role = fleet[name], _settled(fleet[name], move)
            surge, unavailable = limits.of(role.want)
            whole = before.old + before.new + move.create
            assert not move.create or whole <= before.want + surge
            least = min(before.old + before.new, before.want) - unavailable
            assert before.old_ready + before.new_ready - move.retire_old >= min(
                least, before.old_ready + before.new_ready
            )
            fleet = {**fleet, name: role}
    assert {name: (role.old, role.new) for name, role in fleet.items()} == {
        "prefill": (0, want[0]),
        "decode": (0, want[1]),
    }


@given(
    st.tuples(amounts, amounts),
    st.tuples(amounts, amounts),
    all_limits,
    st.sampled_from([1, 2, 5, "1%", "50%", "100%"]),
)
def test_a_held_rollout_ends_at_what_is_wanted_in_all(old, want, limits, partition):
    fleet = {name: serving(want[i], old=old[i]) for i, name in enumerate(("prefill", "decode"))}
    limits = replace(limits, partition=partition)
    for _ in range(100):
        moves = step(fleet, limits).moves
        if all(move == Move() for move in moves.values()):
            break
        for name, move in moves.items():
            before, role = fleet[name], _settled(fleet[name], move)
            surge, unavailable = limits.of(role.want)
            made = move.create + move.create_old
            assert not made or before.old + before.new + made <= before.want + surge
            ready = before.old_ready + before.new_ready
            least = min(before.old + before.new, before.want) - unavailable
            assert ready - move.retire_old >= min(least, ready)
            fleet = {**fleet, name: role}
    now = step(fleet, limits)
    assert now.reached >= now.last
    for role in fleet.values():
        surge, _ = limits.of(role.want)
        assert role.want <= role.old + role.new <= max(role.want, role.old) + surge


def test_what_was_lost_of_the_serving_revision_is_made_before_anything_new():
    """A node took a group along while there was no operator, and the spec was changed meanwhile."""
    lost = {"prefill": Role(2, old=1, old_ready=1, before=2), "decode": Role(1, 1, 1, before=1)}
    move = step(lost, RolloutLimits()).moves["prefill"]
    assert (move.create_old, move.create) == (1, 1)
    [tight] = step(
        {"unified": Role(2, old=1, old_ready=1, before=2)}, RolloutLimits(0, 1)
    ).moves.values()
    assert (tight.create_old, tight.create) == (0, 1)  # one may be missing


def test_what_was_never_there_is_not_lost():
    wider = {"unified": Role(4, old=2, old_ready=2, before=2)}
    assert step(wider, RolloutLimits()).moves["unified"].create_old == 0
