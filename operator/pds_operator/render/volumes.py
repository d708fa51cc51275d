"""The volumes of an engine pod and where they are mounted. Pure."""

from typing import Any

from pds_operator import names
from pds_operator.errors import SpecError
from pds_operator.render import config
from pds_operator.render.owner import Owner
from pds_operator.schema import PDServingSpec
from pds_operator.settings import Settings

Object = dict[str, Any]

CONFIG_FILE = "/etc/pds/engine.json"
CACHE_KEY_MOUNT = "/etc/pds/cache-key"


def pod_volumes(
    spec: PDServingSpec, role: str, owner: Owner, digest: str, settings: Settings, key: str
) -> tuple[list[Object], list[Object]]:
    """(volumes, mounts) of the engine's container and its warm-up, the site's own included.

    Raises:
        SpecError: the cache volume is a path of the node, which the settings do not allow.
    """
    volumes: list[Object] = [
        {"name": "config", "configMap": {"name": names.revision(owner.name, digest)}},
        _secret("keys", names.control_secret(owner.name, key)),
        {"name": "tmp", "emptyDir": {}},
        # The runtime's own /dev/shm has 64 MB, which NCCL dies of.
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
    ]
    mounts: list[Object] = [
        {
            "name": "config",
            "mountPath": CONFIG_FILE,
            "subPath": f"{role}.json",
            "readOnly": True,
        },
        {"name": "keys", "mountPath": config.KEYS_MOUNT, "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "shm", "mountPath": "/dev/shm"},
    ]
    for name, source, mount in (
        ("model", _model_volume(spec), {"mountPath": config.MODEL_MOUNT, "readOnly": True}),
        ("cache", _cache_volume(spec, owner, settings), {"mountPath": config.CACHE_MOUNT}),
    ):
        if source is not None:
            volumes.append({"name": name, **source})
            mounts.append({"name": name, **mount})
    if spec.compile_cache is not None:
        on = claim(spec, owner.name)
        secret = names.seal(on) if on else names.cache_key(owner.name)
        volumes.append(_secret("cache-key", secret))
        mounts.append({"name": "cache-key", "mountPath": CACHE_KEY_MOUNT, "readOnly": True})
    defaults = settings.pod_defaults
    return volumes + defaults.volumes, mounts + defaults.volume_mounts


def _secret(name: str, secret: str) -> Object:
    return {"name": name, "secret": {"secretName": secret, "defaultMode": 0o440}}


def _model_volume(spec: PDServingSpec) -> Object | None:
    source = spec.model.source
    if source.pvc:
        return {"persistentVolumeClaim": {"claimName": source.pvc.claim_name, "readOnly": True}}
    return {"image": {"reference": source.image.reference}} if source.image else None


def _cache_volume(spec: PDServingSpec, owner: Owner, settings: Settings) -> Object | None:
    if spec.compile_cache is None:
        return None
    volume = spec.compile_cache.volume
    if volume is None or volume.ephemeral is not None:
        return {"emptyDir": {}}
    if volume.host_path is not None:
        if not settings.pod_defaults.allow_host_path:
            raise SpecError(
                "spec.compileCache.volume.hostPath: this operator does not allow paths of the "
                "node (chart value podDefaults.allowHostPath); use claim or existingClaim"
            )
        return {"hostPath": {"path": volume.host_path, "type": "DirectoryOrCreate"}}
    return {"persistentVolumeClaim": {"claimName": claim(spec, owner.name)}}


def claim(spec: PDServingSpec, pds: str) -> str:
    """The claim of the compile cache of the PDServing `pds`; "" where it is on none."""
    volume = spec.compile_cache.volume if spec.compile_cache else None
    if volume is None or volume.ephemeral is not None or volume.host_path is not None:
        return ""
    return volume.existing_claim or names.cache_claim(pds)


def sealed(data: Object) -> tuple[set[str], dict[str, str]]:
    """What the pods of the revision `data` read a cache's key from.

    (the Secrets that they mount, those of them that are a claim's: their names and that claim).
    """
    mounted: set[str] = set()
    shared: dict[str, str] = {}
    for role in (data.get("roles") or {}).values():
        volumes = {volume["name"]: volume for volume in role["template"]["spec"]["volumes"]}
        secret = str((volumes.get("cache-key", {}).get("secret") or {}).get("secretName") or "")
        source = volumes.get("cache", {}).get("persistentVolumeClaim") or {}
        on = str(source.get("claimName") or "")
        mounted |= {secret} if secret else set()
        # A podTemplate may mount others in their places: those are not ours to make.
        shared |= {secret: on} if on and secret == names.seal(on) else {}
    return mounted, shared
