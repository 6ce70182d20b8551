"""Train the embedded model `shapes-dit`: a FLUX in miniature on the latents of `shapes`, with its text encoder.

    python -m benchmarks.shapes_dit.train all --work build/shapes-dit      # one thread: two hours of CPU
    python -m benchmarks.shapes_dit.train pack --work build/shapes-dit --out stages/shapes_dit/model

Deterministic on one kind of processor with one thread, and resumable: start the command again, and it goes on from the
last saved state, at most two minutes old. Every batch is drawn from a generator keyed by its step.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast

from benchmarks.shapes.train import caption_of, steps, training
from benchmarks.shapes_dit.muon import MuonAdamW, use_muon
from stages.shapes.scenes import BACKGROUNDS, COLORS, SHAPES, TEXTURES, draw, sample_scene, stream

SHAPES_MODEL = Path(__file__).parents[2] / "stages" / "shapes" / "model"
SIDE = 256  # pixels, the training size
# The first steps are on small pictures, as large models begin: a step costs half as much and sees twice the pictures.
COARSE_SIDE, COARSE_STEPS, COARSE_BATCH = 128, 1000, 32
STEPS, BATCH = 1850, 16
SCENES = {COARSE_SIDE: 8000, SIDE: 5000}  # training scenes, seeds 0…
SHARD = 500  # scenes encoded between two saved files
RATE, WEIGHT_DECAY, AVERAGE = 2e-3, 1e-2, 0.998
TEXT_TOKENS = 16


# ---------------------------------------------------------------- the networks


def new_transformer() -> FluxTransformer2DModel:
    """FLUX.1's topology and module names at toy width; every block passes its input on at first."""
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=6,
        attention_head_dim=32,
        num_attention_heads=6,
        joint_attention_dim=96,
        pooled_projection_dim=48,
        guidance_embeds=False,
        axes_dims_rope=(4, 14, 14),
    )
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear) and (name == "proj_out" or "norm" in name):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return transformer


def block_matrices(transformer: FluxTransformer2DModel) -> list[nn.Parameter]:
    """Return the matrices of attention and feed-forward in all blocks; modulations are not among them."""
    named = transformer.named_parameters()
    return [p for name, p in named if "transformer_blocks" in name and "norm" not in name and p.ndim == 2]


def new_t5(tokenizer: T5TokenizerFast) -> T5EncoderModel:
    """T5 v1.1's encoder with two layers of width 96."""
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=96,
        d_kv=24,
        d_ff=256,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return T5EncoderModel(config)


def t5_tokenizer() -> T5TokenizerFast:
    """A T5 tokenizer in which each word of the captions is one token."""
    words = {w for group in (COLORS, BACKGROUNDS, SHAPES, TEXTURES) for name in group for w in name.split()}
    words |= {"a", "an", "A", "An", "on", "over", "in"}
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocab = special + [(f"\u2581{word}", -1.0) for word in sorted(words)]
    return T5TokenizerFast(vocab=vocab, extra_ids=0, model_max_length=TEXT_TOKENS)


def pooled_clip() -> CLIPTextModel:
    """The second text encoder of `shapes`, which was trained whole, without its projection; it stays as it is."""
    folder = SHAPES_MODEL / "text_encoder_2"
    clip = CLIPTextModel(CLIPTextConfig.from_pretrained(folder))
    weights = load_file(folder / "model.safetensors")
    names = clip.state_dict().keys()
    prefix = "" if any(name.startswith("text_model.") for name in names) else "text_model."
    clip.load_state_dict({name: weights[prefix + name].float() for name in names})
    return clip.eval().requires_grad_(False)


def shapes_vae() -> AutoencoderKL:
    vae = AutoencoderKL.from_pretrained(SHAPES_MODEL / "vae", dtype=torch.float32)
    vae.register_to_config(shift_factor=0.0)  # FluxPipeline adds it and allows no None
    return vae.to(memory_format=torch.channels_last).eval().requires_grad_(False)


# ---------------------------------------------------------------- latents of the training scenes


@torch.no_grad()
def latents_of(work: Path, side: int) -> Tensor:
    """Return the scaled latents (N, 4, side/8, side/8) of the training scenes, encoded once into files of `SHARD`."""
    vae, shards = shapes_vae(), []
    for first in range(0, SCENES[side], SHARD):
        path = work / f"latents-{side}-{first:05}.safetensors"
        if not path.exists():
            means = []
            for at in range(first, first + SHARD, 4):
                batch = torch.stack([draw(sample_scene(seed), side, side) for seed in range(at, at + 4)])
                batch = batch.contiguous(memory_format=torch.channels_last)
                means.append(vae.encode(batch).latent_dist.mean)
            save_file({"latents": torch.cat(means).half().contiguous()}, path.with_suffix(".partial"))
            path.with_suffix(".partial").replace(path)
            print(f"encoded the scenes {first} to {first + SHARD} at {side} pixels", flush=True)
        shards.append(load_file(path)["latents"].float())
    return torch.cat(shards) * vae.config.scaling_factor


# ---------------------------------------------------------------- training


def linear_tail(step: int, total: int) -> float:
    """Return the share of the learning rate at `step`: up over 60 steps, flat, down to 0 over the last 35 %."""
    return min(1.0, (step + 1) / 60, (total - step) / (0.35 * total))


def velocity_loss(error: Tensor) -> Tensor:
    """Error of the velocity (B, 4, h, w), plus that of the means over 4x4 blocks and over the picture.

    The plain loss hardly sees a wrong colour of the whole ground; `benchmarks.shapes.train.denoising_loss` says why.
    """
    blocks, whole = F.avg_pool2d(error, 4), error.mean(dim=(-2, -1))
    return error.square().mean() + 2 * blocks.square().mean() + 4 * whole.square().mean()


