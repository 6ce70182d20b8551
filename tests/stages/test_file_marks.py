"""What a weight file is, by its header alone: a table of tensors and metadata."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest
from safetensors.numpy import save_file

from stages.models.file_hashes import FileHashes, old_hash
from stages.models.file_marks import classify, describe_file, trigger_words
from stages.models.weights import Header

if TYPE_CHECKING:
    from pathlib import Path

UNET = "model.diffusion_model."
SGM = f"{UNET}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
PARTS = {"first_stage_model.decoder.conv_in.weight": (512, 4, 3, 3), "conditioner.embedders.0.x": (1,)}
KOHYA = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
SD15 = {f"{UNET}input_blocks.0.0.weight": (320, 4, 3, 3), f"{UNET}input_blocks.2.1.x.attn2.to_k.weight": (320, 768)}


class Case(NamedTuple):
    """Tensors with shapes, metadata, and the kind, what, family, prediction and native size that follow."""

    tensors: dict[str, tuple[int, ...]]
    metadata: dict[str, str]
    says: tuple[str | None, str, str, str, tuple[int, int] | None]


def sdxl(channels: int = 4) -> dict[str, tuple[int, ...]]:
    return {f"{UNET}input_blocks.0.0.weight": (320, channels, 3, 3), SGM: (640, 2048)}


CASES = {
    "sdxl": Case({**sdxl(), **PARTS}, {}, ("model", "checkpoint", "SDXL", "", (1024, 1024))),
    "v-key": Case(
        {**sdxl(), **PARTS, "v_pred": (0,)}, {}, ("model", "checkpoint", "SDXL", "v_prediction", (1024, 1024))
    ),
    "v-metadata": Case(
        {**sdxl(), **PARTS},
        {"modelspec.prediction_type": "v"},
        ("model", "checkpoint", "SDXL", "v_prediction", (1024, 1024)),
    ),
    "resolution": Case(
        {**SD15, **PARTS, "cond_stage_model.x": (1,)},
        {"modelspec.resolution": "640x512"},
        ("model", "checkpoint", "SD 1.5", "", (512, 640)),
    ),
    "inpaint": Case({**sdxl(9), **PARTS}, {}, ("model", "checkpoint", "SDXL inpainting", "", None)),
    "unet-alone": Case(
        {**sdxl(), f"{UNET}time_embed.0.weight": (1280, 320)}, {}, ("model", "UNet alone", "SDXL", "", (1024, 1024))
    ),
    "unet-of-diffusers": Case(
        {
            "conv_in.weight": (320, 4, 3, 3),
            "time_embedding.linear_1.weight": (1, 1),
            "x.attn2.to_k.weight": (320, 1024),
        },
        {"modelspec.architecture": "stable-diffusion-v2-768-v"},
        ("model", "UNet alone", "SD 2.x", "v_prediction", (768, 768)),
    ),
    "flux": Case(
        {"double_blocks.0.img_attn.qkv.weight": (9, 3)},
        {},
        ("model", "transformer", "FLUX.1", "", None),
    ),
    "vae": Case({"decoder.conv_in.weight": (512, 4, 3, 3)}, {}, ("vae", "VAE", "", "", None)),
    "kohya": Case(
        {f"{KOHYA}.lora_down.weight": (8, 2048), f"{KOHYA}.alpha": ()}, {}, ("lora", "LoRA", "SDXL", "", None)
    ),
    "peft": Case({"unet.x.attn2.to_k.lora_A.weight": (8, 768)}, {}, ("lora", "LoRA", "SD 1.5", "", None)),
    "peft-adapter": Case(
        {"unet.x.attn2.to_k.lora_A.default.weight": (8, 768)}, {}, ("lora", "LoRA", "SD 1.5", "", None)
    ),
    "old-diffusers": Case(
        {"unet.x.attn2.processor.to_k_lora.down.weight": (4, 768)}, {}, ("lora", "LoRA", "", "", None)
    ),
    "loha": Case(
        {f"{KOHYA}.hada_w1_a": (640, 4), f"{KOHYA}.hada_w1_b": (4, 2048)}, {}, ("lora", "LoHa", "SDXL", "", None)
    ),
    "lokr": Case(
        {f"{KOHYA}.lokr_w1": (4, 4)}, {"ss_base_model_version": "sdxl_base"}, ("lora", "LoKr", "SDXL", "", None)
    ),
    "dora": Case(
        {f"{KOHYA}.dora_scale": (640, 1), f"{KOHYA}.lora_up.weight": (1, 1)}, {}, ("lora", "DoRA", "", "", None)
    ),
    "glora": Case(
        {f"{KOHYA}.{x}.weight": (4, 4) for x in ("a1", "a2", "b1", "b2")}, {}, ("lora", "GLoRA", "", "", None)
    ),
    "tucker": Case({f"{KOHYA}.lora_mid.weight": (4, 4, 3, 3)}, {}, ("lora", "LoRA with Tucker factors", "", "", None)),
    "text-alone": Case(
        {"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": (1, 1)}, {}, ("lora", "LoRA", "SDXL", "", None)
    ),
    "ia3": Case({f"{KOHYA}.on_input": ()}, {}, (None, "IA3 adapter", "", "", None)),
    "oft": Case({f"{KOHYA}.oft_blocks": (1, 1, 1)}, {}, (None, "OFT adapter", "", "", None)),
    "controlnet": Case({"control_model.zero_convs.0.0.weight": (1,)}, {}, (None, "ControlNet", "", "", None)),
    "controlnet-of-diffusers": Case(
        {"controlnet_cond_embedding.conv_in.weight": (1,), "conv_in.weight": (1, 4, 3, 3), "time_embedding.x": (1,)},
        {},
        (None, "ControlNet", "", "", None),
    ),
    "ip-adapter": Case({"image_proj.proj.weight": (1, 1)}, {}, (None, "IP-Adapter", "", "", None)),
    "inversion": Case({"emb_params": (4, 768)}, {}, ("embedding", "textual inversion", "SD 1.5", "", None)),
    "inversion-sdxl": Case(
        {"clip_l": (4, 768), "clip_g": (4, 1280)}, {}, ("embedding", "textual inversion", "SDXL", "", None)
    ),
    "inversion-by-trigger": Case({"<cat>": (1, 1024)}, {}, ("embedding", "textual inversion", "SD 2.x", "", None)),
    "clip-l": Case(
        {"text_model.encoder.layers.0.x": (1,), "text_model.embeddings.token_embedding.weight": (49408, 768)},
        {},
        ("text_encoder", "text encoder", "CLIP-L", "", None),
    ),
    "t5": Case(
        {"encoder.block.0.layer.0.SelfAttention.q.weight": (1,)}, {}, ("text_encoder", "T5 text encoder", "", "", None)
    ),
    "upscaler": Case({"model.0.weight": (64, 3, 3, 3)}, {}, (None, "unknown", "", "", None)),
    "empty": Case({}, {}, (None, "unknown", "", "", None)),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_file_is_told_by_its_header(case: Case) -> None:
    found = classify({name: Header(shape, "F16") for name, shape in case.tensors.items()}, case.metadata)
    assert (found.kind, found.what, found.family, found.prediction, found.native) == case.says
    assert found.error is None


def test_a_name_of_several_lines_is_only_odd() -> None:
    found = classify({"a\nunet.x.attn2.to_k.lora_A.weight": Header((4, 768), "F16")}, {})
    assert (found.kind, found.family) == ("lora", "")


def test_trigger_words_are_what_the_file_says_else_its_most_frequent_tags() -> None:
    tags = {"10_a": {"grain": 4, "film": 9, " ": 50}, "5_b": {"grain": 7}}
    assert trigger_words({"ss_tag_frequency": json.dumps(tags)}) == ("grain", "film")
    assert trigger_words({"ss_tag_frequency": json.dumps(tags), "modelspec.trigger_phrase": "a\n\x1b[31mb"}) == (
        "a [31mb",
    )
    assert trigger_words({"modelspec.trigger_phrase": "x" * 500})[0] == "x" * 60 + "…"
    for damaged in ("{", "[1]", '{"a": 3}', '{"a": {"b": "c"}}', "[" * 100_000):
        assert trigger_words({"ss_tag_frequency": damaged}) == ()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.safetensors", b"<!DOCTYPE html>", "web page"),
        ("a.safetensors", b"version https://git-lfs.github.com/spec/v1", "git-lfs"),
        ("a.safetensors", b"", "empty"),
        ("a.safetensors", b"12", "safetensors"),
        ("none.safetensors", None, "cannot be read"),
    ],
)
def test_a_damaged_file_is_a_reason(name: str, content: bytes | None, says: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    found = describe_file(tmp_path / name)
    assert found.error is not None
    assert says in found.error
    assert str(tmp_path) not in found.error


def test_other_formats_are_named_and_not_opened(tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").write_bytes(b"cos\nsystem\n(S'x'\ntR.")
    (tmp_path / "b.gguf").write_bytes(b"GGUF....")
    assert describe_file(tmp_path / "a.ckpt").why == "a pickled file, which is not opened here"
    assert describe_file(tmp_path / "b.gguf").what == "GGUF"


def test_hashes_are_those_that_people_know(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    save_file({"x": np.arange(2**19, dtype=np.float32)}, file, {"note": "one"})
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    found = FileHashes(tmp_path).of(file)
    assert found.file == hashlib.sha256(data).hexdigest()
    assert found.tensors == hashlib.sha256(data[start:]).hexdigest()
    assert old_hash(file) == hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8]
    save_file({"x": np.arange(2**19, dtype=np.float32)}, file, {"note": "another"})
    edited = FileHashes(tmp_path).of(file)
    assert edited.tensors == found.tensors
    assert edited.file != found.file
    assert edited.begins(edited.tensors[:12].upper())
    assert not edited.begins(edited.file[:7])


def test_a_file_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.models.file_hashes.SETTLED_SECONDS", -1.0)
    file = tmp_path / "a.safetensors"
    save_file({"x": np.zeros(4, np.float32)}, file)
    hashes = FileHashes(tmp_path)
    assert hashes.known(file) is None
    found = hashes.of(file)
    monkeypatch.setattr("stages.models.file_hashes.hashed", lambda path: pytest.fail("it is read again"))
    assert FileHashes(tmp_path).of(file) == found
    assert FileHashes(tmp_path).known(file) == found
    file.write_bytes(file.read_bytes() + b"x")
    assert FileHashes(tmp_path).known(file) is None
