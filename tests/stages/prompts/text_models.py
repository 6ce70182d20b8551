"""Text encoders at toy width with a tokenizer of letters: a model with its tokens, and no UNet or VAE."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from stages.models.fields import TEXT_CLASSES
from stages.models.folder import ModelInfo
from stages.models.load import Models

if TYPE_CHECKING:
    from pathlib import Path

START, END = 512, 513
KINDS = ("sd15", "sd2", "sdxl")
WIDTHS = {"text_encoder": 32, "text_encoder_2": 48}


def letters() -> dict[str, int]:
    """CLIP's 256 bytes, alone and at the end of a word, and the two marks: every letter is a token."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    names = [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(others))]
    tokens = [*names, *(f"{name}</w>" for name in names), "<|startoftext|>", "<|endoftext|>"]
    return {token: number for number, token in enumerate(tokens)}


def write_tokenizer(folder: Path, pad: str) -> None:
    """Write a tokenizer as published models have it, with the token that fills prompts up."""
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(letters()), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    settings = {"model_max_length": 77, "pad_token": pad, "tokenizer_class": "CLIPTokenizer"}
    settings |= dict.fromkeys(("eos_token", "unk_token"), "<|endoftext|>") | {"bos_token": "<|startoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def text_model(root: Path, kind: str) -> Models:
    """Write a model of a kind and return it, to encode prompts with."""
    import transformers

    torch.manual_seed(KINDS.index(kind))
    parts = list(TEXT_CLASSES)[: 2 if kind == "sdxl" else 1]
    texts: dict[str, dict[str, Any]] = {}
    for part in parts:
        config = transformers.CLIPTextConfig(
            vocab_size=514,
            hidden_size=WIDTHS[part],
            intermediate_size=64,
            projection_dim=WIDTHS[part],
            num_hidden_layers=4,
            num_attention_heads=4,
            hidden_act="quick_gelu" if kind == "sd15" else "gelu",
            bos_token_id=0,
            eos_token_id=2,  # as published, though it is none: the pooled row is taken at the largest number
            pad_token_id=1,
        )
        network = getattr(transformers, TEXT_CLASSES[part])(config)
        norm = getattr(network, "text_model", network).final_layer_norm
        norm.weight.data.uniform_(0.5, 1.5)  # fresh ones give rows whose mean is zero
        norm.bias.data.uniform_(0.0, 0.5)
        network.save_pretrained(root / part)
        texts[part] = json.loads((root / part / "config.json").read_text(encoding="utf-8"))
        pad = "!" if part == "text_encoder_2" or kind == "sd2" else "<|endoftext|>"
        write_tokenizer(root / part.replace("text_encoder", "tokenizer"), pad)
    info = ModelInfo(kind, root, (64, 64), 4, 7.5, "", "euler", {}, kind == "sdxl", 4, configs=texts, words=root)
    models = Models(info, "float32", torch.device("cpu"))
    models.text_encoder = cache(models.text_encoder)  # type: ignore[method-assign]
    return models


def stock(models: Models, prompt: str, negative: str | None) -> list[torch.Tensor]:
    """What the stock pipeline of a kind encodes: rows, negative rows; of SDXL the two pooled rows, too."""
    import diffusers

    absent = dict.fromkeys(("unet", "vae", "scheduler", "feature_extractor"))
    parts = {part: models.text_encoder(part) for part in models.info.texts}
    parts |= {part.replace("text_encoder", "tokenizer"): models.tokenizer(part) for part in models.info.texts}
    guided: dict[str, Any] = {"device": models.device, "do_classifier_free_guidance": negative is not None}
    if models.info.size_ids:
        pipeline = diffusers.StableDiffusionXLPipeline(**parts, **absent, force_zeros_for_empty_prompt=True)
        found = pipeline.encode_prompt(prompt, negative_prompt=negative or None, **guided)
    else:
        pipeline = diffusers.StableDiffusionPipeline(
            **parts, **absent, safety_checker=None, requires_safety_checker=False
        )
        found = pipeline.encode_prompt(prompt, num_images_per_prompt=1, negative_prompt=negative, **guided)
    return [rows for rows in found if rows is not None]
