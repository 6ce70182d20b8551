"""All that a spec decides of its model: what its files say, and what the spec and the home add to them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stages.adapters.applied import adapted, applied
from stages.adapters.bundled import with_bundled
from stages.errors import SpecError
from stages.models.fields import TEXT_CLASSES
from stages.models.files.says import header_of
from stages.models.folder import describe as describe_base
from stages.models.prediction import decided
from stages.prompts.inversions import known

if TYPE_CHECKING:
    from pathlib import Path

    from stages.models.folder import ModelInfo
    from stages.spec import ModelSpec


def describe(spec: ModelSpec, home: Path, *, has_weights: bool = True) -> ModelInfo:
    """Return what is known of a model before anything is loaded, after every check that needs no tensor.

    Without `has_weights` a folder of configurations alone will do. Raises `SpecError` for a model that cannot serve.
    """
    base = describe_base(spec, home, has_weights=has_weights)
    header = None if base.file is None else header_of(base.file, has_weights=has_weights)
    if base.backbone == "flow":
        return _with_adapters(check_flow_model(base, spec), spec, home)
    info = _at_its_size(decided(base, spec, home, header))
    return _with_adapters(known(info, spec, home), spec, home)


def check_flow_model(info: ModelInfo, spec: ModelSpec) -> ModelInfo:
    """Return the model. Raises `SpecError` for a field of its spec that only UNets have a meaning for."""
    for name in ("prediction", "ztsnr", "clip_skip", "embeddings"):
        if (value := getattr(spec, name)) != type(spec).model_fields[name].default:
            raise SpecError(f"model.{name}: {value!r} is for UNets, and {info.name} is a transformer; leave it out")
    return info


def _at_its_size(info: ModelInfo) -> ModelInfo:
    """Return a checkpoint with the training size of those of its family that predict v, where only a mark said so."""
    side = None if info.file is None or info.file.prediction else info.file.of_family.v_native
    is_v = info.prediction is not None and info.prediction.type == "v_prediction"
    return replace(info, native=(side, side)) if side and is_v else info


def _with_adapters(info: ModelInfo, spec: ModelSpec, home: Path) -> ModelInfo:
    """Return a model with the adapters of a spec. Raises `SpecError` for one that does not fit."""
    adapters = applied(spec.loras, home, info.name, networks_of(info)) if spec.loras else ()
    if not adapters:
        return info
    return replace(
        info,
        adapters=adapters,
        embeddings=with_bundled(info.embeddings, adapters, home),
        fingerprints=adapted(info.fingerprints, adapters),
    )


def networks_of(info: ModelInfo) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return the class and the configuration of the UNet and of each text encoder of a model, by part."""
    classes = {"unet": info.unet_class, **TEXT_CLASSES}
    if info.pipeline is not None:
        classes |= {part: str(info.configs[part]["_class_name"]) for part in TEXT_CLASSES if part in info.configs}
    return {part: (classes[part], dict(config)) for part, config in info.configs.items() if part in classes}
