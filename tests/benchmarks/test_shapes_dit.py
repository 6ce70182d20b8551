"""The training of `shapes-dit`: its optimiser, its batches, its resume, and the folder that it packs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from diffusers import FluxPipeline
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTokenizer

from benchmarks.shapes_dit import train
from benchmarks.shapes_dit.muon import MuonAdamW, orthogonal, use_muon
from stages.shapes.scenes import BACKGROUNDS, COLORS, SHAPES, TEXTURES, Scene, sample_scene

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("shape", [(48, 48), (16, 64), (64, 16)])
def test_newton_schulz_brings_all_singular_values_near_one(shape: tuple[int, int]) -> None:
    given = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    made = orthogonal(given)
    values = torch.linalg.svdvals(made)
    assert (values.min() > 0.3) & (values.max() < 1.3)
    u, _, vh = torch.linalg.svd(given, full_matrices=False)
    cosine = torch.cosine_similarity(made.flatten(1), (u @ vh).flatten(1))
    assert (cosine > 0.95).all()


def test_muon_steps_as_torch_does_and_adamw_takes_the_rest() -> None:
    g = torch.Generator().manual_seed(0)
    start = {"matrix": torch.randn(24, 48, generator=g), "bias": torch.randn(24, generator=g)}
    ours, stock = ({name: nn.Parameter(value.clone()) for name, value in start.items()} for _ in range(2))
    use_muon([ours["matrix"]])
    common = {"lr": 1e-2, "weight_decay": 0.1}
    both = MuonAdamW(ours.values(), betas=(0.9, 0.99), **common)
    muon = torch.optim.Muon([stock["matrix"]], adjust_lr_fn="match_rms_adamw", **common)
    adam = torch.optim.AdamW([stock["bias"]], betas=(0.9, 0.99), **common)
    for _ in range(3):
        for name, value in start.items():
            ours[name].grad = torch.randn(value.shape, generator=g)
            stock[name].grad = ours[name].grad.clone()
        for optimizer in (both, muon, adam):
            optimizer.step()
    torch.testing.assert_close(ours["bias"], stock["bias"], atol=0, rtol=0)
    moved = stock["matrix"] - start["matrix"]
    assert (ours["matrix"] - stock["matrix"]).norm() < 0.03 * moved.norm()  # torch's products are in bfloat16


def test_the_loss_counts_a_wrong_mean_most() -> None:
    wave = torch.ones(1, 4, 8, 8)
    wave[..., ::2] = -1
    assert train.velocity_loss(wave).item() == pytest.approx(1.0)
    assert train.velocity_loss(torch.ones(1, 4, 8, 8)).item() == pytest.approx(1 + 2 + 4)


def test_the_learning_rate_rises_stays_and_falls_to_zero() -> None:
    shares = [train.linear_tail(step, 1000) for step in (0, 59, 600, 825, 1000)]
    assert shares == pytest.approx([1 / 60, 1, 1, 0.5, 0])


def test_every_word_of_every_caption_is_one_token() -> None:
    tokenizer = train.t5_tokenizer()
    for index in range(max(map(len, (COLORS, SHAPES, TEXTURES, BACKGROUNDS)))):
        names = [list(group)[index % len(group)] for group in (COLORS, SHAPES, TEXTURES, BACKGROUNDS)]
        caption = Scene(*names, (0.0, 0.0), 0.5, 0.0, 0).caption
        for words in (
            caption,
            caption[0].upper() + caption[1:],
            caption.replace(" on ", " over "),
            f"a plain {names[0]}",
        ):
            tokens = tokenizer(words).input_ids
            assert len(tokens) == len(words.split()) + 1 <= train.TEXT_TOKENS
            assert tokenizer.unk_token_id not in tokens
    assert tokenizer("").input_ids == [tokenizer.eos_token_id]


def test_a_tenth_of_the_captions_is_empty() -> None:
    chances = [step / 1000 for step in range(1000)]
    words = [train.caption(7, 3, chance) for chance in chances]
    assert words.count("") == 100
    assert {w.lower() for w in words if w} == {train.caption(7, 3, 0.99)}
    assert sum(w[:1].isupper() for w in words) == 100


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two scenes in batches of two, one step at each size."""
    for name, value in {"SCENES": {128: 2, 256: 2}, "SHARD": 2, "COARSE_STEPS": 1, "STEPS": 2}.items():
        monkeypatch.setattr(train, name, value)
    for name in ("COARSE_BATCH", "BATCH"):
        monkeypatch.setattr(train, name, 2)
    monkeypatch.setattr(train, "latents_of", lambda _, side: torch.ones(2, 4, side // 8, side // 8))


@pytest.mark.usefixtures("small")
def test_a_batch_follows_from_its_step(tmp_path: Path) -> None:
    first, second = train.Batches(tmp_path), train.Batches(tmp_path)
    second(0)
    one, two = first(1), second(1)
    assert one["x0"].shape == (2, 4, 32, 32)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["sigma"], first(2)["sigma"])


@pytest.mark.thorough
@pytest.mark.usefixtures("small")
def test_a_stopped_training_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for folder in (whole, stopped):
        folder.mkdir()
    monkeypatch.setattr(train, "linear_tail", lambda step, total: 1.0)
    train.train(whole)
    monkeypatch.setattr(train, "STEPS", 1)
    train.train(stopped)
    monkeypatch.setattr(train, "STEPS", 2)
    train.train(stopped)
    one, two = (load_file(folder / "transformer.safetensors") for folder in (whole, stopped))
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


def test_the_packed_folder_opens_as_a_stock_pipeline_and_draws(tmp_path: Path) -> None:
    modules = train.new_modules()
    weights = {
        f"ema.{name}.{k}": v.contiguous() for name, module in modules.items() for k, v in module.state_dict().items()
    }
    save_file({k: v.clone() for k, v in weights.items()}, tmp_path / "transformer.safetensors")
    train.pack(tmp_path, tmp_path / "model")
    assert sum(f.stat().st_size for f in (tmp_path / "model").rglob("*") if f.is_file()) < 16e6
    pipeline = FluxPipeline.from_pretrained(tmp_path / "model", dtype=torch.float32, local_files_only=True)
    assert isinstance(pipeline.tokenizer, CLIPTokenizer)
    pipeline.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 2, "height": 64, "width": 96, "max_sequence_length": 16, "output_type": "pt"}
    seeded = torch.Generator().manual_seed(0)
    image = pipeline(sample_scene(0).caption, negative_prompt="", true_cfg_scale=3.0, generator=seeded, **call).images
    assert image.shape == (1, 3, 64, 96)
    assert image.std() > 0.01
