"""FLUX.2 folders at toy width with random weights, as the stock pipelines' `save_pretrained` leaves them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch

from tests.toys import new_flux2, new_flux2_vae
from tests.zimage_folder import qwen3

if TYPE_CHECKING:
    from pathlib import Path


DEV_TOKENS = 224  # of a prompt, a byte each, with the template around it
DEV_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content[0].text }}<|im_end|>\n{% endfor %}"
)


def mistral3() -> tuple[Any, Any]:
    """A small Mistral 3 with random weights, and a tokenizer of bytes."""
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    _, tokenizer = qwen3(1)
    tokenizer.chat_template, tokenizer.model_max_length = DEV_TEMPLATE, DEV_TOKENS
    text = {"model_type": "mistral", "vocab_size": len(tokenizer), "hidden_size": 8, "intermediate_size": 12}
    text |= {"num_hidden_layers": 30, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    text |= {"sliding_window": None}
    vision = {"model_type": "pixtral", "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 16, "patch_size": 4}
    config = Mistral3Config(text_config=text, vision_config=vision, tie_word_embeddings=False)
    return Mistral3ForConditionalGeneration(config).eval(), tokenizer


def dev_folder(folder: Path) -> Path:
    """Write a folder of [dev]."""
    from diffusers import FlowMatchEulerDiscreteScheduler, Flux2Pipeline

    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer, vae = new_flux2(embedded=True), new_flux2_vae()
        text, tokenizer = mistral3()
    parts: dict[str, Any] = {
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        "vae": vae,
        "text_encoder": text,
        "tokenizer": tokenizer,
        "transformer": transformer,
    }
    Flux2Pipeline(**parts).save_pretrained(folder)
    (folder / "freescale.json").write_text(json.dumps({"native": [128, 128], "steps": 4}))
    return folder


def klein_folder(folder: Path, *, is_distilled: bool = False) -> Path:
    """Write a folder of klein."""
    from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline

    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer, vae = new_flux2(), new_flux2_vae()
        text, tokenizer = qwen3(27, width=8)
    parts: dict[str, Any] = {
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        "vae": vae,
        "text_encoder": text,
        "tokenizer": tokenizer,
        "transformer": transformer,
        "is_distilled": is_distilled,
    }
    Flux2KleinPipeline(**parts).save_pretrained(folder)
    (folder / "freescale.json").write_text(json.dumps({"native": [128, 128], "steps": 4}))
    return folder
