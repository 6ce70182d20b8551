"""A Qwen-Image folder at toy width with random weights, as `QwenImagePipeline.save_pretrained` leaves it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch

from tests.toys import new_qwen, new_qwen_vae

if TYPE_CHECKING:
    from pathlib import Path

MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def qwen_folder(folder: Path) -> Path:
    """Write the folder; its tokenizer knows bytes alone."""
    from diffusers import FlowMatchEulerDiscreteScheduler, QwenImagePipeline
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

    vocabulary = {word: number for number, word in enumerate([*sorted(ByteLevel.alphabet()), *MARKS])}
    text = {"vocab_size": len(vocabulary), "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-6}
    turns = {"rope_type": "default", "mrope_section": [2, 2, 2], "rope_theta": 10000.0}
    vision = {"depth": 2, "hidden_size": 16, "intermediate_size": 20, "num_heads": 2, "out_hidden_size": 24}
    vision |= {"fullatt_block_indexes": [1]}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer, vae = new_qwen(), new_qwen_vae()
        encoder = Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(text_config=text | {"rope_parameters": turns}, vision_config=vision)
        )
    parts: dict[str, Any] = {
        "scheduler": FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
        ),
        "vae": vae,
        "text_encoder": encoder,
        "tokenizer": Qwen2Tokenizer(vocab=vocabulary, merges=[], additional_special_tokens=list(MARKS[1:])),
        "transformer": transformer,
    }
    QwenImagePipeline(**parts).save_pretrained(folder)
    (folder / "freescale.json").write_text(json.dumps({"native": [128, 128], "steps": 4}))
    return folder
