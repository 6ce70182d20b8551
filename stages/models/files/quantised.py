"""Files whose weights are 8-bit floats, plain or with a scale for each weight, and the kinds that are not read.

A scaled weight is W = fp8 * scale. Two spellings are in use: `X.scale_weight` and `X.weight_scale` beside `X.weight`.
Scales of inputs are for multiplying in 8 bits, which is not done here, and change no weight.
"""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING

from stages.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from stages.models.files.record import FileHeader

SCALES = (".scale_weight", ".weight_scale")
BESIDE = re.compile(r"(.*\.)?(scaled_fp8|scale_input|input_scale|comfy_quant)")
"""Names of tensors that change no weight."""
FLOATS = ("F8_E4M3", "F8_E5M2")  # plain 8-bit floats
METADATA = "_quantization_metadata"
READ = ("float8_e4m3fn", "float8_e5m2")
OTHERS: Mapping[str, str] = {
    ".absmax": "bitsandbytes",
    ".quant_map": "bitsandbytes",
    ".quant_state": "bitsandbytes",
    ".qweight": "SVDQuant (nunchaku)",
    ".wscales": "SVDQuant (nunchaku)",
    ".smooth_factor": "SVDQuant (nunchaku)",
    ".svd_up": "SDNQ",
    ".svd_down": "SDNQ",
    ".zero_point": "SDNQ",
    ".weight_scale_2": "nvfp4",
    ".qdata": "torchao",
}
"""Quantisations by the endings of names that they alone have."""
_WORKS = "a file of 16- or 32-bit floats, or of 8-bit floats with one scale a weight, works"


def scales_of(header: FileHeader) -> dict[str, str]:
    """Return the name of the scale of each scaled weight, by the weight's name.

    Raises `SpecError` that names a quantisation which is not read.
    """
    _check_formats(header)
    found = {}
    for name, each in header.tensors.items():
        ending = next((scale for scale in SCALES if name.endswith(scale)), None)
        if ending is None:
            continue
        weight = f"{name.removesuffix(ending)}.weight"
        if weight not in header.tensors:
            raise SpecError(f"model: {header.path} has {name} and no {weight}; download it again")
        if math.prod(each.shape) != 1 or header.tensors[weight].dtype not in FLOATS:
            kind = f"{header.tensors[weight].dtype} weights with scales of shape {list(each.shape)}"
            raise SpecError(f"model: {header.path} is quantised in another way, {kind}; {_WORKS}")
        found[weight] = name
    return found


def _check_formats(header: FileHeader) -> None:
    for name in header.tensors:
        for ending, kind in OTHERS.items():
            if name.endswith(ending) or f"{ending}." in name:
                raise SpecError(f"model: {header.path} is quantised by {kind} ({name}); {_WORKS}")
    try:
        layers = json.loads(header.metadata.get(METADATA, "{}")).get("layers", {})
        formats = {str(each["format"]) for each in layers.values()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SpecError(f"model: {header.path} has {METADATA} that is not understood; {_WORKS}") from None
    formats |= {found for name in header.tensors if name.endswith(".comfy_quant") and (found := _said(header, name))}
    if others := sorted(formats - set(READ)):
        raise SpecError(f"model: {header.path} is quantised as {others[0]}; {_WORKS}")


def _said(header: FileHeader, name: str) -> str | None:
    """Return the format that the bytes of a marker give as JSON; None where the file has no such bytes."""
    begin, end = header.places[name]
    with header.path.open("rb") as file:
        file.seek(begin)
        given = file.read(min(end - begin, 4096))
    if len(given) < end - begin:
        return None  # a header alone
    try:
        return str(json.loads(given)["format"])
    except (ValueError, KeyError, TypeError):
        return repr(given[:40])


def scaled(weight: Tensor, scale: Tensor) -> Tensor:
    """Return a weight in float32 from its 8-bit floats and its scale."""
    return weight.float() * scale.float().reshape(())
