"""What the models of all bodies have in common."""

from pydantic import BaseModel, ConfigDict


class Body(BaseModel):
    """JSON's own types, no infinity, unknown fields ignored, no input in error messages."""

    model_config = ConfigDict(
        strict=True, extra="ignore", allow_inf_nan=False, hide_input_in_errors=True
    )
