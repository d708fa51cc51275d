"""The cluster's certificates: one authority, one client certificate for each component.

What a component may do follows from the name in its certificate, as in any Kubernetes: the groups
`system:nodes` and `system:masters` and the users `system:kube-…` are bound to roles by the API
server itself; `pds-apiserver` gets its role for kubelets from our addons.
"""

import json
import shutil
from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path

from pds_cluster.settings import Settings
from pds_cluster.shell import run, write

DAYS = 3650
APISERVER_USER = "pds-apiserver"


@dataclass(frozen=True)
class Cert:
    """`cn` is the user, `org` the group; `sans` are set for certificates that serve."""

    file: str
    cn: str
    org: str = ""
    sans: tuple[str, ...] = ()


def wanted(settings: Settings) -> list[Cert]:
    node = f"IP:{settings.node_ip}"
    api = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"]
    names = (*api, "kubernetes.default.svc.cluster.local", "localhost")
    api_ips = (node, f"IP:{settings.api_service_ip}", "IP:127.0.0.1")
    return [
        Cert("etcd", "etcd", sans=("DNS:localhost", "IP:127.0.0.1")),
        Cert("etcd-client", "etcd-client"),
        Cert("apiserver", "kube-apiserver", sans=(*(f"DNS:{name}" for name in names), *api_ips)),
        Cert("apiserver-kubelet", APISERVER_USER),
        Cert("kubelet", f"system:node:{settings.id}", "system:nodes", (f"DNS:{settings.id}", node)),
        Cert("controller-manager", "system:kube-controller-manager", sans=(node,)),
        Cert("scheduler", "system:kube-scheduler", sans=(node,)),
        Cert("kube-proxy", "system:kube-proxy"),
        Cert("admin", "pds-admin", "system:masters"),
    ]


def ensure(settings: Settings) -> None:
    """Makes all certificates, or keeps those that are there when they are for these settings."""
    pki = settings.pki
    stamp = pki / "made-for"
    content = repr(wanted(settings))
    if not (stamp.exists() and stamp.read_text() == content):
        shutil.rmtree(pki, ignore_errors=True)
        pki.mkdir(parents=True, mode=0o700)
        write(pki / "openssl.cnf", "[req]\ndistinguished_name = dn\n[dn]\n")  # adds nothing
        _authority(settings)
        for cert in wanted(settings):
            _issue(settings, cert)
        _service_account_key(settings)
        write(stamp, content)
    for user in ("kubelet", "controller-manager", "scheduler", "kube-proxy"):
        write(settings.etc / f"{user}.kubeconfig", kubeconfig(settings, user), 0o600)
    write(settings.kubeconfig, kubeconfig(settings, "admin", inline=True), 0o600)


def _request(settings: Settings, subject: str, name: str) -> tuple[str | Path, ...]:
    """The beginning of `openssl req` that makes a key and a certificate called `name`."""
    pki = settings.pki
    return (
        *("openssl", "req", "-x509", "-new", "-config", pki / "openssl.cnf", "-nodes"),
        *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-days", str(DAYS)),
        *("-subj", subject, "-keyout", pki / f"{name}.key", "-out", pki / f"{name}.crt"),
    )


def _authority(settings: Settings) -> None:
    run(
        *_request(settings, "/CN=pds-ca", "ca"),
        *("-addext", "basicConstraints=critical,CA:TRUE"),
        *("-addext", "keyUsage=critical,keyCertSign,cRLSign"),
        *("-addext", "subjectKeyIdentifier=hash"),
    )


def _issue(settings: Settings, cert: Cert) -> None:
    pki = settings.pki
    subject = f"/O={cert.org}/CN={cert.cn}" if cert.org else f"/CN={cert.cn}"
    usage = "serverAuth,clientAuth" if cert.sans else "clientAuth"
    extensions = ["basicConstraints=critical,CA:FALSE", f"extendedKeyUsage={usage}"]
    if cert.sans:
        extensions.append(f"subjectAltName={','.join(cert.sans)}")
    run(
        *_request(settings, subject, cert.file),
        *("-CA", pki / "ca.crt", "-CAkey", pki / "ca.key"),
        *(word for extension in extensions for word in ("-addext", extension)),
    )


def _service_account_key(settings: Settings) -> None:
    key = settings.pki / "service-account.key"
    curve = ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
    run("openssl", "genpkey", *curve, "-out", key)
    run("openssl", "pkey", "-in", key, "-pubout", "-out", settings.pki / "service-account.pub")


def kubeconfig(settings: Settings, user: str, inline: bool = False) -> str:
    """A kubeconfig (JSON, which is YAML) for `user`; `inline` makes it whole in itself."""

    def part(field: str, file: str) -> dict[str, str]:
        path = settings.pki / file
        if inline:
            return {f"{field}-data": b64encode(path.read_bytes()).decode()}
        return {field: str(path)}

    name = settings.id
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": name,
        "clusters": [
            {
                "name": name,
                "cluster": {
                    "server": settings.api_url,
                    **part("certificate-authority", "ca.crt"),
                },
            }
        ],
        "users": [
            {
                "name": f"{name}-{user}",
                "user": {
                    **part("client-certificate", f"{user}.crt"),
                    **part("client-key", f"{user}.key"),
                },
            }
        ],
        "contexts": [{"name": name, "context": {"cluster": name, "user": f"{name}-{user}"}}],
    }
    return json.dumps(config, indent=1) + "\n"
