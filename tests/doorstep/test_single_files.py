"""Models in single files at the command line: what is wrong with a file is one sentence, before any work."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from safetensors.torch import save

from stages.models.folder import EMBEDDED
from tests.checkpoints import full_shapes, shapes_original, write_header
from tests.doorstep.harness import Case, check, table

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest

PLAN = "plan 'a red disc' --size 128x128 --model m.safetensors"
CONFIG = f"{PLAN} --config {EMBEDDED}"


@cache
def whole() -> bytes:
    return save(dict(shapes_original()))


def shapes(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(whole())


def written(content: bytes) -> dict[str, Any]:
    return {"m.safetensors": content}


def header(names: dict[str, Any]) -> dict[str, Callable[[Path], object]]:
    return {"m.safetensors": lambda path: write_header(path, names, hole=True)}


def changed(name: str, width: int) -> Callable[[Path], object]:
    return lambda path: write_header(
        path, {**full_shapes("SDXL", "unet"), f"model.diffusion_model.{name}": (320, width, 3, 3)}, hole=True
    )


@table(
    Case("healthy", CONFIG, code=0, files={"m.safetensors": shapes}),
    Case("a-name-in-the-home", f"plan x --size 128x128 --model m --config {EMBEDDED} --home h", code=0,
         files={"h/models/m.safetensors": shapes}),
    Case("a-name-with-its-ending", f"plan x --size 128x128 --model m.safetensors --config {EMBEDDED} --home h", code=0,
         files={"h/models/m.safetensors": shapes}),
    Case("a-name-of-two", "plan x --model m --home h", says=("h/models/m.gguf", "h/models/m.safetensors"),
         files={"h/models/m.safetensors": b"x", "h/models/m.gguf": b"x"}),
    Case("a-vae-by-its-name", f"{CONFIG} --vae v --home h", says=("v.safetensors", "no VAE"),
         files={"m.safetensors": shapes,
                "h/vaes/v.safetensors": lambda path: write_header(path, {"x": (1,)}, hole=True)}),
    Case("a-spec", "plan s/spec.yaml", code=0, files={
        "s/spec.yaml": f"prompt: x\nsize: 128x128\nmodel: {{name: m.safetensors, config: {EMBEDDED}}}",
        "s/m.safetensors": shapes}),
)  # fmt: skip
def test_names(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, tmp_path, monkeypatch)


@table(
    Case("cut-off", CONFIG, says=("cut off",), files={"m.safetensors": lambda path: path.write_bytes(whole()[:-4])}),
    Case("too-long", CONFIG, says=("10 bytes too many",),
         files={"m.safetensors": lambda path: path.write_bytes(whole() + b"0123456789")}),
    Case("cut-header", CONFIG, says=("cut off",), files={"m.safetensors": lambda path: path.write_bytes(whole()[:99])}),
    Case("a-web-page", PLAN, says=("web page",), files=written(b"<!DOCTYPE html><html>no</html>")),
    Case("a-pointer", PLAN, says=("git-lfs",), files=written(b"version https://git-lfs.github.com/spec/v1\noid x")),
    Case("empty", PLAN, says=("is empty",), files=written(b"")),
    Case("two-bytes", PLAN, says=("download it again",), files=written(b"ab")),
    Case("a-pickle-by-another-name", PLAN, says=("no safetensors file",), files=written(b"PK\x03\x04" + bytes(60))),
    Case("an-inpainting-model", PLAN, says=("an inpainting model", "9 input channels"),
         files={"m.safetensors": changed("input_blocks.0.0.weight", 9)}),
    Case("a-lora", PLAN, says=("a LoRA", "--lora"), files=header({"lora_unet_x.lora_down.weight": (4, 4)})),
    Case("a-vae", PLAN, says=("a VAE", "--vae"), files=header({"decoder.x": (4,), "encoder.x": (4,)})),
    Case("an-embedding", PLAN, says=("textual inversion", "--embedding"), files=header({"emb_params": (1, 768)})),
    Case("flux", PLAN, says=("FLUX.1", "--config"), files=header({"double_blocks.0.x": (4,)})),
    Case("an-unknown-file", PLAN, says=("no UNet", "abc"), files=header({"abc": (4,)})),
    Case("of-no-family", PLAN, says=("no family", "--config"), files={"m.safetensors": shapes}),
    Case("a-unet-alone", PLAN, says=("no text encoder for it", "--text-encoders"),
         files={"m.safetensors": lambda path: write_header(path, full_shapes("SDXL", "unet"), hole=True)}),
    Case("a-config-that-is-none", f"{PLAN} --config nowhere", says=("nowhere",), files={"m.safetensors": shapes}),
    Case("a-config-that-is-a-file", f"{PLAN} --config m.safetensors", says=("model.config", "is a file"),
         files={"m.safetensors": shapes}),
    Case("a-vae-that-is-a-folder", f"{CONFIG} --vae {EMBEDDED}/vae", says=("folder",), files={"m.safetensors": shapes}),
    Case("a-vae-that-is-nowhere", f"{CONFIG} --vae v.safetensors", says=("v.safetensors",),
         files={"m.safetensors": shapes}),
    Case("text-encoders-of-a-folder", f"plan x --text-encoders {EMBEDDED}",
         says=("model.text_encoders", "single file")),
)  # fmt: skip
def test_files(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, tmp_path, monkeypatch)
