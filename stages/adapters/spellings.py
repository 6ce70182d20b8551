"""Every way in which files of adapters write the name of a module -> that module of the model.

The programs that train adapters have no common naming. So names are not parsed: for the networks of a model all
spellings of all their modules are written down, and a file is looked up in this table. In what follows d is a module's
path in diffusers or transformers, o its path in the original layout, and `_` joins the parts of a flat name.

    lora_unet_ + o_                                   kohya, SDXL
    lora_unet_ + d_                                   kohya, Stable Diffusion 1.x; OneTrainer
    lycoris_ + d_                                     SimpleTuner
    unet. + d, d, base_model.model. + d               diffusers, PEFT
    unet. + d with .processor. before to_q            diffusers before 0.22
    diffusion_model. + o                              ComfyUI
    lora_te_, lora_te1_, lora_te2_ + d_               kohya, OneTrainer
    text_encoder., text_encoder_2. + d                diffusers
    text_encoders.clip_l.transformer. + d             ComfyUI

Those of transformers are in `transformer_spellings`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from stages.adapters.metadata import SECOND
from stages.models.files.keys import original_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import nn

    from stages.models.files.transformer_keys import Pieces

CHANGED = ("Linear", "Conv2d", "LayerNorm", "GroupNorm", "Embedding")  # classes of layers
UNET, TEXTS = "unet", ("text_encoder", "text_encoder_2")
UNET_DOTTED = ("", "unet.", "base_model.model.", "unet.base_model.model.", "diffusion_model.")
ORIGINAL_DOTTED = ("diffusion_model.", "model.diffusion_model.", "unet.")
TEXT_FLAT = {"text_encoder": ("lora_te_", "lora_te1_"), "text_encoder_2": ("lora_te2_",)}
CLIP = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
TRANSFORMERS: Mapping[str, str] = {
    "FluxTransformer2DModel": "Flux",
    "ChromaTransformer2DModel": "Chroma",
    "Flux2Transformer2DModel": "FLUX.2",
    "SD3Transformer2DModel": "Stable Diffusion 3",
    "QwenImageTransformer2DModel": "Qwen-Image",
    "ZImageTransformer2DModel": "Z-Image",
    "WanTransformer3DModel": "Wan",
    "WanTransformerPair": "Wan",
}
"""The transformers that adapters are merged into, by class, and their families."""
PAIRS: Mapping[str, tuple[str, str]] = {"WanTransformerPair": ("transformer", SECOND)}
"""Which of them are two networks, and the names of these."""
_TEXT = re.compile(r"lora_te[123]?_|text_encoder(?:_2|s)?\.|clip_[lg]\.")
_BLOCK = re.compile(r"(input|middle|output)_(?:blocks|block)\.(\d+)\.")
_SHORT = {"input": "IN", "output": "OUT"}
ALONE = "BASE"  # the block of what is in no block of a UNet, and of the text encoders


@dataclass(frozen=True)
class Target:
    """One module of a model whose weight an adapter may change, or rows of several that files have as one."""

    part: str  # of the model: `unet`, `text_encoder` or `text_encoder_2`
    module: str  # its path in the network as it is loaded
    shape: tuple[int, ...]  # of its weight
    bias: int | None  # the length of its bias; None: it has none
    block: str = ALONE  # IN04, MID or OUT11 of a UNet, by the numbers of the original layout
    pieces: Pieces = ()  # of a module that files have as one, whose `module` is its name in them
    family: str = ""  # of a transformer

    @property
    def modules(self) -> tuple[str, ...]:
        """The paths of the modules whose weights are changed."""
        return tuple(dict.fromkeys(module for module, _, _ in self.pieces)) or (self.module,)


def targets(parts: Mapping[str, nn.Module], network_of_pair: str | None = None) -> dict[str, Target]:
    """Return the table from every spelling to its module, for the networks of a model by the names of their parts.

    Linear layers, convolutions, norms and embeddings are targets; of a transformer everything that is learnt. Of two
    networks `network_of_pair` is the one that all spellings mean; None: each has those that begin with its name. Raises
    `ValueError` where two modules would have one spelling.
    """
    table: dict[str, Target] = {}
    for part, network in parts.items():
        if part == UNET and type(network).__name__ in TRANSFORMERS:
            for name, target in _of_transformers(network, network_of_pair):
                if table.setdefault(name, target) != target:
                    raise ValueError(f"{name} stands for {table[name].module} and for {target.module}")
            continue
        config = _config(network)
        for path, module in network.named_modules():
            if _is_changed(module) and module.weight is not None:
                original = _original(config, path) if part == UNET else None
                bias = getattr(module, "bias", None)
                length = None if bias is None else bias.shape[0]
                target = Target(part, path, tuple(module.weight.shape), length, _block(original or ""))
                for name in spellings(part, path, original):
                    if table.setdefault(name, target) != target:
                        raise ValueError(f"{name} stands for {table[name].module} and for {path}")
    return table


def _of_transformers(network: nn.Module, network_of_pair: str | None) -> Iterator[tuple[str, Target]]:
    """Yield every spelling of a transformer, or of one or each of two, with its target."""
    names = PAIRS.get(type(network).__name__)
    if names is None:
        yield from _of_transformer(network)
    for name in names or ():
        for spelling, target in _of_transformer(network.get_submodule(name)):
            own = replace(target, module=f"{name}.{target.module}")
            if network_of_pair == name:
                yield spelling, own
            elif network_of_pair is None and spelling.startswith("transformer."):
                yield name + spelling.removeprefix("transformer"), own


def _of_transformer(network: nn.Module) -> Iterator[tuple[str, Target]]:
    """Yield every spelling of a transformer's modules, and of what it has learnt beside them, with its target."""
    from stages.adapters.transformer_spellings import transformer_spellings  # here, since UNets need none of it

    learnt = dict(network.named_parameters())
    weights = {name: each for name, each in learnt.items() if not name.endswith(".bias")}
    shapes = {name.removesuffix(".weight"): tuple(each.shape) for name, each in weights.items()}
    family = TRANSFORMERS[type(network).__name__]
    for name, module, pieces in transformer_spellings(
        type(network).__name__, _config(network), {path: shape[0] for path, shape in shapes.items()}
    ):
        first = pieces[0][0] if pieces else module
        rows = sum(end - begin for _, begin, end in pieces) or shapes[first][0]
        bias = rows if f"{first}.bias" in learnt else None
        yield name, Target(UNET, module, (rows, *shapes[first][1:]), bias, pieces=pieces, family=family)


