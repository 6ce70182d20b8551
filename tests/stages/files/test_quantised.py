"""Weights in few bits: files of 8-bit floats, plain and scaled, GGUF, and 8 bits as a dtype of a render."""

from __future__ import annotations

import importlib.util
import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from flows.rendering.job import prepare
from stages.errors import SpecError
from stages.models.files.header import read_header
from stages.models.files.open import load_network
from stages.models.files.quantised import scales_of
from stages.models.folder import EMBEDDED, describe
from stages.models.load import Models
from stages.plan import make_plan
from stages.planner.estimate import estimate
from stages.planner.networks import part_weights
from stages.spec import ModelSpec, RunOptions, make_spec
from tests.checkpoints import shapes_original, write_header
from tests.homes import session_in

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

CPU = torch.device("cpu")
UNET, VAE = "model.diffusion_model.", "first_stage_model."
FP8 = torch.float8_e4m3fn


def unet_of(file: Path, home: Path) -> dict[str, Tensor]:
    info = describe(ModelSpec(name=str(file), config=str(EMBEDDED)), home)
    found: dict[str, Tensor] = Models(info, "float32", CPU).unet.state_dict()
    return found


def vae_of(file: Path, home: Path) -> dict[str, Tensor]:
    network = describe(ModelSpec(name=str(file), config=str(EMBEDDED)), home).networks["vae"]
    found: dict[str, Tensor] = load_network(network, torch.float32).state_dict()
    return found


def is_matrix(name: str, tensor: Tensor) -> bool:
    """Whether a tensor is one of the smallest network's that such files have in 8 bits."""
    return name.startswith(VAE) and tensor.ndim in (2, 4)


