"""The bricks of the spec's models: bounded types, and CEL rules as part of a schema."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

ANYTHING: dict[str, Any] = {"x-kubernetes-preserve-unknown-fields": True, "type": "object"}
QUANTITY: dict[str, Any] = {"x-kubernetes-int-or-string": True}


def rule(expression: str, message: str) -> dict[str, Any]:
    """A CEL rule of the schema at this place."""
    return {"x-kubernetes-validations": [{"rule": expression, "message": message}]}


def rules(*pairs: tuple[str, str]) -> dict[str, Any]:
    """Several of them."""
    return {
        "x-kubernetes-validations": [
            {"rule": expression, "message": message} for expression, message in pairs
        ]
    }


PERCENT = r"^[0-9]{1,3}%$"
IntOrPercent = Annotated[
    int | str,
    Field(
        json_schema_extra={
            **QUANTITY,
            **rule(
                f"type(self) == int ? self >= 0 : self.matches('{PERCENT}')",
                "must be a number of groups or a percentage such as 25%",
            ),
            "maxLength": 4,
        }
    ),
]
Quantity = Annotated[int | str, Field(json_schema_extra={**QUANTITY, "maxLength": 32})]
FreeObject = Annotated[dict[str, Any], Field(json_schema_extra=ANYTHING)]
Name = Annotated[str, Field(min_length=1, max_length=253)]
LabelValue = Annotated[str, Field(max_length=63)]
Path = Annotated[str, Field(pattern=r"^/[^:]*$", max_length=1024)]
Dtype = Literal["float32", "bfloat16", "float16"]
Count = Annotated[int, Field(ge=1, le=64)]
Seconds = Annotated[int, Field(ge=0, le=604800)]


class SpecModel(BaseModel):
    """A part of the spec: frozen, camelCase outside, closed to unknown keys."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        populate_by_name=True,
        use_attribute_docstrings=True,
    )


def with_rules(extra: dict[str, Any]) -> ConfigDict:
    """The configuration of a model that carries CEL rules."""
    return ConfigDict(json_schema_extra=extra)
