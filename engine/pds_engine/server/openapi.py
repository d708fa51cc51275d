"""The OpenAPI document of what clients may ask, made from the models that read their bodies.

Routers relay it: engine and router both serve all that it describes. It leaves out the routes of
probes, and those whose calls the router and the operator sign.
"""

from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from typing import Any

import msgspec
from pydantic.json_schema import models_json_schema

from pds_engine.server import protocol
from pds_engine.server.strict import Body

_REF = "#/components/schemas/"
_BODIES: Mapping[str, tuple[type[Body], ...]] = {
    "/v1/completions": (protocol.CompletionRequest,),
    "/v1/chat/completions": (protocol.ChatRequest,),
    "/tokenize": (protocol.TokenizeText, protocol.TokenizeChat),
    "/detokenize": (protocol.DetokenizeRequest,),
}
"""What each route takes by POST: one of these."""
_STREAMED = frozenset({"/v1/completions", "/v1/chat/completions"})
_READ = ("/v1/models", "/tokenizer_info", "/openapi.json")
_ERRORS = {
    400: "A field is wrong: `param` names it.",
    401: "The API key is missing or wrong.",
    403: "The request is for the router alone.",
    404: "There is no such model.",
    405: "The route takes another method.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    429: "Too many requests are open: Retry-After says when to come again.",
    500: "A fault of the server's.",
    503: "No group can answer now: Retry-After says when to come again.",
    504: "The request took longer than it may.",
}
_ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


@cache
def document() -> bytes:
    """The document as JSON."""
    return msgspec.json.encode(described())


def described() -> dict[str, Any]:
    """The document as it is made."""
    models = [(model, "validation") for each in _BODIES.values() for model in each]
    _, found = models_json_schema(models, ref_template=_REF + "{model}")  # type: ignore[arg-type]
    paths: dict[str, Any] = {path: {"get": _operation(path)} for path in _READ}
    for path, kinds in _BODIES.items():
        refs = [{"$ref": _REF + kind.__name__} for kind in kinds]
        schema = refs[0] if len(refs) == 1 else {"anyOf": refs}
        body = {"required": True, "content": {"application/json": {"schema": schema}}}
        paths[path] = {"post": {**_operation(path), "requestBody": body}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "PDServing", "version": version("pdserving")},
        "paths": paths,
        "components": {"schemas": {**found["$defs"], "Error": _ERROR_SCHEMA}},
    }


def _operation(path: str) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
    if path in _STREAMED:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    error = {"application/json": {"schema": {"$ref": _REF + "Error"}}}
    refusals = {
        str(code): {"description": text, "content": error} for code, text in _ERRORS.items()
    }
    return {"responses": {"200": {"description": "The answer.", "content": content}, **refusals}}
