"""Model files by name: the home's folders, linked folders of other programs, and what a name means."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import save_file

from stages.errors import SpecError
from stages.models.library import find, library_files
from stages.models.linked_folders import LINKS, folders_in, link, linked_folders, unlink

if TYPE_CHECKING:
    from pathlib import Path

LORA = {"lora_unet_x_attn2_to_k.lora_down.weight": (4, 2048), "lora_unet_x_attn2_to_k.lora_up.weight": (640, 4)}
VAE = {"decoder.conv_in.weight": (8, 4, 3, 3), "encoder.conv_out.weight": (8, 8, 3, 3)}


def written(path: Path, tensors: dict[str, tuple[int, ...]] | None = None, **metadata: str) -> Path:
    """A safetensors file of zeros at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.zeros(shape, np.float16) for name, shape in (tensors or LORA).items()}, path, metadata or None)
    return path


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.mark.parametrize(
    "name", ["grain", "grain.safetensors", "film/grain", "film/grain.safetensors", "film\\grain.safetensors"]
)
def test_a_file_is_found_by_name_or_relative_path(home: Path, name: str) -> None:
    file = written(home / "loras" / "film" / "grain.safetensors")
    written(home / "loras" / "coarse-grain.safetensors")
    assert find("lora", name, home) == file


