"""How bodies are checked: what all their models have in common."""

from pydantic import BaseModel, ConfigDict


class Body(BaseModel):
    """JSON's own types, no infinity, unknown fields ignored, and no input in an error about it."""

    model_config = ConfigDict(
        strict=True, extra="ignore", allow_inf_nan=False, hide_input_in_errors=True
    )
