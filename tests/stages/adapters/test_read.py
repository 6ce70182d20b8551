"""What a file of an adapter is by its header, what it is refused for, and its fingerprint."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import pytest
import torch

from stages.adapters.metadata import family_said, metadata_of, peft_scalings, trigger_words
from stages.adapters.read import contents, describe_adapter, family_by_shapes, read_adapter, text_width
from stages.errors import SpecError
from stages.models.hashes import Hashes
from tests.adapter_files import PEFT, SHAPES, SHAPES_TEXT, edited, lora_file, low_rank

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

SDXL_KEY = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
SD1_KEY = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
TAGS = {"ss_tag_frequency": json.dumps({"10_grain": {"film grain": 20, "1girl": 12, "sky": 3}, "5_x": {"sky": 1}})}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lora_file(tmp_path_factory.mktemp("lora") / "grain.safetensors", metadata=TAGS)


def data_of(path: Path) -> bytes:
    whole = path.read_bytes()
    return whole[8 + int.from_bytes(whole[:8], "little") :]


def test_a_record_says_what_a_listing_shows(file: Path) -> None:
    record = describe_adapter(file)
    assert (record.kind, record.family, record.rank) == ("LoRA + LoCon", None, 2)
    assert record.hash == hashlib.sha256(data_of(file)).hexdigest()
    assert record.trigger_words == ("film grain", "1girl")


def test_a_fingerprint_is_of_the_tensors_of_each_half_and_of_nothing_else(tmp_path: Path, file: Path) -> None:
    before = contents(read_adapter(file))
    other = lora_file(tmp_path / "other.safetensors", low_rank(SHAPES), {"modelspec.trigger_phrase": "x"})
    assert contents(read_adapter(other)) == before, "neither its name nor its metadata"
    edited(other, lambda tensors: tensors[f"{SHAPES_TEXT}.lora_up.weight"].add_(1))
    text_changed = contents(read_adapter(other))
    assert text_changed.unet == before.unet
    assert text_changed.text != before.text
    assert text_changed.data != before.data
    edited(other, lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith("lora_te")] and None)
    assert contents(read_adapter(other)).text == ""


def test_a_fingerprint_is_remembered_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.models.hashes.SETTLED_SECONDS", -1.0)
    path = lora_file(tmp_path / "a.safetensors")
    before = contents(read_adapter(path), Hashes(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr("stages.adapters.read._read_contents", lambda file: pytest.fail("it was read again"))
        assert contents(read_adapter(path), Hashes(tmp_path)) == before
    lora_file(path, low_rank(SHAPES, seed=1))
    assert contents(read_adapter(path), Hashes(tmp_path)) != before


def test_scales_in_the_metadata_are_part_of_the_fingerprint(tmp_path: Path) -> None:
    tensors = low_rank({"unet.conv_in": (48, 4, 3, 3)}, names=PEFT)
    found = {
        alpha: contents(
            read_adapter(
                lora_file(
                    tmp_path / f"{alpha}.safetensors", tensors, {"lora_adapter_metadata": f'{{"lora_alpha": {alpha}}}'}
                )
            )
        ).unet
        for alpha in (4, 8)
    }
    assert found[4] != found[8]


def test_scales_that_peft_leaves_beside_the_file_are_read(tmp_path: Path) -> None:
    tensors = low_rank({"base_model.model.conv_in": (48, 4, 3, 3)}, names=PEFT)
    path = lora_file(tmp_path / "adapter_model.safetensors", tensors)
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 6, "r": 2, "use_rslora": true}')
    assert peft_scalings(read_adapter(path).metadata, "unet", "conv_in") == (6.0, True)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(SpecError, match=r"adapter_config.json' has the scales of adapter_model.safetensors and is not"):
        read_adapter(path)


@pytest.mark.parametrize(
    ("entries", "part", "module", "expected"),
    [
        ({"lora_alpha": 8}, "unet", "a.to_q", (8.0, False)),
        ({"unet.lora_alpha": 8, "text_encoder.lora_alpha": 2}, "text_encoder", "a", (2.0, False)),
        ({"unet.lora_alpha": 8}, "text_encoder", "a", None),
        ({"lora_alpha": 8, "use_rslora": True}, "unet", "a", (8.0, True)),
        ({"lora_alpha": 8, "alpha_pattern": {"to_q": 4}}, "unet", "a.b.to_q", (4.0, False)),
        ({"lora_alpha": 8, "alpha_pattern": {"to_q": 4}}, "unet", "a.b.to_k", (8.0, False)),
        ({"unet.lora_alpha": 8, "unet.alpha_pattern": {r"a\..*": 4}}, "unet", "a.b.to_k", (4.0, False)),
        ({}, "unet", "a", None),
    ],
)
def test_scalings_of_peft(
    entries: dict[str, object], part: str, module: str, expected: tuple[float, bool] | None
) -> None:
    assert peft_scalings({"lora_adapter_metadata": json.dumps(entries)}, part, module) == expected


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"modelspec.trigger_phrase": " a photo by X "}, ("a photo by X",)),
        (TAGS, ("film grain", "1girl")),
        ({"ss_tag_frequency": "not JSON"}, ()),
        ({"ss_tag_frequency": '{"a": {"b": "many"}, "c": 3}'}, ("b",)),
        ({}, ()),
    ],
)
def test_trigger_words(metadata: dict[str, str], words: tuple[str, ...]) -> None:
    assert trigger_words(metadata) == words


@pytest.mark.parametrize(
    ("metadata", "family"),
    [
        ({"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}, "SDXL"),
        ({"ss_base_model_version": "sdxl_base_v1-0"}, "SDXL"),
        ({"ss_base_model_version": "sd_v1"}, "Stable Diffusion 1"),
        ({"ss_base_model_version": "sd_v2_768_v"}, "Stable Diffusion 2"),
        ({"modelspec.architecture": "flux-1-dev/lora"}, "Flux"),
        ({"ss_sd_model_name": "my-merge.safetensors"}, None),
    ],
)
def test_the_family_that_metadata_say(metadata: dict[str, str], family: str | None) -> None:
    assert family_said(metadata) == family


@pytest.mark.parametrize(
    ("tensors", "width", "family"),
    [
        (low_rank({SDXL_KEY: (640, 2048)}), 2048, "SDXL"),
        (low_rank({SD1_KEY: (320, 768)}), 768, "Stable Diffusion 1"),
        (low_rank({SD1_KEY.replace("_", "."): (4, 4)}), None, None),
        ({f"{SD1_KEY}.hada_w1_b": torch.zeros(2, 1024)}, 1024, "Stable Diffusion 2"),
        (
            {f"{SD1_KEY}.lokr_w1": torch.zeros(2, 4), f"{SD1_KEY}.lokr_w2_b": torch.zeros(2, 192)},
            768,
            "Stable Diffusion 1",
        ),
        (low_rank({"lora_te2_text_model_encoder_layers_0_mlp_fc1": (8, 8)}), None, "SDXL"),
        (low_rank({"lora_unet_double_blocks_0_img_attn_qkv": (8, 8)}), None, "Flux"),
        (low_rank({"lora_unet_joint_blocks_0_x_block_attn_qkv": (8, 8)}), None, "Stable Diffusion 3"),
        (low_rank({"lora_unet_conv_in": (8, 8)}), None, None),
    ],
)
def test_the_family_that_shapes_say(
    tensors: dict[str, Tensor], width: int | None, family: str | None, tmp_path: Path
) -> None:
    found = read_adapter(lora_file(tmp_path / "a.safetensors", tensors))
    assert (text_width(found), family_by_shapes(found)) == (width, family)


def bundled(tensors: dict[str, Tensor]) -> None:
    tensors["bundle_emb.sks.string_to_param.*"] = torch.zeros(2, 8)
    tensors["bundle_emb.other.clip_l"] = torch.zeros(2, 8)


def test_textual_inversions_in_the_file_are_named(tmp_path: Path) -> None:
    path = lora_file(tmp_path / "a.safetensors")
    before = contents(read_adapter(path))
    edited(path, bundled)
    assert describe_adapter(path).bundled == ("other", "sks")
    found = contents(read_adapter(path))
    assert (found.unet, found.text) == (before.unet, before.text), "they change no weight"


def alone(*names: str) -> dict[str, Tensor]:
    return {name: torch.zeros(2, 2) for name in names}


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        (alone("lora_unet_a.on_input", "lora_unet_a.weight"), "of the kind IA3, which is not read"),
        (alone("lora_unet_a.oft_blocks", "lora_unet_a.alpha"), "of the kind OFT or BOFT"),
        (alone("lora_controlnet", "input_blocks.0.0.lora_down.weight"), "of the kind Control-LoRA"),
        (alone("model.diffusion_model.a.weight"), "is a checkpoint; give it as the model"),
        (alone("emb_params"), "is a textual inversion; give it as an embedding"),
        (alone("clip_l", "clip_g"), "is a textual inversion"),
        (alone("image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"), "is an IP-Adapter"),
        (alone("controlnet_cond_embedding.conv_in.weight"), "is a ControlNet"),
        (alone("a.weight", "b.weight"), "none of its 2 tensors has a name of one, such as a.weight"),
        ({"a.lora_down.weight": torch.zeros(2, 2, dtype=torch.int8)}, "a.lora_down.weight as I8"),
        ({"a.diff": torch.zeros(2), "a.alpha": torch.zeros(3)}, "a.alpha of the shape"),
        (alone("a.lora_A.weight", "a.lora_down.weight"), "which mean one thing"),
    ],
)
def test_what_is_no_adapter_that_is_read_says_what_it_is(tensors: dict[str, Tensor], says: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=says) as error:
        read_adapter(lora_file(tmp_path / "a.safetensors", tensors))
    assert str(error.value).startswith("lora: ")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda data: data[:-4], "is cut off"),
        (lambda data: data + b"0123456789", "10 bytes too many"),
        (lambda data: b"<!DOCTYPE html><html>", "is a web page"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1", "git-lfs pointer"),
        (lambda data: b"", "is empty"),
    ],
)
def test_a_damaged_file_says_how(damage: Callable[[bytes], bytes], says: str, tmp_path: Path) -> None:
    path = lora_file(tmp_path / "a.safetensors")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(SpecError, match=says) as error:
        read_adapter(path)
    assert str(error.value).startswith("lora: ")
    assert metadata_of(path) == {}


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="pickled"):
        read_adapter(tmp_path / "a.pt")