def quantised(spelling: str) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, str]]:
    """Return `shapes` with 8-bit floats in its VAE, the same numbers in float32, and the metadata."""
    tensors, floats, metadata = dict(shapes_original()), dict(shapes_original()), {}
    for name, each in shapes_original().items():
        if not is_matrix(name, each):
            continue
        stem, scale = name.removesuffix(".weight"), (each.float().abs().max() / 448).reshape(())
        scale = torch.ones(()) if spelling == "plain" else scale
        tensors[name] = (each.float() / scale).to(FP8)
        floats[name] = tensors[name].float() * scale
        if spelling == "scale_weight":
            tensors |= {f"{stem}.scale_weight": scale, f"{stem}.scale_input": torch.ones(())}
        elif spelling == "weight_scale":
            marker = torch.frombuffer(bytearray(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8)
            tensors |= {f"{stem}.weight_scale": scale.reshape(1), f"{stem}.comfy_quant": marker}
        elif spelling == "metadata":
            tensors |= {f"{stem}.weight_scale": scale, f"{stem}.input_scale": torch.ones(())}
    if spelling == "scale_weight":
        tensors["scaled_fp8"] = torch.empty(0, dtype=FP8)
    if spelling == "metadata":
        metadata = {"_quantization_metadata": json.dumps({"layers": {"x": {"format": "float8_e4m3fn"}}})}
    return tensors, floats, metadata


@pytest.mark.parametrize("spelling", ["plain", "scale_weight", "weight_scale", "metadata"])
def test_eight_bit_floats_are_read_with_their_scales(spelling: str, tmp_path: Path) -> None:
    """Bit by bit the network of the same numbers in float32. A scale that is lost gives noise and no error."""
    tensors, floats, metadata = quantised(spelling)
    file, whole = tmp_path / "fp8.safetensors", tmp_path / "float.safetensors"
    save_file(tensors, file, metadata or None)
    save_file({name: each.contiguous() for name, each in floats.items()}, whole)
    found, wanted = vae_of(file, tmp_path), vae_of(whole, tmp_path)
    assert all(torch.equal(found[name], each) for name, each in wanted.items())


def test_another_scale_is_another_part(tmp_path: Path) -> None:
    tensors, _, _ = quantised("scale_weight")
    prints = []
    for factor in (1, 2):
        name = f"{VAE}decoder.conv_out.scale_weight"
        save_file({**tensors, name: tensors[name] * factor}, tmp_path / f"{factor}.safetensors")
        spec = ModelSpec(name=str(tmp_path / f"{factor}.safetensors"), config=str(EMBEDDED))
        prints.append(describe(spec, tmp_path).fingerprints)
    assert {part for part in prints[0] if prints[0][part] != prints[1][part]} == {"vae"}


OTHERS = """
bitsandbytes = x.weight.absmax
bitsandbytes = x.weight.quant_map
bitsandbytes = x.weight.quant_state.bitsandbytes__nf4
SVDQuant = x.qweight
SVDQuant = x.wscales
SDNQ = x.svd_up
nvfp4 = x.weight_scale_2
torchao = x.weight.qdata
"""


@pytest.mark.parametrize("line", OTHERS.strip().splitlines())
def test_other_quantisations_are_refused_by_their_names(line: str, tmp_path: Path) -> None:
    kind, name = line.split(" = ")
    file = write_header(tmp_path / "x.safetensors", {name: (4,)})
    with pytest.raises(SpecError, match=f"is quantised by {kind}"):
        scales_of(read_header(file, is_whole=False))


@pytest.mark.parametrize("format", ["nvfp4", "int8_tensorwise", "mxfp8"])
def test_other_formats_are_refused_by_what_the_file_says(format: str, tmp_path: Path) -> None:
    said = json.dumps({"format": format})
    save_file(
        {"x.comfy_quant": torch.frombuffer(bytearray(said.encode()), dtype=torch.uint8)}, tmp_path / "a.safetensors"
    )
    metadata = {"_quantization_metadata": json.dumps({"layers": {"x": {"format": format}}})}
    save_file({"x": torch.ones(1)}, tmp_path / "b.safetensors", metadata)
    for name in "ab":
        with pytest.raises(SpecError, match=f"is quantised as {format}"):
            scales_of(read_header(tmp_path / f"{name}.safetensors"))


@pytest.mark.parametrize(
    ("shapes", "dtypes", "said"),
    [
        ({"x.weight": (8, 8), "x.weight_scale": (8, 1)}, {"x.weight": "F8_E4M3"}, "quantised in another way"),
        ({"x.weight": (8, 8), "x.weight_scale": ()}, {"x.weight": "U8"}, "quantised in another way"),
        ({"x.scale_weight": ()}, {}, "and no x.weight"),
    ],
)
def test_scales_of_another_form_are_refused(shapes: Any, dtypes: Any, said: str, tmp_path: Path) -> None:
    file = write_header(tmp_path / "x.safetensors", shapes, None, dtypes)
    with pytest.raises(SpecError, match=said):
        scales_of(read_header(file, is_whole=False))


# --- 8 bits as a dtype --------------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {"prompt": "a green ring", "width": 160, "height": 128, "steps": 2}


def test_a_unet_stored_in_eight_bits_computes_in_sixteen(tmp_path: Path) -> None:
    info = describe(ModelSpec(), tmp_path)
    stored, whole = Models(info, "float8_e4m3fn", CPU).unet, Models(info, "bfloat16", CPU).unet
    assert sum(p.nbytes for p in stored.parameters()) < 0.52 * sum(p.nbytes for p in whole.parameters())
    conv, same = stored.down_blocks[0].resnets[0].conv1, whole.down_blocks[0].resnets[0].conv1
    assert torch.equal(conv.weight, same.weight.to(FP8).to(torch.bfloat16))
    assert {p.dtype for p in stored.parameters()} == {FP8, torch.bfloat16}
    assert next(stored.parameters()).dtype == torch.bfloat16


@pytest.mark.thorough
@pytest.mark.parametrize("method", ["freescale", "scalecrafter"])
def test_a_render_in_eight_bits_is_one_of_its_own_and_the_same_each_time(method: str, tmp_path: Path) -> None:
    """Also with methods that read or replace the kernels of convolutions."""
    made = []
    for dtype, home in (("float8_e4m3fn", "a"), ("float8_e4m3fn", "b"), ("bfloat16", "a")):
        session = session_in(tmp_path / home)
        asked = SMALL | {"model": {"name": "shapes", "dtype": dtype}, "method": {"name": method}}
        made.append(session.render(prepare(make_spec(asked), session.home)))
    assert made[0].pixels_sha256 == made[1].pixels_sha256 != made[2].pixels_sha256
    assert made[0].run != made[2].run


@pytest.mark.thorough
def test_a_plan_counts_what_is_stored(tmp_path: Path) -> None:
    info = describe(ModelSpec(), tmp_path)
    stored, whole = (part_weights(info, "unet", dtype) for dtype in ("float8_e4m3fn", "bfloat16"))
    assert 0.5 < stored / whole < 0.52
    spec = make_spec(SMALL | {"model": {"name": "shapes", "dtype": "float8_e4m3fn"}, "width": 64, "height": 64})
    plan = make_plan(spec, info)
    denoising = next(call for call in plan.calls if call.stage.name == "base_denoise")
    assert estimate(denoising, info, RunOptions(), "cuda").weights == stored


# --- GGUF ---------------------------------------------------------------------------------------------------------

needs_gguf = pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="needs the extra gguf")