def spellings(part: str, path: str, original: str | None = None) -> Iterator[str]:
    """Yield every name that files have for one module: `path` in diffusers or transformers, `original` in a UNet."""
    if part != UNET:
        yield from _of_text(part, path)
        return
    for name in (path, *([original] if original is not None else [])):
        yield "lora_unet_" + name.replace(".", "_")
    yield "lycoris_" + path.replace(".", "_")
    for before in UNET_DOTTED:
        yield before + path
        if ".to_" in path:
            yield before + path.replace(".to_", ".processor.to_").removesuffix(".0")
    if original is not None:
        yield from (before + original for before in ORIGINAL_DOTTED)


def is_of_text(name: str) -> bool:
    """Whether a tensor or module of a file is for a text encoder, by its prefix."""
    return _TEXT.match(name) is not None


def _of_text(part: str, path: str) -> Iterator[str]:
    """Files have `text_model.` before the layers of a text encoder, whether its class has it today or not."""
    inner = path.removeprefix("text_model.")
    whole = inner if inner.startswith("text_projection") else f"text_model.{inner}"
    yield from (before + whole.replace(".", "_") for before in TEXT_FLAT[part])
    dotted = (f"{part}.", f"{part}.base_model.model.", f"{CLIP[part]}.", f"{CLIP[part]}.transformer.")
    for before in (*dotted, f"text_encoders.{CLIP[part]}.transformer."):
        yield from dict.fromkeys((before + whole, before + inner))


def _original(config: Mapping[str, Any], path: str) -> str | None:
    """Return a module's path in the original layout; None for one that it lacks, such as a motion module."""
    try:
        return original_name("unet", config, path)
    except KeyError:
        return None


def _block(original: str) -> str:
    match = _BLOCK.match(original)
    if match is None:
        return ALONE
    return "MID" if match[1] == "middle" else f"{_SHORT[match[1]]}{int(match[2]):02}"


def _is_changed(module: nn.Module) -> bool:
    return any(kind.__name__ in CHANGED for kind in type(module).__mro__)


def _config(network: Any) -> Mapping[str, Any]:
    config: Mapping[str, Any] = dict(network.config) if isinstance(network.config, dict) else {}
    return config
