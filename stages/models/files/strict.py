"""Every tensor that a network has must be in its file, with its shape; every other name in a file must be known."""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING

from stages.errors import SpecError
from stages.models.files.quantised import BESIDE, SCALES, scales_of
from stages.models.weights import VERSION, libraries, listed_tensors, shown_shape, wanted_tensors

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from stages.models.cache_file import CacheFile
    from stages.models.files.record import FileHeader, NetworkFile

IGNORED = re.compile(
    r"(.*\.)?(position_ids|logit_scale|attn_mask|text_model\.embeddings\.position_id)"
    r"|(first_stage_model\.)?(loss|model_ema)\..*"
    r"|(alphas_cumprod|sqrt_|log_one_minus|posterior_).*|betas|lvlb_weights|scale_factor|scale_arr"
    r"|denoiser\.(sigmas|log_sigmas)|(model_ema\.)?(global_step|num_updates|decay)|(model\.)?(v_pred|ztsnr)"
    r"|cond_stage_model\.(transformer\.)?(text_projection\.weight|vision_model\..*|visual_projection\..*)"
    r"|cond_stage_model\.model\.text_projection"
    r"|conditioner\.embedders\.0\.(transformer\.text_projection\.weight|model\.text_projection)"
    r"|(text_encoders\.clip_l\.(transformer\.)?)?text_projection(\.weight)?|state_dict|epoch"
    r"|(text_encoders\.\w+\.transformer\.)?lm_head\.weight|((model\.)?diffusion_model\.)?norm_final\.weight"
    r"|pytorch-lightning_version|spiece_model"
)
"""Tensors that files carry beside networks, and that change no picture: tables, averages of training, other towers."""
LAST_LAYER = r"transformer\.resblocks\.{}\..*"


def check_networks(
    header: FileHeader, networks: Iterable[NetworkFile], elsewhere: Iterable[str], known: CacheFile
) -> None:
    """Check a file against the networks that are loaded from it. Raises `SpecError` that names the tensors.

    Names that begin with one of `elsewhere` are of parts that are taken from other files. `known` remembers the files
    that were right, by their headers.
    """
    networks, elsewhere = tuple(networks), tuple(elsewhere)
    scales = scales_of(header)
    what = [
        VERSION,
        [[n.kind, n.layout, n.prefix, n.config] for n in networks],
        elsewhere,
        sorted(header.tensors.items()),
    ]
    key = f"{hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()}:{libraries()}"
    if key in known.entries:
        return
    if wrong := misfit(header, networks, elsewhere, scales):
        raise SpecError(f"model: {header.path} does not hold the weights of such a model: {wrong}")
    known.put(key, True)


def misfit(
    header: FileHeader, networks: Iterable[NetworkFile], elsewhere: tuple[str, ...], scales: Mapping[str, str]
) -> str:
    """Return what keeps a file from holding the networks, in words; empty where nothing does."""
    missing, misshapen, no_floats = dict[str, None](), dict[str, None](), dict[str, None]()
    used: set[str] = set()
    unused: list[str] = []
    for network in networks:
        wanted = wanted_tensors(network.kind, json.dumps(network.config))
        for name, shape in {**wanted.parameters, **wanted.tables}.items():
            if network.is_identity(name):
                continue
            stored = network.stored(name)
            found = header.tensors.get(stored)
            used.add(stored)
            if found is None:
                missing[stored] = None
                continue
            if network.shape(name, found.shape) != shape:
                misshapen[f"{stored} {shown_shape(found.shape)} for {shown_shape(shape)}"] = None
            if name in wanted.parameters and not found.dtype.startswith(("F", "BF", "GGUF")):
                no_floats[f"{stored} {found.dtype} for floating-point numbers"] = None
        used |= {network.stored(name) for name in wanted.buffers}
        if network.layout == "open_clip":
            unused.append(re.escape(network.prefix) + LAST_LAYER.format(network.config["num_hidden_layers"]))
    beside = re.compile("|".join([IGNORED.pattern, BESIDE.pattern, *unused]))
    extra = [
        name
        for name in header.tensors
        if name not in used
        and not beside.fullmatch(name)
        and not name.startswith(elsewhere)
        and not name.endswith(SCALES)
    ]
    kinds = {"missing": missing, "of another shape": misshapen, "of another kind": no_floats, "unknown": extra}
    return "; ".join(listed_tensors(kind, list(names)) for kind, names in kinds.items() if names)