def test_a_file_at_the_path_comes_first(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(home / "loras" / "grain.safetensors")
    here = written(tmp_path / "grain.safetensors")
    monkeypatch.chdir(tmp_path)
    assert find("lora", "grain.safetensors", home).resolve() == here
    assert find("lora", str(here), home) == here


def test_an_ending_that_is_part_of_the_name_stays(home: Path) -> None:
    file = written(home / "models" / "xl.v2.safetensors")
    written(home / "models" / "xl.vae.safetensors")
    assert find("model", "xl.v2", home) == file
    with pytest.raises(SpecError, match="'xl' is not a file"):
        find("model", "xl", home)


def test_two_files_of_one_name_are_refused_with_both(home: Path) -> None:
    first, second = (written(home / "loras" / folder / "grain.safetensors") for folder in ("a", "b"))
    with pytest.raises(SpecError) as refused:
        find("lora", "grain", home)
    assert str(first) in str(refused.value)
    assert str(second) in str(refused.value)
    assert find("lora", "b/grain", home) == second


def test_a_file_that_two_links_lead_to_is_one(home: Path) -> None:
    file = written(home / "loras" / "a" / "grain.safetensors")
    (home / "loras" / "b").mkdir()
    (home / "loras" / "b" / "grain.safetensors").symlink_to(file)
    (home / "loras" / "b" / "round").symlink_to(home / "loras", target_is_directory=True)
    assert find("lora", "grain", home).resolve() == file
    assert len(list(library_files(home, "lora"))) == 1


def test_an_unknown_name_is_told_with_the_nearest(home: Path) -> None:
    written(home / "loras" / "film" / "film-grain.safetensors")
    with pytest.raises(SpecError, match="the nearest is 'film-grain'"):
        find("lora", "film-grian", home)
    with pytest.raises(SpecError, match=r"is not a file$"):
        find("lora", "./film-grain", home)


def test_kinds_are_kept_apart(home: Path) -> None:
    vae = written(home / "vaes" / "same.safetensors", VAE)
    lora = written(home / "loras" / "same.safetensors")
    assert find("vae", "same", home) == vae
    assert find("lora", "same", home) == lora


def test_a_file_in_a_folder_of_another_kind_is_found_by_what_it_holds(home: Path) -> None:
    vae = written(home / "models" / "xl.vae.safetensors", VAE)
    written(home / "models" / "xl.safetensors")
    assert find("vae", "xl.vae", home) == vae
    with pytest.raises(SpecError, match="'xl' is not a file"):
        find("vae", "xl", home)


def test_a_folder_of_a_model_is_one_file_and_what_is_below_metrics_is_none(home: Path) -> None:
    written(home / "models" / "xl" / "unet" / "a.safetensors")
    (home / "models" / "xl" / "model_index.json").write_text("{}")
    written(home / "models" / "metrics" / "inception.safetensors")
    written(home / "models" / ".hidden" / "b.safetensors")
    assert [each.name for each in library_files(home, "model")] == ["xl"]
    assert find("model", "xl", home) == home / "models" / "xl"


COMFY = ("models/checkpoints/c", "models/loras/l", "models/vae/v", "models/embeddings/e", "models/clip/t")
WEBUI = (
    *("models/Stable-diffusion/c", "models/Lora/l", "models/VAE/v", "embeddings/e", "models/text_encoder/t"),
    "models/ESRGAN/upscaler",
)
INVOKE = ("models/sdxl/main/c", "models/sdxl/lora/l", "models/sdxl/vae/v", "models/sd-1/embedding/e")


@pytest.mark.parametrize(
    ("files", "linked"),
    [(COMFY, ""), (COMFY, "models"), (WEBUI, ""), (WEBUI, "models"), (INVOKE, ""), (INVOKE, "models")],
)
def test_the_folders_of_other_programs_are_known(
    files: tuple[str, ...], linked: str, home: Path, tmp_path: Path
) -> None:
    program = tmp_path / "program"
    for name in files:
        written(program / f"{name}.safetensors")
    link(home, program / linked)
    found = {each.name: each.kind for each in library_files(home)}
    kinds = {"c": "model", "l": "lora", "v": "vae", "e": "embedding", "t": "text_encoder"}
    assert found == {
        f"{name}.safetensors": kind for name, kind in kinds.items() if any(f.endswith(f"/{name}") for f in files)
    }


def test_a_folder_of_no_known_layout_is_read_by_what_its_files_hold(home: Path, tmp_path: Path) -> None:
    lora = written(tmp_path / "mine" / "0f2c" / "same.safetensors")
    vae = written(tmp_path / "mine" / "77ab" / "same.safetensors", VAE)
    link(home, tmp_path / "mine")
    assert find("lora", "same", home) == lora
    assert find("vae", "same", home) == vae
    with pytest.raises(SpecError, match="'same' is not a file"):
        find("embedding", "same", home)


def test_extra_paths_of_comfyui_are_read(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISK", str(tmp_path / "disk"))
    file = tmp_path / "ComfyUI" / "extra_model_paths.yaml"
    file.parent.mkdir()
    file.write_text(
        "comfyui:\n  base_path: $DISK/\n  is_default: true\n  checkpoints: big/checkpoints/\n"
        "  text_encoders: |\n    a/\n    b/\nother:\n  base_path: ../webui\n  loras: models/Lora\n  custom_nodes: c\n"
    )
    lora = written(tmp_path / "webui" / "models" / "Lora" / "l.safetensors")
    text = written(tmp_path / "disk" / "b" / "t.safetensors")
    model = written(tmp_path / "ComfyUI" / "models" / "checkpoints" / "m.safetensors")
    link(home, tmp_path / "ComfyUI")
    assert find("lora", "l", home).resolve() == lora
    assert find("text_encoder", "t", home) == text
    assert find("model", "m", home) == model
    link(other := tmp_path / "other-home", file)
    assert find("lora", "l", other).resolve() == lora
    file.write_text("a: [")
    with pytest.raises(SpecError, match=r"extra_model_paths\.yaml:\d+: not YAML"):
        find("lora", "l", other)


def test_a_link_is_remembered_and_forgotten(home: Path, tmp_path: Path) -> None:
    written(tmp_path / "a" / "loras" / "x.safetensors")
    link(home, tmp_path / "a")
    assert linked_folders(home) == [tmp_path / "a"]
    with pytest.raises(SpecError, match="linked already"):
        link(home, tmp_path / "a" / "loras" / "..")
    with pytest.raises(SpecError, match=r"the nearest is|is not one of"):
        unlink(home, tmp_path / "b")
    assert unlink(home, tmp_path / "a") == tmp_path / "a"
    assert linked_folders(home) == []
    with pytest.raises(SpecError, match="no folder is linked"):
        unlink(home, tmp_path / "a")


@pytest.mark.parametrize(
    ("folder", "says"), [("none", "does not exist"), ("file", "is a file"), ("home/x", "in the home"), ("", "inside")]
)
def test_what_cannot_be_linked_is_told(folder: str, says: str, home: Path, tmp_path: Path) -> None:
    (home / "x").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(SpecError, match=says):
        link(home, tmp_path / folder)
    assert not (home / LINKS).exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"folders": 3}', '{"folders": [3]}', "[" * 100_000, "\xff"])
def test_a_damaged_record_of_links_is_told(text: str, home: Path) -> None:
    home.mkdir()
    (home / LINKS).write_bytes(text.encode("latin-1"))
    with pytest.raises(SpecError, match="link the folders again"):
        find("lora", "x", home)


def test_a_linked_folder_that_is_gone_is_named(home: Path, tmp_path: Path) -> None:
    home.mkdir()
    (home / LINKS).write_text(json.dumps({"folders": [str(tmp_path / "gone")]}))
    assert folders_in(tmp_path / "gone") == ()
    with pytest.raises(SpecError, match="gone is not there"):
        find("lora", "x", home)
