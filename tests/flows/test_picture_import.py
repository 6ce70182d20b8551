"""`freescale import`: pictures as A1111, ComfyUI, InvokeAI and this program write them, and what becomes of each."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zlib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.numpy import save_file

from flows.home import Home
from flows.picture_import.importing import import_picture
from flows.picture_import.texts import MAX_TEXT, read_texts, user_comment
from flows.rendering.job import prepare
from stages.adapters.prompted import with_prompted
from stages.errors import SpecError
from stages.export import Export, encode_file
from stages.models.file_hashes import old_hash
from stages.models.load import describe
from stages.spec import ModelSpec, make_spec
from stages.textfiles.documents import read_yaml
from tests.adapter_files import lora_file
from tests.toys import ON_UNETS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flows.picture_import.importing import Imported

A1111 = """a lighthouse (at dusk:1.2), <lora:film-grain:0.6>
on a cliff, "quoted": yes
Negative prompt: blurry,
ugly
Steps: 28, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 5.5, Seed: 7, Size: 832x1216, Model hash: {model}, \
Model: juggernaut, VAE hash: 235745af8d, VAE: fix.safetensors, Denoising strength: 0.4, Clip skip: 2, ENSD: 31337, \
Hires upscale: 1.5, Hires upscaler: Latent, Lora hashes: "film-grain: {lora}", TI hashes: "easy: 0123456789", \
ADetailer prompt: "a face, \\"old\\", smiling", Version: v1.9.4"""
LORA = {"lora_unet_x_attn2_to_k.lora_down.weight": (4, 2048)}


def written(
    path: Path, fill: float = 0.0, tensors: Mapping[str, tuple[int, ...]] | None = None, **metadata: str
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.full(shape, fill, np.float16) for name, shape in (tensors or {"x": (8, 8)}).items()}
    save_file(arrays, path, metadata or None)
    return path


def png(path: Path, size: tuple[int, int] = (64, 64), **texts: str) -> str:
    """A PNG with texts, of this (width, height)."""
    info = PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    Image.new("RGB", size).save(path, pnginfo=info)
    return str(path)


def digits(path: Path, count: int, tensors: bool = False) -> str:
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little") if tensors else 0
    return hashlib.sha256(data[start:]).hexdigest()[:count]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def spec_of(found: Imported) -> dict[str, Any]:
    """The fields that the YAML of an import has, read as a spec file is."""
    values, _ = read_yaml(found.text)
    assert isinstance(values, dict)
    return values


def test_the_text_of_a1111_becomes_fields(home: Path, tmp_path: Path) -> None:
    model = written(home / "models" / "xl" / "another-name.safetensors", 1.0)
    lora = written(home / "loras" / "film-grain.safetensors", 2.0)
    text = A1111.format(model=digits(model, 10), lora=digits(lora, 12, tensors=True))
    found = import_picture(png(tmp_path / "a.png", parameters=text), home, hash_all=True)
    assert spec_of(found) == {
        "prompt": 'a lighthouse (at dusk:1.2), \non a cliff, "quoted": yes',
        "negative_prompt": "blurry,\nugly",
        "prompt_syntax": "a1111",
        "seed": 7,
        "width": 1248,
        "height": 1824,
        "cascade": [[832, 1216], [1248, 1824]],
        "steps": 28,
        "guidance_scale": 5.5,
        "solver": "dpmpp_2m",
        "sigmas": "karras",
        "model": {
            "name": "xl/another-name.safetensors",
            "vae": "fix.safetensors",
            "loras": [{"file": "film-grain.safetensors", "weight": 0.6}],
            "embeddings": [{"file": "easy", "trigger": "easy"}],
            "clip_skip": 2,
        },
    }
    assert found.left_out == {
        "Denoising strength": "0.4",
        "ENSD": "31337",
        "Hires upscaler": "Latent",
        "ADetailer prompt": 'a face, "old", smiling',
    }
    said = "\n".join(found.notes)
    assert f"found: model juggernaut is {model}, by its hash" in said
    assert f"found: LoRA film-grain is {lora}, by its hash" in said
    assert "missing: VAE fix.safetensors (hash 235745af8d)" in said
    assert "missing: embedding easy (hash 0123456789)" in said
    assert "hires fix enlarged 832x1216 to 1248x1824" in said
    for note in found.notes:
        assert f"# {note}\n" in found.text


LAST = "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512"


@pytest.mark.parametrize(
    ("text", "fields", "model", "left"),
    [
        (f"cat\n{LAST}", {"prompt": "cat", "negative_prompt": "", "solver": "euler_ancestral"}, {}, {}),
        ("cat\nSteps: 20, Sampler: DPM++ 2M Karras, Seed: 1", {"solver": "dpmpp_2m", "sigmas": "karras"}, {}, {}),
        (f"cat\n{LAST}, Eta: 0.5", {"solver": "euler_ancestral"}, {}, {"Eta": "0.5"}),
        ("cat\nSteps: 20, Sampler: DDIM, Eta: 0.5, Seed: 1", {"solver": "ddim", "eta": 0.5}, {}, {}),
        (f"cat\n{LAST}, Emphasis: No norm", {"emphasis": "no_norm"}, {}, {}),
        (f"cat\n{LAST}, Noise Schedule: Zero Terminal SNR", {}, {"ztsnr": "on"}, {}),
        (
            f"cat\n{LAST}, Hires resize: 1024x0",
            {"width": 1024, "height": 1024, "cascade": [[512, 512], [1024, 1024]]},
            {},
            {},
        ),
        (f"cat\n{LAST}, Hires upscale: 1", {"width": 512}, {}, {"Hires upscale": "1"}),
        (
            f"cat\n{LAST}, Clip skip: 99",
            {},
            {"clip_skip": None},
            {"clip_skip": "99 (model.clip_skip: 99 is too large; allowed: 1 to 32)"},
        ),
        (
            f"cat AND dog\n{LAST}",
            {"prompt": "cat AND dog"},
            {},
            {"AND in the prompt": "prompts that are denoised side by side; here it is a word"},
        ),
        (f"cat\n{LAST}, RNG: CPU, freeu.b1 (x): 3", {}, {}, {"RNG": "CPU", "freeu.b1 (x)": "3"}),
        (f"cat\n{LAST}\nTemplate: a {{b|c}}", {}, {}, {"text after the parameters": "Template: a {b|c}"}),
        (
            "cat\nSteps: 20, Sampler: Magic, Seed: x, CFG scale: 99, Size: 513x515",
            {"width": 512, "height": 512},
            {},
            {
                "Sampler": "Magic",
                "Seed": "x",
                "guidance_scale": "99.0 (guidance_scale: 99.0 is too large; allowed: 0 to 50)",
            },
        ),
        (
            "cat\nSteps: 0, Sampler: Euler, Size: 8000x8",
            {"solver": "euler"},
            {},
            {
                "size": "8000x8 (height: 8 is too small; allowed: 64 to 16384)",
                "steps": "0 (steps: 0 is too small; allowed: 1 to 1000)",
            },
        ),
        (
            "<hypernet:x:1>cat <lora:a>\nSteps: 20, Seed: 1",
            {"prompt": "cat"},
            {"loras": [{"file": "a", "weight": 1}]},
            {"hypernet in the prompt": "<hypernet:x:1>"},
        ),
        (
            "cat<lora:a:0.5:0.8><lyco:b:te=0:unet=1>\nSteps: 20, Seed: 1",
            {"prompt": "cat"},
            {"loras": [{"file": "a", "weight": 0.8, "text_weight": 0.5}, {"file": "b", "weight": 1, "text_weight": 0}]},
            {},
        ),
        (
            'cat <lora:a:1>\nSteps: 20, Seed: 1, Hashes: {"model": "0123456789"}',
            {"prompt": "cat"},
            {"name": "0123456789"},
            {},
        ),
    ],
)
def test_parts_of_the_text_of_a1111(
    text: str, fields: dict[str, Any], model: dict[str, Any], left: dict[str, str], home: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text(text)
    found = import_picture(str(tmp_path / "a.txt"), home)
    values = spec_of(found)
    assert {name: values.get(name) for name in fields} == fields
    assert {name: values.get("model", {}).get(name) for name in model} == model
    assert found.left_out == left


def test_pasted_text_comes_from_standard_input(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(f"cat\n{LAST}".encode())))
    found = import_picture("-", home)
    assert spec_of(found)["prompt"] == "cat"
    assert found.text.startswith("# Imported from pasted text, a picture of A1111.\n")
    assert "names no model" in "".join(found.notes)


def test_a_prompt_that_changes_from_step_to_step_is_told(home: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(f"a [cat:dog:0.5]\n{LAST}")
    found = import_picture(str(tmp_path / "a.txt"), home)
    assert spec_of(found)["prompt"] == "a [cat:dog:0.5]"
    assert any(note.startswith("the spec cannot be rendered as it is: prompt: ") for note in found.notes)


def test_files_of_civitai_are_taken_out_of_the_line(home: Path, tmp_path: Path) -> None:
    resources = [
        {"type": "checkpoint", "modelName": "Illustrious", "modelVersionName": "v1, {x}: 2"},
        {"type": "lora", "weight": 0.7, "modelName": "Grain", "modelVersionName": ""},
    ]
    (tmp_path / "a.txt").write_text(f"cat\n{LAST}, Civitai resources: {json.dumps(resources)}, Civitai metadata: {{}}")
    found = import_picture(str(tmp_path / "a.txt"), home)
    assert spec_of(found)["model"] == {"name": "Illustrious v1, {x}: 2", "loras": [{"file": "Grain", "weight": 0.7}]}
    assert found.left_out == {}


def test_a_sampler_that_is_not_here_is_the_nearest_and_told(home: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("cat\nSteps: 20, Sampler: PLMS, Seed: 1")
    found = import_picture(str(tmp_path / "a.txt"), home)
    assert spec_of(found)["solver"] == "ddim"
    assert "Sampler PLMS is not here; the nearest is ddim" in found.notes


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def comfy(**changed: dict[str, Any] | None) -> dict[str, Any]:
    """A graph with two LoRAs, `Clip skip`, a VAE of its own, and a Reroute; nodes by name, for ids."""
    nodes: dict[str, Any] = {
        "load": node("CheckpointLoaderSimple", ckpt_name="xl\\juggernaut.safetensors"),
        "grain": node(
            "LoraLoader",
            lora_name="grain.safetensors",
            strength_model=0.8,
            strength_clip=0.5,
            model=["load", 0],
            clip=["load", 1],
        ),
        "line": node("LoraLoaderModelOnly", lora_name="line.safetensors", strength_model=1, model=["grain", 0]),
        "route": node("Reroute", **{"": ["line", 0]}),
        "skip": node("CLIPSetLastLayer", stop_at_clip_layer=-2, clip=["grain", 1]),
        "yes": node("CLIPTextEncode", text="a cat (at dusk:1.2), embedding:easy", clip=["skip", 0]),
        "no": node("CLIPTextEncode", text="blurry", clip=["skip", 0]),
        "empty": node("EmptyLatentImage", width=832, height=1216, batch_size=1),
        "sample": node(
            "KSampler",
            seed=2**64 - 1,
            steps=28,
            cfg=5.5,
            sampler_name="dpmpp_2m",
            scheduler="karras",
            denoise=1.0,
            model=["route", 0],
            positive=["yes", 0],
            negative=["no", 0],
            latent_image=["empty", 0],
        ),
        "vae": node("VAELoader", vae_name="fix.safetensors"),
        "decode": node("VAEDecode", samples=["sample", 0], vae=["vae", 0]),
        "save": node("SaveImage", images=["decode", 0]),
    }
    return {name: each for name, each in {**nodes, **changed}.items() if each is not None}


def test_a_graph_of_comfyui_becomes_fields(home: Path, tmp_path: Path) -> None:
    model = written(home / "models" / "xl" / "juggernaut.safetensors")
    found = import_picture(png(tmp_path / "a.png", (832, 1216), prompt=json.dumps(comfy()), workflow="{}"), home)
    assert spec_of(found) == {
        "prompt": "a cat (at dusk:1.2), embedding:easy",
        "negative_prompt": "blurry",
        "prompt_syntax": "comfy",
        "seed": 2**63 - 1,
        "width": 832,
        "height": 1216,
        "steps": 28,
        "guidance_scale": 5.5,
        "solver": "dpmpp_2m",
        "sigmas": "karras",
        "model": {
            "name": "xl/juggernaut.safetensors",
            "vae": "fix.safetensors",
            "loras": [
                {"file": "grain.safetensors", "weight": 0.8, "text_weight": 0.5},
                {"file": "line.safetensors", "weight": 1, "text_weight": 0},
            ],
            "embeddings": [{"file": "easy", "trigger": "easy"}],
            "clip_skip": 2,
        },
    }
    assert found.left_out == {}
    assert any(f"{2**64 - 1} is beyond" in note for note in found.notes)
    assert f"found: model xl\\juggernaut.safetensors is {model}, by its name" in found.notes


KSAMPLER = comfy()["sample"]["inputs"]
CUSTOM = {
    "sample": node(
        "SamplerCustomAdvanced",
        noise=["n", 0],
        guider=["g", 0],
        sampler=["k", 0],
        sigmas=["b", 0],
        latent_image=["empty", 0],
    ),
    "n": node("RandomNoise", noise_seed=5),
    "g": node("CFGGuider", model=["route", 0], positive=["yes", 0], negative=["no", 0], cfg=4.0),
    "k": node("KSamplerSelect", sampler_name="euler"),
    "b": node("BasicScheduler", model=["route", 0], scheduler="beta", steps=12, denoise=1.0),
}


@pytest.mark.parametrize(
    ("changed", "fields", "left"),
    [
        (CUSTOM, {"seed": 5, "steps": 12, "guidance_scale": 4, "solver": "euler", "sigmas": "beta", "width": 832}, {}),
        (
            {"no": node("ConditioningZeroOut", conditioning=["yes", 0])},
            {"negative_prompt": "", "prompt_syntax": "comfy"},
            {},
        ),
        (
            {"yes": node("CLIPTextEncodeSDXL", text_g="cat", text_l="dog", width=1024, height=1024, clip=["skip", 0])},
            {"prompt": "cat", "width": 832},
            {
                "a second text of CLIPTextEncodeSDXL": "dog",
                "sizes of CLIPTextEncodeSDXL": '{"width": 1024.0, "height": 1024.0}',
            },
        ),
        (
            {
                "yes": node("CLIPTextEncode", text=["words", 0], clip=["skip", 0]),
                "words": node("String Literal", string="cat"),
            },
            {"prompt": "cat"},
            {},
        ),
        (
            {
                "yes": node("ControlNetApply", conditioning=["inner", 0], strength=0.7),
                "inner": node("CLIPTextEncode", text="cat", clip=["skip", 0]),
            },
            {"prompt": "cat"},
            {"conditioning by ControlNetApply": '{"strength": 0.7}'},
        ),
        (
            {"route": node("FreeU_V2", model=["line", 0], b1=1.3)},
            {"steps": 28},
            {"model changed by FreeU_V2": '{"b1": 1.3}'},
        ),
        ({"route": node("RescaleCFG", model=["line", 0], multiplier=0.7)}, {"guidance_rescale": 0.7}, {}),
        (
            {
                "sample": node("KSampler", **{**KSAMPLER, "denoise": 0.6, "seed": ["s", 0]}),
                "s": node("PrimitiveNode", value=9),
            },
            {"seed": 9},
            {"denoise": "0.6"},
        ),
        ({"empty": node("LoadImage", image="a.png")}, {"width": 832}, {"a picture that it begins with": "a.png"}),
        ({"route": node("Reroute", **{"": ["route", 0]})}, {"steps": 28}, {}),
        (
            {
                "sample": node(
                    "KSamplerAdvanced",
                    **{
                        **KSAMPLER,
                        "noise_seed": 3,
                        "seed": None,
                        "start_at_step": 0,
                        "end_at_step": 20,
                        "add_noise": "enable",
                    },
                )
            },
            {"seed": 3},
            {"end_at_step": "20"},
        ),
    ],
)
def test_parts_of_graphs(
    changed: dict[str, Any], fields: dict[str, Any], left: dict[str, str], home: Path, tmp_path: Path
) -> None:
    found = import_picture(png(tmp_path / "a.png", (832, 1216), prompt=json.dumps(comfy(**changed))), home)
    values = spec_of(found)
    assert {name: values.get(name) for name in fields} == fields
    assert found.left_out == left


def test_a_second_sampler_is_the_last_level(home: Path, tmp_path: Path) -> None:
    changed = {
        "up": node("LatentUpscaleBy", samples=["sample", 0], scale_by=1.5),
        "again": node(
            "KSampler", **{**KSAMPLER, "latent_image": ["up", 0], "denoise": 0.5, "steps": 10, "model": ["refiner", 0]}
        ),
        "refiner": node("CheckpointLoaderSimple", ckpt_name="refiner.safetensors"),
        "sharp": node("ImageSharpen", image=["decode", 0], sigma=2),
        "save": node("SaveImage", images=["sharp", 0]),
        "decode": node("VAEDecode", samples=["again", 0], vae=["load", 2]),
    }
    found = import_picture(png(tmp_path / "a.png", (1248, 1824), prompt=json.dumps(comfy(**changed))), home)
    values = spec_of(found)
    assert values["cascade"] == [[832, 1216], [1248, 1824]]
    assert (values["width"], values["steps"]) == (1248, 28)
    assert "vae" not in values["model"]
    assert found.left_out == {
        "a later sampler, KSampler": '{"steps": 10, "cfg": 5.5, "sampler_name": "dpmpp_2m", "scheduler": "karras", '
        '"denoise": 0.5, "model": "refiner.safetensors"}',
        "picture changed by ImageSharpen": '{"sigma": 2}',
        "picture changed by LatentUpscaleBy": '{"scale_by": 1.5}',
    }


def test_a_v_prediction_model_of_a_graph(home: Path, tmp_path: Path) -> None:
    changed = {"route": node("ModelSamplingDiscrete", model=["line", 0], sampling="v_prediction", zsnr=True)}
    found = import_picture(png(tmp_path / "a.png", prompt=json.dumps(comfy(**changed))), home)
    model = spec_of(found)["model"]
    assert (model["prediction"], model["ztsnr"]) == ("v_prediction", "on")


def test_parts_that_are_loaded_by_themselves(home: Path, tmp_path: Path) -> None:
    changed = {
        "load": node("UNETLoader", unet_name="unet.safetensors", weight_dtype="default"),
        "clips": node("DualCLIPLoader", clip_name1="l.safetensors", clip_name2="g.safetensors", type="sdxl"),
        "skip": node("CLIPSetLastLayer", stop_at_clip_layer=-1, clip=["clips", 0]),
    }
    found = import_picture(png(tmp_path / "a.png", prompt=json.dumps(comfy(**changed))), home)
    model = spec_of(found)["model"]
    assert (model["name"], model["text_encoders"]) == ("unet.safetensors", "l.safetensors")
    assert found.left_out == {"a second text encoder": "g.safetensors"}


def test_nodes_that_do_several_things(home: Path, tmp_path: Path) -> None:
    rows = {
        "lora_1": {"on": True, "lora": "a.safetensors", "strength": 0.5},
        "lora_2": {"on": False, "lora": "b.safetensors", "strength": 1},
        "lora_3": {"on": True, "lora": "c.safetensors", "strength": 1, "strengthTwo": 0.25},
    }
    power = node("Power Lora Loader (rgthree)", model=["load", 0], clip=["load", 1], **rows)
    found = import_picture(png(tmp_path / "a.png", prompt=json.dumps(comfy(route=power, grain=None, line=None))), home)
    assert spec_of(found)["model"]["loras"] == [
        {"file": "a.safetensors", "weight": 0.5},
        {"file": "c.safetensors", "weight": 1, "text_weight": 0.25},
    ]
    loader = node(
        "Efficient Loader", ckpt_name="m.safetensors", vae_name="Baked VAE", lora_name="None", positive="a cat",
        negative="bad", empty_latent_width=512, empty_latent_height=768,
    )  # fmt: skip
    links = {"model": ["all", 0], "positive": ["all", 1], "negative": ["all", 2], "latent_image": ["all", 3]}
    nodes = {"all": loader, "sample": node("KSampler (Efficient)", **{**KSAMPLER, **links, "seed": 4})}
    found = import_picture(png(tmp_path / "b.png", prompt=json.dumps(nodes)), home)
    values = spec_of(found)
    assert [values[k] for k in ("prompt", "negative_prompt", "width", "height")] == ["a cat", "bad", 512, 768]
    assert values["model"] == {"name": "m.safetensors"}


def test_a_drawn_graph_is_read_where_no_other_is(home: Path, tmp_path: Path) -> None:
    drawn = {
        "nodes": [
            {"id": 1, "type": "CheckpointLoaderSimple", "widgets_values": ["m.safetensors"]},
            {"id": 2, "type": "CLIPTextEncode", "widgets_values": ["a cat"], "inputs": [{"name": "clip", "link": 1}]},
            {"id": 3, "type": "CLIPTextEncode", "widgets_values": ["bad"], "inputs": [{"name": "clip", "link": 2}]},
            {"id": 4, "type": "EmptyLatentImage", "widgets_values": [512, 768, 1]},
            {
                "id": 5,
                "type": "KSampler",
                "widgets_values": [11, "randomize", 20, 7.0, "euler", "normal", 1],
                "inputs": [
                    {"name": "model", "link": 3},
                    {"name": "positive", "link": 4},
                    {"name": "negative", "link": 5},
                    {"name": "latent_image", "link": 6},
                ],
            },
            {"id": 6, "type": "KSampler", "mode": 4, "widgets_values": [0, "fixed", 1, 1, "heun", "normal", 1]},
        ],
        "links": [
            *([1, 1, 1, 2, 0, "CLIP"], [2, 1, 1, 3, 0, "CLIP"], [3, 1, 0, 5, 0, "MODEL"]),
            *([4, 2, 0, 5, 1, "X"], [5, 3, 0, 5, 2, "X"], [6, 4, 0, 5, 3, "LATENT"]),
        ],
    }
    for what in (png(tmp_path / "a.png", workflow=json.dumps(drawn)), str(tmp_path / "a.json")):
        (tmp_path / "a.json").write_text(json.dumps(drawn))
        values = spec_of(import_picture(what, home))
        assert {k: values[k] for k in ("prompt", "negative_prompt", "seed", "steps", "width", "height", "solver")} == {
            "prompt": "a cat",
            "negative_prompt": "bad",
            "seed": 11,
            "steps": 20,
            "width": 512,
            "height": 768,
            "solver": "euler",
        }
        assert values["model"] == {"name": "m.safetensors"}


INVOKE = {
    "app_version": "5.4.0",
    "generation_mode": "sdxl_txt2img",
    "positive_prompt": "a cat",
    "negative_prompt": "blurry",
    "width": 832,
    "height": 1216,
    "seed": 5,
    "cfg_scale": 6,
    "cfg_rescale_multiplier": 0.3,
    "steps": 30,
    "scheduler": "dpmpp_2m_k",
    "clip_skip": 1,
    "model": {"key": "k", "hash": "blake3:ab", "name": "Juggernaut", "base": "sdxl", "type": "main"},
    "vae": {"name": "fix"},
    "loras": [{"model": {"name": "grain"}, "weight": 0.75}, {"lora": {"model_name": "old"}, "weight": 1}, 3],
    "controlnets": [],
    "hrf_enabled": False,
    "refiner_model": {"name": "refiner"},
}


def test_the_metadata_of_invokeai_become_fields(home: Path, tmp_path: Path) -> None:
    found = import_picture(png(tmp_path / "a.png", invokeai_metadata=json.dumps(INVOKE)), home)
    assert spec_of(found) == {
        "prompt": "a cat",
        "negative_prompt": "blurry",
        "prompt_syntax": "plain",
        "seed": 5,
        "width": 832,
        "height": 1216,
        "steps": 30,
        "guidance_scale": 6,
        "guidance_rescale": 0.3,
        "solver": "dpmpp_2m",
        "sigmas": "karras",
        "model": {
            "name": "Juggernaut",
            "vae": "fix",
            "loras": [{"file": "grain", "weight": 0.75}, {"file": "old", "weight": 1}],
            "clip_skip": 2,
        },
    }
    assert found.left_out == {"LoRA": "3", "refiner_model": '{"name": "refiner"}'}


def test_older_metadata_of_invokeai(home: Path, tmp_path: Path) -> None:
    image = {"prompt": [{"prompt": "a cat [ugly]", "weight": 1}], "steps": 50, "cfg_scale": 7.5, "sampler": "ddim"}
    old = {
        "model_weights": "sd-1.5",
        "model_hash": "cc6cb271",
        "image": {**image, "seed": 3, "width": 512, "height": 512},
    }
    found = import_picture(png(tmp_path / "a.png", **{"sd-metadata": json.dumps(old), "Dream": "x"}), home)
    values = spec_of(found)
    assert (values["prompt"], values["negative_prompt"], values["solver"]) == ("a cat", "ugly", "ddim")
    assert "missing: model sd-1.5 (hash cc6cb271)" in found.notes
    dream = '"a cat (at dusk)1.2 [ugly]" -s 50 -S3 -W 512 -H512 -C7.5 -A k_euler_a -U 2 0.75 --seamless'
    found = import_picture(png(tmp_path / "b.png", Dream=dream), home)
    values = spec_of(found)
    assert (values["seed"], values["steps"], values["width"], values["solver"]) == (3, 50, 512, "euler_ancestral")
    assert found.left_out == {
        "--seamless": "",
        "weights in the prompt": "InvokeAI writes (words)1.2 and words++; prompt_syntax a1111 has (words:1.2)",
        "upscale": "2",
    }


OURS = {
    "freescale": 1,
    "level": 0,
    "sizes": [[64, 64], [128, 128]],
    "spec": {
        "prompt": "a red disc",
        "height": 128,
        "width": 128,
        "seed": 7,
        "method": {"restart": 0.25, "freeu": None},
    },
}


@pytest.mark.parametrize("format", ["png", "webp", "tiff"])
def test_a_picture_of_ours_gives_its_spec_back(format: str, home: Path, tmp_path: Path) -> None:
    (tmp_path / f"a.{format}").write_bytes(encode_file(Image.new("RGB", (8, 8)), format, json.dumps(OURS)))
    found = import_picture(str(tmp_path / f"a.{format}"), home)
    values = spec_of(found)
    assert values == {**OURS["spec"], "model": {"name": "shapes"}}  # type: ignore[dict-item]
    assert make_spec({**values, "method": {"name": "freescale", **values["method"]}}).seed == 7
    assert "this picture is level 0 of 1; the spec makes all of them" in found.notes


@pytest.mark.parametrize("same", [True, False])
def test_weights_of_a_picture_of_ours_are_compared(same: bool, home: Path, tmp_path: Path) -> None:
    weights = describe(ModelSpec(), home).fingerprints
    record = {**OURS, "model": weights if same else {**weights, "unet": "0" * 64}}
    (tmp_path / "a.png").write_bytes(encode_file(Image.new("RGB", (8, 8)), "png", json.dumps(record)))
    said = " ".join(import_picture(str(tmp_path / "a.png"), home).notes)
    assert ("same weights here, so the spec makes this very picture" in said) == same
    assert ("other weights here than in the picture: unet" in said) != same


def test_a_lora_in_the_prompt_of_a_picture_of_ours_counts(home: Path, tmp_path: Path) -> None:
    lora_file(home / "loras" / "grain.safetensors")
    prompt = "a ring <lora:grain:0.5>"
    model = with_prompted(ModelSpec(), prompt, None, "a1111")
    spec = OURS["spec"] | {"prompt": prompt, "prompt_syntax": "a1111"}  # type: ignore[operator]
    record = {**OURS, "spec": spec, "model": describe(model, home).fingerprints}
    (tmp_path / "a.png").write_bytes(encode_file(Image.new("RGB", (8, 8)), "png", json.dumps(record)))
    assert "same weights here" in " ".join(import_picture(str(tmp_path / "a.png"), home).notes)


def test_the_spec_in_a_file_names_its_method(home: Path) -> None:
    for method in ON_UNETS:
        job = prepare(make_spec({"prompt": "x", "width": 160, "height": 128, "method": {"name": method}}), Home(home))
        stage = job.plan.exports[-1].stage
        assert isinstance(stage, Export)
        assert "name" not in json.loads(stage.provenance)["spec"]["method"], "keys never had it"
        record = json.loads(stage.description)["spec"]
        record["method"] = {"name": "freescale", **record["method"]}
        assert make_spec(record).method == job.spec.method


def user(text: str, codec: str, code: bytes = b"UNICODE\0") -> Image.Exif:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = code + text.encode(codec)
    return exif


@pytest.mark.parametrize("codec", ["utf-16-be", "utf-16-le", "utf-16"])
@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_a1111s_text_is_read_from_exif(codec: str, format: str, home: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a", format, exif=user(f"Katze ä 猫\n{LAST}", codec))
    assert spec_of(import_picture(str(tmp_path / "a"), home))["prompt"] == "Katze ä 猫"


def test_comments_in_other_encodings() -> None:
    assert user_comment(b"ASCII\0\0\0cat") == "cat"
    assert user_comment(b"\0" * 8 + "ä".encode()) == "ä"
    assert user_comment(b"plain text") == "plain text"
    assert user_comment(b"UNICODE\0\0") == "�"


def test_a_graph_in_the_tags_of_a_webp(home: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0110], exif[0x010F] = f"prompt:{json.dumps(comfy())}", "workflow:{}"
    Image.new("RGB", (8, 8)).save(tmp_path / "a.webp", exif=exif)
    assert spec_of(import_picture(str(tmp_path / "a.webp"), home))["steps"] == 28


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_every_kind_of_text_in_a_png_is_read(tmp_path: Path) -> None:
    text = "ä\n" + LAST
    kinds = {
        b"tEXt": b"parameters\0" + text.encode("latin-1"),
        b"zTXt": b"parameters\0\0" + zlib.compress(text.encode("latin-1")),
        b"iTXt": b"parameters\0\0\0de\0\0" + text.encode(),
        b"eXIf": user(text, "utf-16-be").tobytes(),
    }
    whole = Path(png(tmp_path / "a.png")).read_bytes()
    for kind, data in kinds.items():
        for at in (33, len(whole) - 12):  # before the pixels, and after them
            (tmp_path / "b.png").write_bytes(whole[:at] + chunk(kind, data) + whole[at:])
            found = read_texts(str(tmp_path / "b.png"))
            assert text in found.by_key.values(), (kind, at)
            assert found.size == (64, 64)
    packed = chunk(b"iTXt", b"parameters\0\1\0\0\0" + zlib.compress(text.encode()))
    (tmp_path / "b.png").write_bytes(whole[:33] + packed + whole[33:])
    assert read_texts(str(tmp_path / "b.png")).by_key == {"parameters": text}


def test_a_text_that_unpacks_to_very_much_is_not_read(tmp_path: Path) -> None:
    whole = Path(png(tmp_path / "a.png")).read_bytes()
    bomb = chunk(b"zTXt", b"parameters\0\0" + zlib.compress(b"\0" * (MAX_TEXT + 1)))
    (tmp_path / "b.png").write_bytes(whole[:33] + bomb + whole[33:])
    assert read_texts(str(tmp_path / "b.png")).by_key == {}


def test_files_are_found_by_hash_else_by_name(home: Path, tmp_path: Path) -> None:
    said: list[str] = []

    def notes(lora: str, hash_all: bool = False) -> str:
        (tmp_path / "a.txt").write_text(f'cat <lora:grain:1>\n{LAST}, Lora hashes: "grain: {lora}"')
        return import_picture(str(tmp_path / "a.txt"), home, hash_all, said.append).notes[1]

    one = written(home / "loras" / "grain.safetensors", 1.0)
    other = written(home / "loras" / "renamed.safetensors", 2.0)
    assert notes(digits(one, 12, tensors=True)).endswith(f"{one}, by its hash {digits(one, 12, tensors=True)}")
    assert said == [f"reads {one} for its hash"]
    assert "by its name alone: its hash does not begin with" in notes(digits(other, 10))
    assert notes(digits(other, 10), hash_all=True).endswith(f"is {other}, by its hash {digits(other, 10)}")
    named = written(home / "loras" / "kohya.safetensors", 3.0, sshs_model_hash="ab" * 32)
    assert f"is {named}, by its hash" in notes("abababababab")


def test_the_old_hash_of_a_model_is_known(home: Path, tmp_path: Path) -> None:
    model = written(home / "models" / "v1.safetensors", 1.0, {"x": (1024, 1024)})
    written(home / "models" / "small.safetensors")
    (tmp_path / "a.txt").write_text(f"cat\n{LAST}, Model hash: {old_hash(model)}")
    assert spec_of(import_picture(str(tmp_path / "a.txt"), home))["model"] == {"name": "v1.safetensors"}


def test_two_files_of_one_name_are_told(home: Path, tmp_path: Path) -> None:
    both = [written(home / "loras" / folder / "grain.safetensors", 1.0) for folder in ("a", "b")]
    (tmp_path / "a.txt").write_text(f"cat <lora:grain:1>\n{LAST}")
    found = import_picture(str(tmp_path / "a.txt"), home)
    assert f"missing: LoRA grain; its name is that of {both[0]} and {both[1]}" in found.notes


NASTY = [
    "yes",
    "no: 1",
    "# x",
    "- a",
    "{a: b}",
    "a: b # c",
    "'\"\\",
    "a\n\n b\t",
    "0o17",
    "~",
    "é 猫 😀",
    "\u2028\u0085",
    "\ufeffx",
    "*a &b !c %d @e `f",
    "<<",
    "[x]",
    "a\x7fb",
]


@pytest.mark.parametrize("prompt", NASTY)
def test_any_prompt_comes_back_from_the_yaml(prompt: str, home: Path, tmp_path: Path) -> None:
    meta = json.dumps({**INVOKE, "positive_prompt": f"x{prompt}x", "model": {"name": f"m{prompt}"}, "loras": []})
    found = import_picture(png(tmp_path / "a.png", invokeai_metadata=meta), home)
    values = spec_of(found)
    assert values["prompt"] == f"x{prompt}x"
    assert values["model"]["name"] == f"m{prompt}"


def test_what_a_picture_says_is_shown_without_control_characters(home: Path, tmp_path: Path) -> None:
    wild = "\x1b[31m\ud83d\0x\n#"
    meta = {**INVOKE, "positive_prompt": f"a{wild}b", "model": {"name": wild}, wild: wild, "loras": []}
    found = import_picture(png(tmp_path / "a.png", invokeai_metadata=json.dumps(meta)), home)
    assert spec_of(found)["prompt"] == "a[31mx\n#b"
    assert all(note.isprintable() for note in found.notes)
    assert all(line.isprintable() for line in found.text.splitlines())
    assert found.left_out["[31m x #"] == "[31m x #"


ODD = st.sampled_from(
    [
        *(None, True, -1, 2.5, 10**40, float("nan"), "", "x", "1e5", "nan", "x" * 5000, "\ud800", "a\0b\x1b"),
        *([], {}, ["sample", 0], ["nope", 0], [[1]], {"a": 1}, "<lora:::>", "<lora:a:b:c>"),
        *("../../etc/passwd", "/etc/passwd", "~nobody/a", ".."),
    ]
)
MARKS = st.sampled_from('"\\:,<>\n{[(x 9')
drawn = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read_or_refused(what: str, home: Path) -> None:
    """Import a file; assert that its prompt comes back from the spec, or that it is refused as a bad input is."""
    with suppress(SpecError):
        found = import_picture(what, home)
        assert spec_of(found)["prompt"] == found.fields["prompt"]
        assert all(note.isprintable() for note in found.notes)


@drawn
@given(data=st.data())
def test_whatever_stands_in_a_graph_is_read_or_refused(data: st.DataObject, tmp_path: Path) -> None:
    graph = comfy(**data.draw(st.sampled_from([{}, CUSTOM])))
    for _ in range(data.draw(st.integers(1, 4))):
        inputs = dict(graph[name := data.draw(st.sampled_from(sorted(graph)))]["inputs"])
        inputs[data.draw(st.sampled_from(sorted(inputs)))] = data.draw(ODD)
        graph[name] = {**graph[name], "inputs": inputs}
    read_or_refused(png(tmp_path / "a.png", prompt=json.dumps(graph)), tmp_path / "home")


@drawn
@given(changes=st.lists(st.tuples(st.integers(0, 600), MARKS), min_size=1, max_size=12))
def test_whatever_stands_in_a_text_is_read_or_refused(changes: list[tuple[int, str]], tmp_path: Path) -> None:
    text = list(A1111)
    for at, character in changes:
        text[at % len(text)] = character
    (tmp_path / "a.txt").write_text("".join(text))
    read_or_refused(str(tmp_path / "a.txt"), tmp_path / "home")
