"""What a file is, by its header alone: its family, its networks, and what it says of how it was trained.

A file's name decides nothing. Everything else that is decided here has its reason in `FileInfo.why`.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

from stages.errors import SpecError
from stages.models.fields import TEXT_CLASSES
from stages.models.files.families import FAMILIES, OTHER_INPUTS, OTHER_SCHEDULES, OTHER_WIDTHS, XL_KINDS
from stages.models.files.places import FIRST_UNET, shapes_under, text_place, unet_place, vae_place
from stages.models.files.record import FileInfo, NetworkFile, most_common
from stages.models.files.shapes import (
    Misshapen,
    as_original,
    text_config,
    text_width,
    unet_config,
    vae_config,
    vector_width,
)
from stages.models.predicted import Header, detected

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from stages.models.files.families import Family
    from stages.models.files.record import FileHeader
    from stages.models.files.shapes import Shapes

RESOLUTION = re.compile(r"(\d{3,4})x(\d{3,4})")  # of modelspec.resolution: width, height
MARKS = ("v_pred", "ztsnr")


def probe(header: FileHeader) -> FileInfo:
    """Return what a checkpoint is and holds. Raises `SpecError` for one that cannot be rendered with, by its name."""
    location = unet_place(header)
    for mark, says in OTHER_SCHEDULES.items():
        if mark in header.tensors:
            raise SpecError(f"model: {header.path} is {says}; Stable Diffusion 1.x, 2.x and SDXL work")
    with known_shapes(header):
        shapes = shapes_under(header, location.prefix)
        original = as_original(shapes) if location.layout == "diffusers" else shapes
        family = family_of(header, original)
        unet = NetworkFile(
            header.path, "UNet2DConditionModel", location.layout, location.prefix, unet_config(original, family)
        )
    parts = {"unet": unet, **{part: found for part in family.texts if (found := text_part(header, family, part))}}
    if vae := vae_part(header, family):
        parts["vae"] = vae
    return _described(header, family, parts)


def text_part(header: FileHeader, family: Family, part: str) -> NetworkFile | None:
    """Return a text encoder of a family in a file; None where it has none."""
    text, kind = family.texts[part], TEXT_CLASSES[part]
    if (location := text_place(header, part, text.width)) is None:
        return None
    with known_shapes(header):
        config = text_config(shapes_under(header, location.prefix), text, kind)
    return NetworkFile(header.path, kind, location.layout, location.prefix, config)


def vae_part(header: FileHeader, family: Family) -> NetworkFile | None:
    """Return the VAE in a file, with the scale of latents of a family; None where it has none."""
    if (location := vae_place(header)) is None:
        return None
    with known_shapes(header):
        config = vae_config(shapes_under(header, location.prefix), family)
    return NetworkFile(header.path, "AutoencoderKL", location.layout, location.prefix, config)


@contextmanager
def known_shapes(header: FileHeader) -> Iterator[None]:
    """Raise `SpecError` for shapes that are those of no network that is known."""
    try:
        yield
    except (Misshapen, IndexError) as error:
        raise SpecError(f"model: {header.path} holds a network that is not known: {error}") from None


def family_of(header: FileHeader, unet: Shapes) -> Family:
    """Return the family of a UNet by its shapes in original names. Raises `SpecError` for others, by their names."""
    inputs, text, vector = unet[FIRST_UNET][1], text_width(unet), vector_width(unet)
    if text is not None and (says := OTHER_WIDTHS.get((text, vector))):
        raise SpecError(f"model: {header.path} is {says}; the base model works")
    if inputs != 4:
        kind = OTHER_INPUTS.get(inputs, "of another kind")
        raise SpecError(
            f"model: {header.path} is {kind}: its UNet has {inputs} input channels; a text-to-picture model has 4"
        )
    for family in FAMILIES:
        if (text, vector) == (family.context, family.vector):
            return family
    known = ", ".join(f"{each.name} ({each.context}, {each.vector or 'none'})" for each in FAMILIES)
    raise SpecError(
        f"model: {header.path} is of no family that is known: its UNet reads text of width {text} and a vector of "
        f"{vector or 'none'}, and there are {known}; --config FOLDER gives the configurations of another"
    )


def _described(header: FileHeader, family: Family, parts: Mapping[str, NetworkFile]) -> FileInfo:
    prediction, says = prediction_of(header)
    native, native_says = _native(header, family, prediction)
    depths = parts["unet"].config["transformer_layers_per_block"]
    member = (XL_KINDS.get(tuple(depths), f"{family.name}, pruned") if all(isinstance(d, int) for d in depths) else
              f"{family.name}, pruned") if family.is_xl else family.name  # fmt: skip
    vector = f" and a vector of {family.vector}" if family.vector else ""
    ztsnr = "ztsnr" in header.tensors
    return FileInfo(
        path=header.path,
        of_family=family,
        member=member,
        prediction=prediction,
        ztsnr=ztsnr,
        native=native,
        dtype=most_common({n: h for n, h in header.tensors.items() if n.startswith(parts["unet"].prefix)}),
        parts=parts,
        metadata=header.metadata,
        marks=tuple(mark for mark in MARKS if mark in header.tensors),
        why=(
            f"family: its UNet reads text of width {family.context}{vector}",
            *([f"member: {', '.join(map(str, depths))} transformer blocks a level"] if family.is_xl else []),
            f"prediction: {says}",
            f"native size: {native_says}",
            *(["zero terminal SNR: it has the tensor ztsnr"] if ztsnr else []),
        ),
    )


def prediction_of(header: FileHeader) -> tuple[str | None, str]:
    """Return what the header says that the UNet predicts, None for nothing, and the reason in words."""
    found = detected(Header([mark for mark in MARKS if mark in header.tensors], header.metadata))
    return (found.type, f"{found.type}, {found.why}") if found.is_sure else (None, "the header says nothing")


def _native(header: FileHeader, family: Family, prediction: str | None) -> tuple[tuple[int, int], str]:
    said = RESOLUTION.fullmatch(header.metadata.get("modelspec.resolution", ""))
    if said and all(256 <= int(side) <= 2048 and int(side) % 64 == 0 for side in said.groups()):
        return (int(said[2]), int(said[1])), f"its metadata has modelspec.resolution = {said[0]}"
    side = family.v_native if prediction == "v_prediction" and family.v_native else family.native
    return (side, side), f"{side}x{side} of {family.name}"
