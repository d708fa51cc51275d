"""What the cluster's settings accept, and what each instance has for itself."""

from pathlib import Path

import pytest
from pds_cluster import own
from pds_cluster.errors import ClusterError
from pds_cluster.settings import load


def test_defaults():
    settings = load({"HOME": "/home/me"})
    assert settings.run == Path("/var/lib/pdserving/local")
    assert settings.cache == Path("/home/me/.cache/pdserving")
    assert (settings.id, settings.node_ip, settings.dns_ip) == (
        "pds-local",
        "10.243.0.2",
        "10.96.0.10",
    )
    assert settings.context is None


def test_two_instances_share_nothing():
    one = load({})
    two = load({"PDS_CLUSTER_NAME": "two", "PDS_CLUSTER_BLOCK": "3"})
    for name in ("id", "run", "lock", "netns", "node_ip", "host_ip", "pod_cidr", "service_cidr"):
        assert getattr(one, name) != getattr(two, name), name


def test_the_cache_follows_xdg():
    assert load({"XDG_CACHE_HOME": "/c"}).cache == Path("/c/pdserving")


@pytest.mark.parametrize(
    ("env", "named"),
    [
        ({"PDS_CLUSTER_NAME": "Local"}, "PDS_CLUSTER_NAME='Local'"),
        ({"PDS_CLUSTER_NAME": "averylongname"}, "PDS_CLUSTER_NAME"),  # a link's name has 15 letters
        ({"PDS_CLUSTER_NAME": "../up"}, "PDS_CLUSTER_NAME"),
        ({"PDS_CLUSTER_BLOCK": "16"}, "PDS_CLUSTER_BLOCK='16'"),
        ({"PDS_CLUSTER_BLOCK": "-1"}, "PDS_CLUSTER_BLOCK"),
        ({"PDS_CLUSTER_DIR": "relative/path"}, "PDS_CLUSTER_DIR"),
        ({"PDS_CLUSTER_DIR": "/var"}, "PDS_CLUSTER_DIR"),  # `down` would delete it
    ],
)
def test_what_is_wrong_is_named(env, named):
    with pytest.raises(ClusterError, match=named.replace("'", ".")):
        load(env)


@pytest.fixture
def kubectl(tmp_path, monkeypatch):
    """A kubectl of the user's own: it notes its words, and answers as `answers(code)` says."""
    log = tmp_path / "log"

    def answers(code: int) -> Path:
        program = tmp_path / "kubectl"
        program.write_text(f'#!/bin/sh\necho "$@" >> {log}\necho no such host >&2\nexit {code}\n')
        program.chmod(0o755)
        return log

    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return answers


@pytest.mark.parametrize("command", ["up", "down", "status", "kubeconfig", "wipe-volumes"])
def test_a_cluster_of_ones_own_is_only_looked_at(kubectl, command, capsys):
    log = kubectl(0)
    own.answer("mine", command)
    assert log.read_text() == "--context mine get --raw /readyz\n"
    said = capsys.readouterr()
    if command in ("up", "status"):
        assert "context     mine" in said.out


def test_a_cluster_of_ones_own_that_does_not_answer(kubectl):
    kubectl(1)
    with pytest.raises(ClusterError, match="PDS_CONTEXT=mine does not answer: no such host"):
        own.answer("mine", "up")


def test_local_values_are_no_use_elsewhere():
    with pytest.raises(ClusterError, match="mount this machine's folders"):
        own.answer("mine", "local-values")
