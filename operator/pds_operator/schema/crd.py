"""The CustomResourceDefinitions, made of this room's models (`make gen` writes them to crds/).

Structural, without a single default (schema/__init__.py says why), and bounded everywhere: CEL's
cost is estimated from the bounds, and an unbounded list alone exceeds the budget a hundredfold.
"""

from typing import Any

import yaml

from pds_operator import names
from pds_operator.schema import PDServingSpec

Schema = dict[str, Any]
DROPPED = {"title", "default", "additionalProperties"}
ROLE_STATUS = ("desired", "created", "ready", "updated", "warm", "draining")


def definition() -> dict[str, Any]:
    """The definition of PDServings, as plain data."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{names.PLURAL}.{names.GROUP}"},
        "spec": {
            "group": names.GROUP,
            "names": {
                "kind": names.KIND,
                "listKind": f"{names.KIND}List",
                "plural": names.PLURAL,
                "singular": "pdserving",
                "shortNames": ["pds"],
                "categories": ["all"],
            },
            "scope": "Namespaced",
            "versions": [
                {
                    "name": names.VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": _columns(),
                    "schema": {"openAPIV3Schema": _root()},
                }
            ],
        },
    }


def role_definition() -> dict[str, Any]:
    """The definition of PDServingRoles, which only make a role scalable (see `decide/scaling.py`).

    The one default is for whoever makes one by hand: /scale reads a missing count as 0.
    """
    replicas = {"type": "integer", "format": "int32", "minimum": 0}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{names.ROLE_PLURAL}.{names.GROUP}"},
        "spec": {
            "group": names.GROUP,
            "names": {
                "kind": names.ROLE_KIND,
                "listKind": f"{names.ROLE_KIND}List",
                "plural": names.ROLE_PLURAL,
                "singular": "pdservingrole",
                "shortNames": ["pdsr"],
            },
            "scope": "Namespaced",
            "versions": [
                {
                    "name": names.VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {
                        "status": {},
                        "scale": {
                            "specReplicasPath": ".spec.replicas",
                            "statusReplicasPath": ".status.replicas",
                            "labelSelectorPath": ".status.selector",
                        },
                    },
                    "additionalPrinterColumns": [
                        _column("Desired", ".spec.replicas", "integer"),
                        _column("Current", ".status.replicas", "integer"),
                        _column("Ready", ".status.readyReplicas", "integer"),
                        _column("Age", ".metadata.creationTimestamp", "date"),
                    ],
                    "schema": {
                        "openAPIV3Schema": {
                            "type": "object",
                            "description": "How many groups a role of a PDServing has, where the "
                            "PDServing leaves that out. Made by the operator.",
                            "required": ["spec"],
                            "properties": {
                                "apiVersion": {"type": "string"},
                                "kind": {"type": "string"},
                                "metadata": {"type": "object"},
                                "spec": {
                                    "type": "object",
                                    "properties": {
                                        "replicas": {**replicas, "maximum": 1000, "default": 1}
                                    },
                                },
                                "status": {
                                    "type": "object",
                                    "properties": {
                                        "replicas": replicas,
                                        "readyReplicas": replicas,
                                        "selector": {"type": "string"},
                                    },
                                },
                            },
                        }
                    },
                }
            ],
        },
    }


def text() -> str:
    """The file crds/pdservings.yaml."""
    head = "# Generated from pds_operator/schema by `make gen`. Do not edit.\n"
    return head + "---\n".join(map(_dumped, (definition(), role_definition())))


def chart_template() -> str:
    """The file charts/pdserving/templates/crd.yaml: upgraded with the chart, kept without it."""
    bodies = [definition(), role_definition()]
    for body in bodies:
        body["metadata"]["annotations"] = {"helm.sh/resource-policy": "keep"}
    dumped = "---\n".join(map(_dumped, bodies))
    head = "{{- /* Generated from pds_operator/schema by `make gen`. Do not edit. */}}\n"
    return f"{head}{{{{- if .Values.crds.install }}}}\n{dumped}{{{{- end }}}}\n"


def _dumped(body: dict[str, Any]) -> str:
    return yaml.dump(body, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=110)


class _Plain(yaml.SafeDumper):
    """YAML without anchors: every place is spelled out, as people read it."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _columns() -> list[dict[str, Any]]:
    return [
        _column("Model", ".spec.model.name"),
        _column("Prefill", ".status.prefill.summary"),
        _column("Decode", ".status.decode.summary"),
        _column("Unified", ".status.unified.summary", wide=True),
        _column("Ready", '.status.conditions[?(@.type=="Ready")].status'),
        _column("Rollout", '.status.conditions[?(@.type=="Progressing")].reason'),
        _column("Age", ".metadata.creationTimestamp", "date"),
        _column("Endpoint", ".status.endpoint", wide=True),
        _column("Revision", ".status.currentRevision", wide=True),
    ]


