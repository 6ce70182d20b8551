"""`freescale models`: what it lists, hashes, and linked folders."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from flows.cli import app as cli
from stages.models.folder import EMBEDDED_MODELS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Command = Callable[..., tuple[int, str, str]]

LORA = {"unet.x.attn2.to_k.lora_A.weight": (4, 768), "unet.x.attn2.to_k.lora_B.weight": (320, 4)}


def written(path: Path, tensors: dict[str, tuple[int, ...]], **metadata: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.zeros(shape, np.float16) for name, shape in tensors.items()}, path, metadata or None)
    return path


@pytest.fixture
def freescale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command with the home `home`; return its exit code and what it wrote on both streams."""

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["freescale", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0), *capsys.readouterr()

    monkeypatch.setenv("FREESCALE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for module in ("folder", "locate"):
        monkeypatch.setattr(f"stages.models.{module}.EMBEDDED_MODELS", {"shapes": EMBEDDED_MODELS["shapes"]})
    return run


def listed(freescale: Command, *words: str) -> dict[str, dict[str, Any]]:
    code, out, _ = freescale("models", "--json", *words)
    assert code == 0
    return {row["name"]: row for row in json.loads(out)}


def test_every_kind_is_listed_with_what_it_is(freescale: Command, tmp_path: Path) -> None:
    home = tmp_path / "home"
    tags = json.dumps({"10_x": {"film grain": 9}})
    lora = written(home / "loras" / "a" / "grain.safetensors", LORA, ss_tag_frequency=tags, sshs_model_hash="ab" * 32)
    written(home / "vaes" / "fix.safetensors", {"decoder.conv_in.weight": (8, 4, 3, 3)})
    written(home / "embeddings" / "easy.safetensors", {"clip_l": (2, 768), "clip_g": (2, 1280)})
    (home / "models").mkdir()
    (home / "models" / "cut.safetensors").write_bytes(lora.read_bytes()[:-4])
    (home / "models" / "old.ckpt").write_bytes(b"PK")
    written(home / "models" / "net.safetensors", {"control_model.zero_convs.0.0.weight": (1,)})
    rows = listed(freescale)
    assert list(rows) == ["shapes", "cut", "old", "a/grain", "easy", "fix", "net"]
    assert [row["kind"] for row in rows.values()] == ["model", "model", "model", "lora", "embedding", "vae", "other"]
    assert rows["shapes"]["native"] == "128x128"
    grain = rows["a/grain"]
    assert (grain["family"], grain["dtype"], grain["triggers"]) == ("SD 1.5", "float16", ["film grain"])
    assert (grain["sha256"], grain["autov3"]) == ("", "ab" * 6)
    assert rows["easy"]["triggers"] == ["easy"]
    assert "is cut off" in rows["cut"]["error"]
    assert "pickled" in rows["old"]["why"]
    assert "of the kind model" not in rows["net"]["why"]
    code, out, _ = freescale("models")
    assert code == 0
    assert all(name in out for name in (*rows, "is cut off", "film grain", "abababababab (AutoV3)"))


def test_hashes_are_made_when_asked_for_and_remembered(
    freescale: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.models.file_hashes.SETTLED_SECONDS", -1.0)
    lora = written(tmp_path / "home" / "loras" / "grain.safetensors", LORA)
    data = lora.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    assert listed(freescale)["grain"]["autov2"] == ""
    for words in (("--hash",), ()):
        row = listed(freescale, *words)["grain"]
        assert row["sha256"] == hashlib.sha256(data).hexdigest()
        assert row["autov2"] == row["sha256"][:10]
        assert row["autov3"] == hashlib.sha256(data[start:]).hexdigest()[:12]


def test_a_folder_of_another_program_is_linked_in_place(freescale: Command, tmp_path: Path) -> None:
    program = tmp_path / "ComfyUI" / "models"
    lora = written(program / "loras" / "grain.safetensors", LORA)
    (program / "checkpoints").mkdir()
    code, out, _ = freescale("models", "add", "ComfyUI")
    assert code == 0
    assert out.splitlines() == [f"model: {program / 'checkpoints'}", f"lora: {program / 'loras'}"]
    assert listed(freescale)["grain"]["path"] == str(lora)
    lora.unlink()
    for folder in ("loras", "checkpoints", ""):
        (program / folder).rmdir()
    (tmp_path / "ComfyUI").rmdir()
    assert "not there" in listed(freescale)["ComfyUI"]["error"]
    assert freescale("models", "remove", "ComfyUI")[0] == 0
    assert set(listed(freescale)) == {"shapes"}


def test_a_file_in_a_folder_of_another_kind_is_told(freescale: Command, tmp_path: Path) -> None:
    written(tmp_path / "home" / "models" / "grain.safetensors", LORA)
    row = listed(freescale)["grain"]
    assert row["kind"] == "lora"
    assert row["why"].endswith("it lies in a folder of the kind model")


def test_a_transformer_is_listed_by_its_family(freescale: Command, tmp_path: Path) -> None:
    """One that is rendered with, and one that is refused."""
    models = tmp_path / "home" / "models"
    written(
        models / "dev.safetensors", {"double_blocks.0.img_attn.qkv.weight": (9, 3), "vae.decoder.conv_in.weight": (1,)}
    )
    hunyuan = "HunyuanVideo or HunyuanImage"
    written(models / "hunyuan.safetensors", {"txt_in.individual_token_refiner.blocks.0.norm1.weight": (9,)})
    rows = listed(freescale)
    assert [rows[name]["what"] for name in ("dev", "hunyuan")] == ["transformer", "transformer"]
    assert [rows[name]["family"] for name in ("dev", "hunyuan")] == ["FLUX.1", hunyuan]
    assert rows["dev"]["error"] is None
    assert "--config gives the diffusers folder" in rows["dev"]["why"]
    assert f"is {hunyuan}, which is not read from a single file" in rows["hunyuan"]["error"]
