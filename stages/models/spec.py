"""What the models of a spec share, and those that stand in the spec of a pretrained model."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from stages.adapters.spec import Loras
from stages.errors import SpecError


class FrozenModel(BaseModel):
    """Values that a person wrote, checked, and unchangeable from then on."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    later: ClassVar[frozenset[str]] = frozenset()  # fields that records hold only where they are not at their default

    @model_validator(mode="before")
    @classmethod
    def _no_flag_for_a_number(cls, values: Any) -> Any:
        for name, value in values.items() if isinstance(values, dict) else ():
            field = cls.model_fields.get(name)
            says = "" if field is None else f"{field.annotation} {field.metadata}"  # a validator of its own says it
            if isinstance(value, bool) and says and "bool" not in says and "BeforeValidator" not in says:
                raise SpecError(f"{name}: {str(value).lower()} is a flag, and this field takes none")
        return values

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


class ModelSpec(FrozenModel):
    """The pretrained model."""

    later = frozenset({"vae", "text_encoders", "config", "embeddings", "clip_skip", "loras", "prediction", "ztsnr"})

    name: str = Field(
        "shapes",
        min_length=1,
        max_length=1024,
        description="`shapes`, `shapes-dit` or `shapes-motion` (in the package), a name under HOME/models, or the path "
        "of a folder or of a .safetensors or .gguf file.",
    )
    vae: str | None = Field(
        None, min_length=1, max_length=4096, description="A file with the VAE. None: that of the model."
    )
    text_encoders: str | None = Field(
        None,
        min_length=1,
        max_length=4096,
        description="A file or folder with the text encoders, of a model in a single file. None: those in the file.",
    )
    config: str | None = Field(
        None,
        min_length=1,
        max_length=4096,
        description="A folder of configurations, for a single file of no family that is known, or of a transformer, "
        "which also takes tokenizers, text encoders and VAE from it. None: the family's.",
    )
    revision: str | None = Field(
        None, max_length=64, pattern=r"^[\w.-]+$", description="Commit in the hub's cache; none: its main branch."
    )
    dtype: Literal["float32", "float16", "bfloat16", "float8_e4m3fn"] = Field(
        "float32",
        description="Of the UNet and the text encoders; the VAE computes in float32. float8_e4m3fn: the UNet's weights "
        "are stored in 8 bits, and all is computed in bfloat16.",
    )
    embeddings: tuple[EmbeddingSpec, ...] = Field(
        (), max_length=64, description="Textual inversions, besides those under HOME/embeddings."
    )
    loras: Loras = Field((), max_length=64, description="Adapters (LoRA and kin), merged in this order.")
    clip_skip: int | None = Field(
        None, ge=1, le=32, description="Layer of the text encoders from the end, as pages of models count. None: usual."
    )
    prediction: Literal["auto", "epsilon", "v_prediction", "sample"] = Field(
        "auto", description="What the UNet predicts. `auto`: what the model says."
    )
    ztsnr: Literal["auto", "on", "off"] = Field(
        "auto", description="Zero terminal SNR: sampling begins at noise alone. `auto`: what the model says."
    )