def _column(name: str, path: str, kind: str = "string", wide: bool = False) -> dict[str, Any]:
    return {"name": name, "type": kind, "jsonPath": path, **({"priority": 1} if wide else {})}


def _root() -> Schema:
    return {
        "type": "object",
        "description": "An OpenAI-compatible endpoint of prefill and decode groups.",
        "required": ["spec"],
        "x-kubernetes-validations": [
            {
                "rule": "self.metadata.name.size() <= 40",
                "message": "the name may have at most 40 characters: "
                "pods are called <name>-<role>-<group>-<attempt>-<rank>",
            }
        ],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": _spec(),
            "status": _status(),
        },
    }


def _spec() -> Schema:
    raw = PDServingSpec.model_json_schema(by_alias=True)
    definitions = raw.pop("$defs", {})
    return _structural(raw, definitions)


def _structural(node: Schema, definitions: dict[str, Schema]) -> Schema:
    """`node` in the subset that the API server accepts: no $ref, no anyOf, no null."""
    node = dict(node)
    if "$ref" in node:
        target = definitions[node.pop("$ref").rpartition("/")[2]]
        node = {**target, **node}
    if node.get("x-kubernetes-int-or-string"):
        kept = {key: value for key, value in node.items() if key.startswith("x-kubernetes-")}
        described = {"description": node["description"]} if "description" in node else {}
        return {**described, **_limits(node), **kept}
    if node.get("x-kubernetes-preserve-unknown-fields"):
        return {key: value for key, value in node.items() if key not in DROPPED}
    choices = node.pop("anyOf", None)
    if choices:
        [only] = [choice for choice in choices if choice.get("type") != "null"]
        return _structural({**only, **node}, definitions)
    values = node.get("additionalProperties")
    clean = {key: value for key, value in node.items() if key not in DROPPED}
    if isinstance(values, dict):
        clean["additionalProperties"] = _structural(values, definitions)
    if "properties" in clean:
        clean["properties"] = {
            key: _structural(value, definitions) for key, value in clean["properties"].items()
        }
    if "items" in clean:
        clean["items"] = _structural(clean["items"], definitions)
    if "description" in clean:
        clean["description"] = " ".join(clean["description"].split())
    return clean


def _limits(node: Schema) -> Schema:
    return {"maxLength": node["maxLength"]} if "maxLength" in node else {}


def _status() -> Schema:
    number: Schema = {"type": "integer", "format": "int32"}
    text: Schema = {"type": "string"}
    role: Schema = {
        "type": "object",
        "properties": {**dict.fromkeys(ROLE_STATUS, number), "summary": text},
    }
    condition: Schema = {
        "type": "object",
        "required": ["type", "status", "reason", "message", "lastTransitionTime"],
        "properties": {
            "type": {"type": "string", "maxLength": 316},
            "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
            "reason": {"type": "string", "maxLength": 1024},
            "message": {"type": "string", "maxLength": 32768},
            "observedGeneration": {"type": "integer", "format": "int64"},
            "lastTransitionTime": {"type": "string", "format": "date-time"},
        },
    }
    return {
        "type": "object",
        "properties": {
            "observedGeneration": {"type": "integer", "format": "int64"},
            "conditions": {
                "type": "array",
                "maxItems": 16,
                "items": condition,
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
            },
            "currentRevision": text,
            "targetRevision": text,
            "endpoint": text,
            **dict.fromkeys(names.ROLES, role),
            "router": {"type": "object", "properties": {"desired": number, "ready": number}},
        },
    }
