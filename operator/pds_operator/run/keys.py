"""Keys of a PDServing: what the Secrets `<pds>-control…` and `…cache-key…` hold.

CURVE pairs (z85, 40 characters) for the engine's sockets, and a key (hexadecimal) for the
signatures of internal HTTP calls.
"""

import hashlib
import secrets

import zmq


def control_keys() -> dict[str, str]:
    """Fresh random keys, by file name."""
    server_public, server_secret = zmq.curve_keypair()
    client_public, client_secret = zmq.curve_keypair()
    return {
        "server.key": server_secret.decode(),
        "server.pub": server_public.decode(),
        "client.key": client_secret.decode(),
        "client.pub": client_public.decode(),
        "hmac.key": random_key(),
    }


def random_key() -> str:
    """256 bits, in hexadecimal."""
    return secrets.token_hex(32)


def key_id(key: bytes) -> str:
    """Ten characters by which a control key is known in the open (`pds_engine.signing.key_id`)."""
    return hashlib.sha256(b"pdserving control key\0" + key).hexdigest()[:10]
