"""The chart: lint, what it renders, what its schema refuses. Needs helm, no cluster."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from pds_cluster import build
from pds_cluster import settings as cluster_settings
from pds_operator import settings

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts/pdserving"
GOLDEN = Path(__file__).parent / "golden"


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    path = f"{build.folder(cluster_settings.load())}:{os.environ['PATH']}"
    program = shutil.which("helm", path=path)
    if program is None:
        pytest.fail("no helm: `python -m pds_cluster helm` builds one (`make unit` does)")
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=120)


def template(*values: str) -> list[dict]:
    given = [item for value in values for item in ("--set-json", value)]
    done = helm(
        "template", "pds", str(CHART), "-n", "pds-system", "--kube-version", "1.34.0", *given
    )
    assert done.returncode == 0, done.stderr
    return [obj for obj in yaml.safe_load_all(done.stdout) if obj]


def find(objects: list[dict], kind: str, name: str) -> dict:
    [found] = [o for o in objects if o["kind"] == kind and o["metadata"]["name"] == name]
    return found


def test_lint():
    done = helm("lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("chart-default", []),
        (
            "chart-namespaced",
            [
                'namespaces=["team-a","team-b"]',
                "operator.replicas=2",
                'image={"repository":"localhost/dev","tag":"latest","pullPolicy":"Never"}',
                'metrics.from=[{"namespaceSelector":{"matchLabels":{"a":"b"}}}]',
                "metrics.serviceMonitor.enabled=true",
            ],
        ),
    ],
)
def test_golden(name, values):
    objects = [o for o in template(*values) if o["kind"] != "CustomResourceDefinition"]
    text = yaml.safe_dump_all(objects, sort_keys=False)
    path = GOLDEN / f"{name}.yaml"
    if os.environ.get("PDS_UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


def test_the_operator_reads_the_settings_that_the_chart_renders(tmp_path):
    objects = template(
        'namespaces=["team"]',
        'podDefaults={"commandPrefix":"/opt","allowHostPath":true,"env":[{"name":"A"}]}',
        'metrics.from=[{"podSelector":{}}]',
        "networkPolicy.enabled=false",
    )
    text = find(objects, "ConfigMap", "pds-pdserving-settings")["data"]["settings.yaml"]
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    read = settings.load(path)
    assert read.namespaces == ["team"]
    assert read.namespace == "pds-system"
    assert read.pod_defaults.command_prefix == "/opt"
    assert read.pod_defaults.allow_host_path
    assert not read.network_policies
    assert read.metrics_from == [{"podSelector": {}}]
    assert read.image.reference == "ghcr.io/pdserving/pds-engine:0.1.0"


def test_secrets_can_neither_be_listed_nor_watched():
    """Those of others would be seen: the operator knows the names of its own."""
    rules = find(template(), "ClusterRole", "pds-pdserving")["rules"]
    for rule in rules:
        if "secrets" in rule["resources"]:
            assert rule["verbs"] == ["get", "create", "patch", "delete"]
        assert "*" not in rule["verbs"] + rule["resources"]


def test_only_the_routers_role_can_be_bound():
    rules = find(template(), "ClusterRole", "pds-pdserving")["rules"]
    [bind] = [rule for rule in rules if "bind" in rule["verbs"]]
    assert bind["resourceNames"] == ["pdserving-router"]
    assert find(template(), "ClusterRole", "pdserving-router")["rules"] == [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}
    ]


def test_namespaced_mode_has_no_rights_elsewhere():
    objects = template('namespaces=["team"]')
    assert not [o for o in objects if o["kind"] == "ClusterRoleBinding"]
    assert find(objects, "Role", "pds-pdserving")["metadata"]["namespace"] == "team"


def test_toggles():
    objects = template(
        "crds.install=false",
        "rbac.create=false",
        "rbac.aggregate=false",
        "rbac.routerClusterRole.create=false",
        "networkPolicy.enabled=false",
        "serviceAccount.create=false",
    )
    assert sorted(o["kind"] for o in objects) == ["ConfigMap", "Deployment"]


@pytest.mark.parametrize(
    "value",
    [
        "operator.replica=2",
        'image.pullPolicy="Sometimes"',
        'namespaces="team"',
        'podDefaults.commandPrefix="bin"',
    ],
)
def test_the_schema_refuses(value):
    done = helm("template", "pds", str(CHART), "--kube-version", "1.34.0", "--set-json", value)
    assert done.returncode != 0
    assert "values don't meet the specifications" in done.stderr
