"""The control keys of a PDServing: what the Secret `<pds>-control` holds.

CURVE pairs (z85, 40 characters) for the engine's sockets, and a key (hexadecimal) for the
signatures of internal HTTP calls.
"""

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
        "hmac.key": secrets.token_hex(32),
    }
