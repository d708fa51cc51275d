"""What an edit would do, as `kubectl pds plan -f` prints it."""

from pds_operator import revision
from pds_operator.kubectl import commands
from plugin import output, pod, stored
from typer.testing import CliRunner
from worlds import raw_spec


def test_plan_of_a_file_says_each_step_and_changes_nothing(kubectl):
    old, new = raw_spec(image="engine:1"), raw_spec(image="engine:2")
    now = revision.digest(old)
    kubectl.answers["apply --dry-run=server -f edit.yaml"] = {
        "kind": "PDServing",
        "metadata": {"name": "chat", "namespace": "team"},
        "spec": new,
    }
    kubectl.answers["get pods"] = {
        "items": [pod(f"chat-{name}-0-0", now) for name in ("p-0", "p-1", "d-0")]
    }
    kubectl.answers["get controllerrevisions"] = {
        "items": [stored(old, 1, served="2026-01-01T00:00:00Z")]
    }
    assert output("plan", "-f", "edit.yaml").splitlines() == [
        f"target   {revision.digest(new)}, new; {now} served last",
        "  1. create 1 new prefill, create 1 new decode",
        "  2. drain 1 old prefill",
        "  3. create 1 new prefill",
        "  4. drain 1 old prefill, drain 1 old decode",
        "nothing left to do",
    ]
    kubectl.answers["apply --dry-run=server -f edit.yaml"]["spec"] = {
        **new,
        "rollout": {"drainSeconds": 60, "partition": 1},
    }
    assert output("plan", "-f", "edit.yaml").splitlines()[-2:] == [
        "  2. drain 1 old prefill",
        "held at step 1 of 2",
    ]
    assert {words[0] for words in kubectl.asked} == {"apply", "get"}
    assert all("--dry-run=server" in words for words in kubectl.asked if words[0] == "apply")


def starting(name, revision):
    made = pod(name, revision)
    made["status"] = {"phase": "Pending", "conditions": []}
    return made


def test_plan_of_what_is_being_brought_out_says_what_is_under_way_and_then_comes(kubectl):
    old, new = raw_spec(image="engine:1"), raw_spec(image="engine:2")
    was, now = revision.digest(old), revision.digest(new)
    kubectl.answers["apply"] = {"kind": "PDServing", "metadata": {"name": "chat"}, "spec": new}
    left = pod("chat-p-0-0-0", was, {"pdserving.io/draining": "true"})
    kubectl.answers["get pods"] = {
        "items": [
            left,
            pod("chat-p-1-0-0", was),
            pod("chat-d-0-0-0", was),
            pod("chat-p-2-0-0", now),
            starting("chat-d-1-0-0", now),
        ]
    }
    kubectl.answers["get controllerrevisions"] = {
        "items": [stored(old, 1, served="2026-01-01T00:00:00Z"), stored(new, 2)]
    }
    assert output("plan", "-f", "edit.yaml").splitlines() == [
        f"target   {now}, stored; {was} served last",
        "     under way: 1 new prefill not serving yet, 1 prefill drain, "
        "1 new decode not serving yet",
        "  1. create 1 new prefill",
        "  2. drain 1 old prefill, drain 1 old decode",
        "nothing left to do",
    ]


def test_plan_of_a_role_that_is_scaled_by_others_counts_by_what_they_ask(kubectl):
    raw = raw_spec(image="engine:1", prefill={})
    now = revision.digest(raw)
    kubectl.answers["apply"] = {"kind": "PDServing", "metadata": {"name": "chat"}, "spec": raw}
    child = {"metadata": {"name": "chat-prefill"}, "spec": {"replicas": 3}}
    kubectl.answers["get pdservingroles"] = {"items": [child]}
    kubectl.answers["get pods"] = {"items": [pod(f"chat-{n}-0-0", now) for n in ("p-0", "d-0")]}
    kubectl.answers["get controllerrevisions"] = {"items": [stored(raw, 1)]}
    assert "  1. create 2 new prefill" in output("plan", "-f", "edit.yaml").splitlines()


def test_plan_names_the_job_that_compiles_first(kubectl):
    cache = {"volume": {"claim": {"size": "1Gi"}}}
    old = raw_spec(image="engine:1", compileCache=cache)
    new = {**old, "image": "engine:2"}
    kubectl.answers["apply"] = {"kind": "PDServing", "metadata": {"name": "chat"}, "spec": new}
    names, was = ("p-0", "p-1", "d-0"), revision.digest(old)
    kubectl.answers["get pods"] = {"items": [pod(f"chat-{name}-0-0", was) for name in names]}
    there = [stored(old, 1, served="2026-01-01T00:00:00Z")]
    kubectl.answers["get controllerrevisions"] = {"items": there}
    lines = output("plan", "-f", "edit.yaml").splitlines()
    assert lines[1] == "     a Job compiles, before any pod of it is made"
    kubectl.answers["get pods"]["items"].append(pod("chat-p-2-0-0", revision.digest(new)))
    assert "a Job compiles" not in output("plan", "-f", "edit.yaml")
    kubectl.answers["apply"]["spec"] = old
    assert "a Job compiles" not in output("plan", "-f", "edit.yaml")


def test_plan_of_what_no_operator_makes_says_so(kubectl):
    engine = {"name": "engine", "env": [{"name": "PDS_X", "value": "1"}]}
    raw = raw_spec(decode={"replicas": 1, "podTemplate": {"spec": {"containers": [engine]}}})
    kubectl.answers["apply"] = {"kind": "PDServing", "metadata": {"name": "chat"}, "spec": raw}
    kubectl.answers["get pods"] = {"items": []}
    kubectl.answers["get controllerrevisions"] = {"items": []}
    result = CliRunner().invoke(commands.app, ["plan", "-f", "edit.yaml"])
    assert result.exit_code == 1
    assert "InvalidSpec" in result.output
    assert "PDS_X" in result.output


def test_plan_says_that_routers_are_replaced(kubectl):
    old = raw_spec(image="engine:1")
    new = {**old, "router": {"image": "router:2"}}
    names = ("p-0", "p-1", "d-0")
    items = [pod(f"chat-{name}-0-0", revision.digest(old)) for name in names]
    kubectl.answers["apply"] = {"kind": "PDServing", "metadata": {"name": "chat"}, "spec": new}
    kubectl.answers["get pdservings --"] = {"items": [{"spec": old}]}
    kubectl.answers["get pods"] = {"items": items}
    kubectl.answers["get controllerrevisions"] = {"items": [stored(old, 1)]}
    assert output("plan", "-f", "edit.yaml").splitlines() == [
        f"target   {revision.digest(old)}",
        "     routers are replaced first",
        "nothing left to do",
    ]


def test_plan_of_a_scaled_spec_makes_no_revision(kubectl):
    old = raw_spec(image="engine:1")
    kubectl.answers["apply"] = {
        "kind": "PDServing",
        "metadata": {"name": "chat"},
        "spec": {**old, "prefill": {"replicas": 4}, "decode": {"replicas": 0}},
    }
    names = ("p-0", "p-1", "d-0")
    kubectl.answers["get pods"] = {
        "items": [pod(f"chat-{name}-0-0", revision.digest(old)) for name in names]
    }
    kubectl.answers["get controllerrevisions"] = {"items": [stored(old, 1)]}
    assert output("plan", "chat", "-f", "edit.yaml").splitlines() == [
        f"target   {revision.digest(old)}",
        "  1. create 2 new prefill, drain 1 new decode",
        "nothing left to do",
    ]
