"""Folders as the hub leaves them: one variant of the weights alone, weights in several files, links into a cache."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.errors import SpecError
from stages.models.folder import EMBEDDED, describe
from stages.models.load import Models
from stages.spec import ModelSpec

if TYPE_CHECKING:
    from pathlib import Path

CPU, SECOND = torch.device("cpu"), "text_encoder_2"
NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")


def weights_in(folder: Path) -> Path:
    return next(folder.glob("*.safetensors"))


def renamed(model: Path) -> None:
    """Leave the files of the variant fp16 alone, as `variant="fp16"` saves them."""
    for part in NETWORKS:
        file = weights_in(model / part)
        file.rename(file.with_suffix(".fp16.safetensors"))


def split(model: Path, variant: str = "") -> None:
    """Put the weights of each network into two files with an index."""
    for part in NETWORKS:
        file, named = weights_in(model / part), variant and f".{variant}"
        tensors = load_file(file)
        names = sorted(tensors)
        halves = names[: len(names) // 2], names[len(names) // 2 :]
        index = {}
        for at, half in enumerate(halves, 1):
            shard = f"{file.stem}{named}-0000{at}-of-00002.safetensors"
            save_file({name: tensors[name] for name in half}, file.with_name(shard), {"format": "pt"})
            index |= dict.fromkeys(half, shard)
        file.with_name(f"{file.stem}.safetensors.index{named}.json").write_text(
            json.dumps({"metadata": {"total_size": 1}, "weight_map": index})
        )
        file.unlink()


def split_fp16(model: Path) -> None:
    split(model, "fp16")


@pytest.mark.parametrize("change", [renamed, split, split_fp16])
def test_the_weights_are_found_whatever_their_files_are_called(change: object, tmp_path: Path) -> None:
    model = tmp_path / "m"
    shutil.copytree(EMBEDDED, model)
    assert callable(change)
    change(model)
    found, wanted = (
        Models(describe(ModelSpec(name=name), tmp_path), "float32", CPU) for name in (str(model), "shapes")
    )
    for one, other in ((found.vae, wanted.vae), (found.text_encoder(SECOND), wanted.text_encoder(SECOND))):
        state = one.state_dict()
        assert all(torch.equal(state[name], each) for name, each in other.state_dict().items())


def test_two_variants_and_no_plain_file_are_refused_with_both(tmp_path: Path) -> None:
    model = tmp_path / "m"
    shutil.copytree(EMBEDDED, model)
    renamed(model)
    file = weights_in(model / "unet")
    shutil.copy(file, file.with_name("diffusion_pytorch_model.non_ema.safetensors"))
    with pytest.raises(SpecError, match="in the variants fp16 and non_ema; keep the files of one"):
        describe(ModelSpec(name=str(model)), tmp_path)


def test_a_plain_file_comes_before_a_variant(tmp_path: Path) -> None:
    model = tmp_path / "m"
    shutil.copytree(EMBEDDED, model)
    before = describe(ModelSpec(name=str(model)), tmp_path).fingerprints
    for part in NETWORKS:
        weights_in(model / part).with_suffix(".fp16.safetensors").write_bytes(b"other")
    assert describe(ModelSpec(name=str(model)), tmp_path).fingerprints == before


@pytest.mark.parametrize("revision", [None, "abc123"])
def test_a_snapshot_of_links_in_the_hubs_cache_is_a_model(
    revision: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the hub lays it out: files by their hash in `blobs`, links to them in `snapshots/COMMIT`."""
    from huggingface_hub import constants

    root = tmp_path / "hub" / "models--someone--shapes"
    snapshot = root / "snapshots" / "abc123"
    for at, file in enumerate(path for path in sorted(EMBEDDED.rglob("*")) if path.is_file()):
        blob = root / "blobs" / f"{at:040x}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, blob)
        link = snapshot / file.relative_to(EMBEDDED)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("abc123")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    info = describe(ModelSpec(name="someone/shapes", revision=revision), tmp_path)
    assert info.folder == snapshot
    assert info.fingerprints == describe(ModelSpec(), tmp_path).fingerprints
    assert Models(info, "float32", CPU).vae.config.latent_channels == 4
