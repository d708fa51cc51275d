"""Whose the objects are that we make. Pure."""

from dataclasses import dataclass
from typing import Any

from pds_operator import names

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Owner:
    """The PDServing that objects are made for."""

    name: str
    namespace: str
    uid: str

    def reference(self) -> Object:
        """Its controller ownerReference: garbage collection does what a finalizer would."""
        return {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "name": self.name,
            "uid": self.uid,
            "controller": True,
            "blockOwnerDeletion": True,
        }

    def metadata(self, name: str, role: str = "shared", **labels: str) -> Object:
        """Metadata of an owned object."""
        return {
            "name": name,
            "namespace": self.namespace,
            "labels": {**names.common_labels(self.name, role), **labels},
            "ownerReferences": [self.reference()],
        }