def caption(seed: int, step: int, chance: float) -> str:
    """Return the scene's caption a little varied; for a tenth of all chances the empty one, as guidance needs."""
    words = caption_of(seed, step)
    if chance < 0.1:
        return ""
    return words[0].upper() + words[1:] if chance < 0.2 else words


class Batches:
    """What a step trains on; everything in it follows from the number of the step."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.latents: dict[int, Tensor] = {}
        self.clip = pooled_clip()
        self.tokenizer = CLIPTokenizer.from_pretrained(SHAPES_MODEL / "tokenizer_2")
        self.tokenizer_2 = t5_tokenizer()

    def side(self, step: int) -> tuple[int, int]:
        """Return the side of the pictures and their number."""
        return (COARSE_SIDE, COARSE_BATCH) if step < COARSE_STEPS else (SIDE, BATCH)

    def tokens(self, tokenizer: Any, captions: list[str]) -> Tensor:
        rows = tokenizer(
            captions, padding="max_length", max_length=TEXT_TOKENS, truncation=True, return_tensors="pt"
        ).input_ids
        return torch.as_tensor(rows)

    def __call__(self, step: int) -> dict[str, Tensor]:
        """Return latents x0 and noise (B, 4, h, w), sigma (B,), pooled rows (B, 48) and T5's tokens (B, 16)."""
        side, count = self.side(step)
        if side not in self.latents:
            self.latents = {side: latents_of(self.work, side)}
        g = stream(step, "shapes-dit batch")
        seeds = torch.randint(0, SCENES[side], (count,), generator=g)
        chances = torch.rand(count, generator=g).tolist()
        words = [caption(seed, step, chance) for seed, chance in zip(seeds.tolist(), chances, strict=True)]
        x0 = self.latents[side][seeds]
        with torch.no_grad():
            pooled = self.clip(self.tokens(self.tokenizer, words)).pooler_output
        return {
            "x0": x0,
            "noise": torch.randn(x0.shape, generator=g),
            "sigma": (torch.arange(count) + torch.rand(count, generator=g)) / count,  # an even spread in every batch
            "pooled": pooled,
            "tokens": self.tokens(self.tokenizer_2, words),
        }


def predicted_velocity(modules: nn.ModuleDict, batch: dict[str, Tensor]) -> Tensor:
    """Return the transformer's output (B, 4, h, w) for the noised latents, packed as `FluxPipeline` does."""
    x0, sigma = batch["x0"], batch["sigma"]
    count, channels, h, w = x0.shape
    noisy = torch.lerp(x0, batch["noise"], sigma[:, None, None, None])
    rows = modules["t5"](batch["tokens"])[0]
    packed = modules["transformer"](
        hidden_states=FluxPipeline._pack_latents(noisy, count, channels, h, w),
        encoder_hidden_states=rows,
        pooled_projections=batch["pooled"],
        timestep=sigma,
        img_ids=FluxPipeline._prepare_latent_image_ids(count, h // 2, w // 2, "cpu", torch.float32),
        txt_ids=torch.zeros(rows.shape[1], 3),
    ).sample
    unpacked: Tensor = FluxPipeline._unpack_latents(packed, 8 * h, 8 * w, 8)
    return unpacked


def new_modules() -> dict[str, nn.Module]:
    torch.manual_seed(3)
    return {"transformer": new_transformer(), "t5": new_t5(t5_tokenizer())}


def train(work: Path) -> None:
    modules = new_modules()
    use_muon(block_matrices(modules["transformer"]))
    state = training(modules, work / "transformer.safetensors", RATE, WEIGHT_DECAY, MuonAdamW)
    state.modules.train()
    batches = Batches(work)
    for step, losses in steps(state, STEPS, RATE, work / "transformer.jsonl", every=25, share=linear_tail):
        batch = batches(step)
        loss = velocity_loss(predicted_velocity(state.modules, batch) - (batch["noise"] - batch["x0"]))
        state.descend(loss, AVERAGE)
        losses.append(loss.item())


# ---------------------------------------------------------------- the pipeline folder


def pack(work: Path, out: Path) -> None:
    """Write the averages as a `FluxPipeline` folder, weights stored in float16."""
    modules = new_modules()
    trained = load_file(work / "transformer.safetensors")
    for name, module in modules.items():
        prefix = f"ema.{name}."
        module.load_state_dict({k.removeprefix(prefix): v for k, v in trained.items() if k.startswith(prefix)})
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=shapes_vae(),
        text_encoder=pooled_clip(),
        tokenizer=CLIPTokenizer.from_pretrained(SHAPES_MODEL / "tokenizer_2"),
        text_encoder_2=modules["t5"],
        tokenizer_2=t5_tokenizer(),
        transformer=modules["transformer"],
    )
    pipeline.to(torch.float16).save_pretrained(out, safe_serialization=True)
    for path in out.glob("*/config.json"):  # without where its weights once were
        config = json.loads(path.read_text())
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2) + "\n")
    total = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    print(f"{out}: {total / 1e6:.2f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phase", choices=("train", "pack", "all"))
    parser.add_argument("--work", type=Path, default=Path("build/shapes-dit"))
    parser.add_argument("--out", type=Path, default=Path("stages/shapes_dit/model"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # costs more than the step, and finds nothing here
    options.work.mkdir(parents=True, exist_ok=True)
    if options.phase in ("train", "all"):
        train(options.work)
    if options.phase in ("pack", "all"):
        pack(options.work, options.out)


if __name__ == "__main__":
    main()
