"""The control keys of a group: CURVE pairs for ZMQ and the HMAC key for HTTP (processes.md)."""

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

import zmq

from pds_engine.errors import ConfigError

HINT = "mount the Secret <pdserving>-control at http.keys_dir, or leave keys_dir out"


@dataclass(frozen=True, slots=True)
class Keys:
    """z85 keys of 40 characters; the server admits only `client_public`."""

    server_secret: bytes
    server_public: bytes
    client_secret: bytes
    client_public: bytes
    hmac: bytes

    @classmethod
    def make(cls) -> "Keys":
        """Fresh random keys."""
        server_public, server_secret = zmq.curve_keypair()
        client_public, client_secret = zmq.curve_keypair()
        return cls(
            server_secret, server_public, client_secret, client_public, secrets.token_bytes(32)
        )

    @classmethod
    def read(cls, folder: Path) -> "Keys":
        """The keys in a mounted Secret.

        Raises:
            ConfigError: a file is missing or is not a key.
        """

        def curve(name: str) -> bytes:
            text = _read(folder / name).strip()
            if len(text) != 40:
                raise ConfigError(f"{folder / name} is not a z85 key of 40 characters")
            return text.encode()

        mac = read_secret(folder / "hmac.key", hint=HINT)
        return cls(
            curve("server.key"), curve("server.pub"), curve("client.key"), curve("client.pub"), mac
        )

    def write(self, folder: Path) -> None:
        """Lay the keys out as `read` wants them, readable by this user alone."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, value in {
            "server.key": self.server_secret.decode(),
            "server.pub": self.server_public.decode(),
            "client.key": self.client_secret.decode(),
            "client.pub": self.client_public.decode(),
            "hmac.key": self.hmac.hex(),
        }.items():
            with os.fdopen(os.open(folder / name, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
                file.write(value)


def read_secret(path: Path, *, hint: str) -> bytes:
    """A secret that a mounted file holds in hexadecimal.

    Raises:
        ConfigError: it is missing or is not hexadecimal.
    """
    try:
        return bytes.fromhex(_read(path, hint).strip())
    except ValueError as error:
        raise ConfigError(f"{path} is not hexadecimal") from error


def _read(path: Path, hint: str = HINT) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise ConfigError(f"cannot read the key {path}: {error.strerror}", hint=hint) from error
