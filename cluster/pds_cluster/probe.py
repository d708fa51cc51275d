"""Asking a component over HTTP(S) whether it is ready, as the cluster's administrator."""

import ssl
import urllib.error
import urllib.request
from functools import lru_cache

from pds_cluster.settings import Settings


@lru_cache
def _tls(ca: str, cert: str, key: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca)
    context.load_cert_chain(cert, key)
    return context


def get(settings: Settings, url: str, timeout: float = 2) -> str | None:
    """The body of a 200 answer, None for anything else."""
    pki = settings.pki
    # No proxy from the environment: the node is on a link of this machine.
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    try:
        if url.startswith("https:"):
            files = (str(pki / name) for name in ("ca.crt", "admin.crt", "admin.key"))
            handlers.append(urllib.request.HTTPSHandler(context=_tls(*files)))
        with urllib.request.build_opener(*handlers).open(url, timeout=timeout) as answer:
            body: bytes = answer.read()
            return body.decode()
    except (urllib.error.URLError, OSError):
        return None


def ok(settings: Settings, url: str) -> bool:
    return get(settings, url) is not None
