"""Which groups a list of Pods makes."""

import pytest
from pds_engine.router.backends import Found
from pds_engine.router.pods import Condition, Meta, Pod, Status, ended_groups, found


def pod(name, *, rank="0", ready="True", phase="Running", ip="10.0.0.1", deleting=None, **labels):
    role, group, attempt, index = name.split("-")[1:]
    all_labels = {
        "pdserving.io/role": {"p": "prefill", "d": "decode", "u": "unified"}[role],
        "pdserving.io/group": group,
        "pdserving.io/attempt": attempt,
        "pdserving.io/rank-pod": index,
        **{f"pdserving.io/{key}": value for key, value in labels.items()},
    }
    return Pod(
        Meta(name, f"uid-{name}", all_labels, "1", deleting),
        Status(phase, ip, [Condition("ContainersReady", ready)]),
    )


def one(**changes):
    given = {"key": "uid-chat-p-0-1-0", "pod": "chat-p-0-1-0", "group": "chat-p-0-1"}
    return Found(**{**given, "host": "10.0.0.1", "port": 8000, **changes})


@pytest.mark.parametrize(
    ("pods", "expected"),
    [
        ([pod("chat-p-0-1-0")], [one()]),
        # only leaders are talked to
        ([pod("chat-p-0-1-0"), pod("chat-p-0-1-1", ip="10.0.0.2")], [one()]),
        ([pod("chat-p-0-1-1")], []),
        ([pod("chat-p-0-1-0", ip="")], []),
        ([pod("chat-p-0-1-0", ready="False")], [one(ready=False)]),
        # one pod of the group decides for all of it
        ([pod("chat-p-0-1-0"), pod("chat-p-0-1-1", deleting="2026")], [one(deleting=True)]),
        ([pod("chat-p-0-1-0"), pod("chat-p-0-1-1", draining="true")], [one(draining=True)]),
        ([pod("chat-p-0-1-0"), pod("chat-p-0-1-1", phase="Failed")], [one(ready=False)]),
        # another attempt of the same group is another group
        ([pod("chat-p-0-1-0"), pod("chat-p-0-2-1", deleting="2026")], [one()]),
    ],
)
def test_found(pods, expected):
    assert found(pods) == expected


def test_a_group_has_ended_when_no_pod_of_it_can_run():
    pods = [
        pod("chat-p-0-0-0", phase="Failed"),
        pod("chat-p-0-0-1", phase="Succeeded"),
        pod("chat-p-1-0-0", phase="Failed"),
        pod("chat-p-1-0-1"),
    ]
    assert ended_groups(pods) == {("prefill", "0", "0")}
