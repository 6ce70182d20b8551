"""A Z-Image folder at toy width with random weights, as `ZImagePipeline.save_pretrained` leaves it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch

from stages.models.folder import EMBEDDED
from tests.toys import lively, new_zimage

if TYPE_CHECKING:
    from pathlib import Path

TOKENS = 96  # of a prompt, a byte each, with the template around it
MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def qwen3(layers: int, width: int = 16) -> tuple[Any, Any]:
    """A small Qwen3 with random weights that can write text, as the released files can, and its tokenizer of bytes."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3ForCausalLM

    vocabulary = {letter: number for number, letter in enumerate((*sorted(ByteLevel.alphabet()), *MARKS))}
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary, merges=[], additional_special_tokens=list(MARKS[1:]), model_max_length=TOKENS
    )
    tokenizer.chat_template = TEMPLATE
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    sizes = {"hidden_size": width, "intermediate_size": 24, "num_hidden_layers": layers}
    network = Qwen3ForCausalLM(Qwen3Config(vocab_size=len(vocabulary), tie_word_embeddings=True, **heads, **sizes))
    return network.eval(), tokenizer


def zimage_folder(folder: Path, *, shift: float = 6.0) -> Path:
    """Write the folder; a `shift` of 3 is Turbo's. The VAE is the embedded model's."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline

    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = lively(new_zimage())
        text, tokenizer = qwen3(3)
    vae = AutoencoderKL.from_pretrained(EMBEDDED / "vae", torch_dtype=torch.float32)
    vae.register_to_config(shift_factor=0.1)
    parts: dict[str, Any] = {
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=shift),
        "vae": vae,
        "text_encoder": text,
        "tokenizer": tokenizer,
        "transformer": transformer,
    }
    ZImagePipeline(**parts).save_pretrained(folder)
    (folder / "freescale.json").write_text(json.dumps({"native": [128, 128], "steps": 4}))
    return folder
