"""Where the router's settings come from, and how a wrong one is refused."""

import subprocess
import sys

from pds_engine.router.config import load


def test_a_wrong_configuration_ends_with_78_and_names_the_key(tmp_path):
    config = tmp_path / "router.yaml"
    config.write_text("polcy: roundRobin\n")
    done = subprocess.run(
        [sys.executable, "-m", "pds_engine.router", "serve", "--config", str(config)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 78
    assert "unknown key polcy" in done.stderr
    assert "did you mean policy?" in done.stderr


def test_where_settings_come_from(tmp_path):
    config = tmp_path / "router.yaml"
    config.write_text("namespace: file\nkubernetes: {kubeconfig: file}\npolicy: powerOfTwo\n")
    environ = {"PDS_NAMESPACE": "pod", "KUBECONFIG": "/home/config", "PDS_LOG_LEVEL": ""}
    found = load(config, flags={"policy": "roundRobin", "port": None}, environ=environ)
    assert (found.namespace, str(found.kubernetes.kubeconfig), found.policy, found.port) == (
        "pod", "file", "roundRobin", 8000,
    )  # fmt: skip
