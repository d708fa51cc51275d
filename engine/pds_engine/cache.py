"""The compile cache that a configuration names. Workers open it, too: it imports no compiler."""

from pds_kernels.cache import Cache

from pds_engine.config import EngineConfig
from pds_engine.errors import ConfigError
from pds_engine.keys import Keys, read_secret
from pds_engine.warming.account import private_folder


def open_cache(config: EngineConfig) -> Cache:
    """The cache at config.cache.path, sealed by its own key, else by the control key, if any.

    Raises:
        ConfigError: there is no path, or the key cannot be read.
        OSError: this pod has no place of its own.
    """
    if config.cache.path is None:
        raise ConfigError("cache.path is not set", hint="give the mount point of the compile cache")
    return Cache(config.cache.path, private_folder(config), _seal(config), producer=config.pod.name)


def _seal(config: EngineConfig) -> bytes:
    if config.cache.key_dir is not None:
        hint = "mount the Secret of the cache's key at cache.key_dir, or leave key_dir out"
        return read_secret(config.cache.key_dir / "cache.key", hint=hint)
    return Keys.read(config.http.keys_dir).hmac if config.http.keys_dir else b""
