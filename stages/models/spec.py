"""What the models of a spec share, and those that stand in the spec of a pretrained model."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer


class FrozenModel(BaseModel):
    """Values that a person wrote, checked, and unchangeable from then on."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    later: ClassVar[frozenset[str]] = frozenset()  # fields that records hold only where they are not at their default

    @model_serializer(mode="wrap")
    def _dumped(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Return the values, without later fields at their default, so that records stay as they were written."""
        fields, values = type(self).model_fields, dict(dump(self))
        return {n: v for n, v in values.items() if n not in self.later or getattr(self, n) != fields[n].default}


class EmbeddingSpec(FrozenModel):
    """A textual inversion that prompts may name."""

    file: str = Field(
        min_length=1, max_length=4096, description="Path of a .safetensors file, or its name under HOME/embeddings."
    )
    trigger: str | None = Field(
        None, min_length=1, max_length=200, description="Its name in a prompt; none: the file's without the ending."
    )
