"""What a weight file is, by its header alone: the names and shapes of its tensors, and what its metadata say.

Shapes win over metadata, and the name of the file says nothing. No tensor is read.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from stages.errors import SpecError, cause
from stages.models.files.transformers import transformer_of
from stages.models.weights import PICKLED, Header, headers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from stages.models.linked_folders import FileKind

TRIGGERS, LONGEST = 5, 60  # trigger words that are kept of one file, and characters of each
DTYPES: Mapping[str, str] = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}


class Mark(NamedTuple):
    """What a file is if any of its tensors has a name like this; `all_of`: and one like each of these."""

    kind: FileKind | None
    what: str
    pattern: str
    all_of: tuple[str, ...] = ()


BEFORE_CHECKPOINTS = "checkpoint"  # what a transformer is looked for before
UNET = r"^(model\.diffusion_model\.|diffusion_model\.)?(input_blocks\.0\.0\.weight|conv_in\.weight)$"
MARKS: tuple[Mark, ...] = (  # the first that fits
    Mark(None, "IA3 adapter", r"\.on_input$"),
    Mark(None, "OFT adapter", r"\.oft_(blocks|diag)$|\.oft_R\."),
    Mark(None, "Control-LoRA", r"^lora_controlnet$"),
    Mark("lora", "DoRA", r"\.dora_scale$|\.lora_magnitude_vector(\.weight)?$"),
    Mark("lora", "LoHa", r"\.hada_w1_[ab]$"),
    Mark("lora", "LoKr", r"\.lokr_w[12](_[ab])?$"),
    Mark("lora", "GLoRA", r"\.a1\.weight$", (r"\.b1\.weight$", r"\.a2\.weight$")),
    Mark("lora", "LoRA with Tucker factors", r"\.lora_mid\.weight$"),
    Mark("lora", "LoRA", r"\.lora_(down|up|A|B)(\.\w+)?\.weight$|[._]lora(_linear_layer)?\.(down|up)\.weight$"),
    Mark("lora", "difference of weights", r"^(lora|lycoris)_.*\.(diff|diff_b|w_norm|b_norm)$"),
    Mark(None, "IP-Adapter", r"^image_proj\.|^ip_adapter\."),
    Mark(
        None,
        "ControlNet",
        r"^control_model\.|^zero_convs\.|^input_hint_block\.|^controlnet_(cond_embedding|down_blocks)",
    ),
    Mark(None, "T2I-Adapter", r"^(adapter\.)?body\.\d+\."),
    Mark("embedding", "textual inversion", r"^emb_params$|^string_to_param|^clip_[lg]$"),
    Mark("model", BEFORE_CHECKPOINTS, UNET, (r"^(first_stage_model|vae)\.", r"^(cond_stage_model|conditioner)\.")),
    Mark("model", "UNet alone", UNET, (r"(^|\.)time_embed(ding)?\.",)),
    Mark("vae", "VAE", r"^(first_stage_model\.|vae\.)?decoder\.conv_in\.weight$"),
    Mark("vae", "VAE", r"^(first_stage_model\.|vae\.)?decoder\.middle\.0\.residual\.0\.gamma$"),
    Mark("text_encoder", "Qwen text encoder", r"^model\.embed_tokens\.weight$", (r"\.self_attn\.q_proj\.weight$",)),
    Mark(None, "CLIP vision network", r"^vision_model\."),
    Mark("text_encoder", "text encoder", r"(^|\.)text_model\.encoder\.layers\.|(^|\.)transformer\.resblocks\."),
    Mark("text_encoder", "T5 text encoder", r"(^|\.)encoder\.block\.0\.layer\.0\.SelfAttention"),
)
"""What files hold, by names of their tensors; `kind` is None for what no field of a spec takes."""
WIDTHS: Mapping[int, str] = {768: "SD 1.5", 1024: "SD 2.x", 1280: "SDXL refiner", 2048: "SDXL"}  # of text, in attn2
EMBEDDED_WIDTHS: Mapping[int, str] = {768: "SD 1.5", 1024: "SD 2.x", 1280: "SDXL"}  # of textual inversions
ENCODERS: Mapping[int, str] = {768: "CLIP-L", 1024: "OpenCLIP-H", 1280: "OpenCLIP-bigG"}
CHANNELS: Mapping[int, str] = {9: " inpainting", 8: " image editing"}  # of the UNet's input; 4 is the usual
NATIVE: Mapping[str, int] = {"SD 1.5": 512, "SD 2.x": 512, "SDXL": 1024, "SDXL refiner": 1024}
NAMED = (  # in metadata: `modelspec.architecture`, `ss_base_model_version`
    (r"flux\W?2", "FLUX.2"),
    (r"flux", "FLUX.1"),
    (r"refiner", "SDXL refiner"),
    (r"xl", "SDXL"),
    (r"v2|sd_?2", "SD 2.x"),
    (r"v1|sd_?1", "SD 1.5"),
)
CROSS = r"attn2[._]to_k(\.weight|\..*(lora_down|lora_A|lora\.down|hada_w1_b)(\.\w+)*)$"  # with the width of text


@dataclass(frozen=True)
class FileMarks:
    """What a file is. `kind` is None for a file that no field takes; `error` says why a file cannot be read."""

    kind: FileKind | None = None
    what: str = ""
    family: str = ""
    prediction: str = ""  # where the file says it
    zero_terminal_snr: bool = False
    native: tuple[int, int] | None = None  # (height, width) in pixels
    dtype: str = ""
    triggers: tuple[str, ...] = ()
    tensors_sha256: str = ""  # of the bytes after the header, as the trainer wrote it
    why: str = ""
    error: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict, repr=False)


def describe_file(path: Path) -> FileMarks:
    """Return what a file is, read from its header. A file that cannot be read is told in `error`; nothing is raised."""
    if path.suffix.lower() in PICKLED:
        return FileMarks(why="a pickled file, which is not opened here")
    try:
        with path.open("rb") as start:
            if start.read(4) == b"GGUF":
                return FileMarks("model", "GGUF", why="the file begins with GGUF")
        metadata, found = read_metadata(path), _tensors(path)
    except SpecError as error:
        return FileMarks(error=str(error).removeprefix(f"model: {path} "))
    except OSError as error:
        return FileMarks(error=f"cannot be read: {cause(error)}")
    return classify(found, metadata)


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file. Raises `SpecError` for one that is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError):
        headers(path)  # which says in words what is wrong
        raise


def _tensors(path: Path) -> dict[str, Header]:
    """The tensors of a file that is whole, by a second reading of its header: one tensor at a time takes longer."""
    with path.open("rb") as file:
        found = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return {name: Header(tuple(each["shape"]), each["dtype"]) for name, each in found.items() if name != "__metadata__"}


def classify(tensors: Mapping[str, Header], metadata: Mapping[str, str]) -> FileMarks:
    """Return what a file with these tensors and metadata is."""
    mark, named = _mark(tensors)
    dtypes = Counter[str]()
    for each in tensors.values():
        dtypes[each.dtype] += math.prod(each.shape)
    most = dtypes.most_common(1)[0][0] if dtypes else ""
    marks = FileMarks(
        *mark[:2],
        dtype=DTYPES.get(most, most.lower()),
        triggers=trigger_words(metadata),
        tensors_sha256=metadata.get("sshs_model_hash", ""),
        metadata=metadata,
        why=f"it has {named}" if named else "no tensor of it has a name that is known",
    )
    family, why = _family(marks, tensors)
    marks = replace(marks, family=family, why=f"{marks.why}; {why}" if why else marks.why)
    if marks.kind == "model":
        prediction, ztsnr = _prediction(tensors, metadata), "ztsnr" in tensors
        marks = replace(
            marks, prediction=prediction, zero_terminal_snr=ztsnr, native=_native(family, prediction, metadata)
        )
    return marks


def _mark(tensors: Mapping[str, Header]) -> tuple[Mark, str]:
    """The first mark that fits, and a name that it fits."""
    for mark in MARKS:
        if mark.what == BEFORE_CHECKPOINTS and (transformer := transformer_of(tensors)):
            return Mark("model", "transformer", ""), f"names of {transformer.name}"
        found = [_first(pattern, tensors) for pattern in (mark.pattern, *mark.all_of)]
        if all(found):
            return mark, str(found[0])
    if 0 < len(tensors) <= 2 and all(each.shape and each.shape[-1] in EMBEDDED_WIDTHS for each in tensors.values()):
        return Mark("embedding", "textual inversion", ""), f"{next(iter(tensors))} alone"
    return Mark(None, "unknown", ""), ""


def _first(pattern: str, tensors: Mapping[str, Header]) -> str | None:
    """The first name that a pattern fits, searched in all names as one text of lines."""
    names = _lines(tuple(tensors))
    found = re.compile(pattern, re.MULTILINE).search(names)
    if found is None:
        return None
    end = names.find("\n", found.end())
    return names[names.rfind("\n", 0, found.start()) + 1 : end if end >= 0 else len(names)]


def _shape(pattern: str, tensors: Mapping[str, Header]) -> tuple[int, ...]:
    """The shape of the first tensor whose name a pattern fits; empty for none, and for a name of several lines."""
    found = tensors.get(_first(pattern, tensors) or "")
    return found.shape if found else ()


@lru_cache(maxsize=1)
def _lines(names: tuple[str, ...]) -> str:
    return "\n".join(names)


def _family(marks: FileMarks, tensors: Mapping[str, Header]) -> tuple[str, str]:
    """The family of models that a file belongs to, and what shows it."""
    if marks.kind == "embedding":
        width = max((each.shape[-1] for each in tensors.values() if each.shape), default=0)
        return EMBEDDED_WIDTHS.get(width, ""), f"its vectors have {width} numbers"
    if marks.kind == "text_encoder":
        width = (_shape(r"token_embedding(\.weight)?$", tensors) or (0,))[-1]
        return ENCODERS.get(width, ""), f"its tokens have {width} numbers" if width else ""
    if marks.what == "transformer" and (found := transformer_of(tensors)):
        return found.name, ""
    if marks.kind == "lora" and (family := _transformer_family(tensors)):
        return family, "its modules have names and shapes of it"
    if marks.kind in ("model", "lora"):
        shape = _shape(CROSS, tensors)
        if len(shape) >= 2 and shape[1] in WIDTHS:
            return WIDTHS[shape[1]] + _channels(marks, tensors), f"attn2 takes {shape[1]} numbers"
    if marks.kind == "lora" and _first(r"^(lora_te2_|text_encoder_2\.)", tensors):
        return "SDXL", "it changes a second text encoder"
    for key in ("modelspec.architecture", "ss_base_model_version"):
        for pattern, family in NAMED:
            if re.search(pattern, metadata_value := marks.metadata.get(key, ""), re.IGNORECASE):
                return family, f"{key} is {_printable(metadata_value)}"
    return "", ""


def _transformer_family(tensors: Mapping[str, Header]) -> str | None:
    """The family of transformers that a LoRA was made for; None for UNets, and where nothing tells which."""
    from stages.adapters.families import OTHERS, family_of_tensors

    found = family_of_tensors({name: each.shape for name, each in tensors.items()})
    return None if found == OTHERS else found


def _channels(marks: FileMarks, tensors: Mapping[str, Header]) -> str:
    shape = _shape(UNET, tensors) if marks.kind == "model" else ()
    return CHANNELS.get(shape[1], "") if len(shape) == 4 else ""


def _prediction(tensors: Mapping[str, Header], metadata: Mapping[str, str]) -> str:
    """What the network predicts, where the file says it."""
    said = metadata.get("modelspec.prediction_type", "").lower()
    if "v_pred" in tensors or said in ("v", "v_prediction") or "768-v" in metadata.get("modelspec.architecture", ""):
        return "v_prediction"
    return "epsilon" if said in ("epsilon", "eps") else ""


def _native(family: str, prediction: str, metadata: Mapping[str, str]) -> tuple[int, int] | None:
    """(height, width) of the pictures that a model was trained on."""
    if said := re.fullmatch(r"(\d{2,5})x(\d{2,5})", metadata.get("modelspec.resolution", "")):
        return int(said[2]), int(said[1])
    side = 768 if family == "SD 2.x" and prediction == "v_prediction" else NATIVE.get(family)
    return None if side is None else (side, side)


def trigger_words(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Return the words that a file was trained on: what it says itself, else the most frequent tags of its pictures."""
    if said := metadata.get("modelspec.trigger_phrase", "").strip():
        return (_printable(said),)
    counts = Counter[str]()
    for tag, number in _tags(metadata.get("ss_tag_frequency", "")):
        counts[tag] += number
    return tuple(_printable(tag) for tag, _ in counts.most_common(TRIGGERS))


def _tags(text: str) -> Iterator[tuple[str, int]]:
    """The tags of a trainer's pictures with their numbers, over all folders; nothing where the text is none of its."""
    try:
        folders: Any = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return
    for tags in folders.values() if isinstance(folders, dict) else ():
        for tag, number in tags.items() if isinstance(tags, dict) else ():
            if tag.strip() and isinstance(number, int):
                yield tag.strip(), number


def _printable(text: str) -> str:
    """A text from a file on one line, without control characters, cut at `LONGEST`."""
    plain = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return plain if len(plain) <= LONGEST else f"{plain[:LONGEST]}…"
