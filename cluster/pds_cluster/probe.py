"""Asking a component over HTTP(S) whether it is ready, as the cluster's administrator."""

import ssl
import urllib.error
import urllib.request

from pds_cluster.settings import Settings


def _tls(settings: Settings) -> ssl.SSLContext:
    pki = settings.pki
    context = ssl.create_default_context(cafile=str(pki / "ca.crt"))
    context.load_cert_chain(str(pki / "admin.crt"), str(pki / "admin.key"))
    return context


def get(settings: Settings, url: str, timeout: float = 2) -> str | None:
    """The body of a 200 answer, None for anything else."""
    # No proxy from the environment: the node is on a link of this machine.
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    try:
        if url.startswith("https:"):
            handlers.append(urllib.request.HTTPSHandler(context=_tls(settings)))
        with urllib.request.build_opener(*handlers).open(url, timeout=timeout) as answer:
            body: bytes = answer.read()
            return body.decode()
    except (urllib.error.URLError, OSError):
        return None


def ok(settings: Settings, url: str) -> bool:
    return get(settings, url) is not None