def write_gguf(file: Path) -> dict[str, Tensor]:
    """Write the UNet of `shapes` in Q8_0, with float16 where rows do not fit; return the numbers that it then holds."""
    import gguf
    from gguf.quants import dequantize, quantize

    writer, floats = gguf.GGUFWriter(str(file), "sdxl"), dict(shapes_original())
    kind = gguf.GGMLQuantizationType.Q8_0
    for name, each in shapes_original().items():
        if not name.startswith(UNET):
            continue
        array = each.contiguous().float().numpy()
        if array.ndim == 2 and array.shape[1] % 32 == 0:
            packed = quantize(array, kind)
            writer.add_tensor(name, packed, raw_dtype=kind)
            floats[name] = torch.from_numpy(dequantize(packed, kind))
        elif array.ndim == 4:  # as ComfyUI-GGUF writes what has too many sides
            writer.add_array(f"comfy.gguf.orig_shape.{name}", [int(side) for side in array.shape])
            writer.add_tensor(name, array.reshape(array.shape[0], -1).astype("float16"))
        else:
            writer.add_tensor(name, array.astype("float16"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return floats


@needs_gguf
def test_gguf_is_made_into_floats(tmp_path: Path) -> None:
    floats = write_gguf(tmp_path / "unet.gguf")
    save_file({name: each.contiguous() for name, each in floats.items()}, tmp_path / "whole.safetensors")
    whole = str(tmp_path / "whole.safetensors")
    spec = ModelSpec(name=str(tmp_path / "unet.gguf"), config=str(EMBEDDED), vae=whole, text_encoders=whole)
    found, wanted = (
        Models(describe(spec, tmp_path), "float32", CPU).unet.state_dict(),
        unet_of(tmp_path / "whole.safetensors", tmp_path),
    )
    assert all(torch.equal(found[name], each) for name, each in wanted.items())


@needs_gguf
def test_a_damaged_gguf_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "unet.gguf")
    whole = (tmp_path / "unet.gguf").read_bytes()
    for content in (whole[:-9], whole[:40], b"GGUF", b"nothing"):
        (tmp_path / "x.gguf").write_bytes(content)
        with pytest.raises(SpecError, match=r"x\.gguf is"):
            read_header(tmp_path / "x.gguf")


@pytest.mark.skipif(importlib.util.find_spec("gguf") is not None, reason="the extra gguf is installed")
def test_without_the_extra_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(SpecError, match=r"needs the extra gguf; pip install"):
        read_header(tmp_path / "x.gguf")
