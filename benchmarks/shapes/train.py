"""Train the embedded model `shapes`: VAE, then text encoders and UNet, on procedural scenes.

    python -m benchmarks.shapes.train all --work build/shapes      # two cores: about an hour
    python -m benchmarks.shapes.train pack --work build/shapes --out stages/shapes/model

Deterministic on one kind of processor with one thread count, and resumable: every batch is drawn from a
generator keyed by (phase, step), and each phase saves its whole state every few minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from stages.shapes.scenes import BACKGROUNDS, COLORS, SHAPES, TEXTURES, draw, sample_scene, stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from diffusers.models.attention_processor import Attention

BUCKETS = (
    (16, 16),
    (14, 18),
    (18, 14),
    (13, 20),
    (20, 13),
    (11, 23),
    (23, 11),
    (9, 28),
    (28, 9),
)  # latent h, w
BUCKET_WEIGHTS = (6, 2, 2, 2, 2, 1, 1, 1, 1)
SCENES = 14_000  # training scenes, seeds 0…; the seeds from HELD_OUT on are never trained on
HELD_OUT = 1_000_000
VAE_CROPS, VAE_STEPS = 1400, 1900  # steps on 64-pixel crops, then up to VAE_STEPS on whole pictures
DECODER_STEPS = 500
UNET_STEPS, UNET_BATCH = 6600, 64


# ---------------------------------------------------------------- the networks


def new_vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
        sample_size=128,
    )


def new_unet() -> UNet2DConditionModel:
    """SDXL's topology and module names at toy width."""
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(48, 96, 112),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=1,
        attention_head_dim=(3, 6, 7),
        cross_attention_dim=96,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=16,
        projection_class_embeddings_input_dim=6 * 16 + 48,
        norm_num_groups=16,
    )


def new_text(tokenizer: CLIPTokenizer) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
        projection_dim=48,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config), CLIPTextModelWithProjection(config)


def new_tokenizer(folder: Path, further: tuple[str, ...] = ()) -> CLIPTokenizer:
    """A CLIP byte-pair tokenizer whose merges make each word of the captions one token, and `further` ones too."""
    words = sorted({w for group in (COLORS, BACKGROUNDS, SHAPES, TEXTURES) for name in group for w in name.split()})
    words += ["a", "an", "on", "over", "in", *further]
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + list("0123456789,.-'")
    vocab = letters + [f"{c}</w>" for c in letters]
    merges: list[str] = []
    pending = {word: [*word[:-1], f"{word[-1]}</w>"] for word in sorted(set(words))}
    while any(len(parts) > 1 for parts in pending.values()):
        # byte-pair encoding applies the oldest merge first, so every new merge is tried on all words at once
        first, second = next(parts for parts in pending.values() if len(parts) > 1)[:2]
        merges.append(f"{first} {second}")
        vocab.append(first + second)
        for parts in pending.values():
            for at in range(len(parts) - 1, 0, -1):
                if parts[at - 1 : at + 1] == [first, second]:
                    parts[at - 1 : at + 1] = [first + second]
    vocab += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocab)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)


# ---------------------------------------------------------------- state that survives a kill


@dataclass
class Training:
    """Networks, their averages and the optimiser of one phase; `save` and `load` make it resumable."""

    modules: nn.ModuleDict
    averages: nn.ModuleDict
    optimizer: torch.optim.AdamW
    path: Path
    step: int = 0

    def save(self) -> None:
        state = {f"now.{k}": v for k, v in self.modules.state_dict().items()}
        state |= {f"ema.{k}": v for k, v in self.averages.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            state |= {f"adam.{index}.{k}": torch.as_tensor(v) for k, v in moments.items()}
        partial = self.path.with_suffix(".partial")
        save_file({k: v.clone().contiguous() for k, v in state.items()}, partial, {"step": str(self.step)})
        partial.replace(self.path)

    def load(self) -> None:
        if not self.path.exists():
            return
        from safetensors import safe_open

        state = load_file(self.path)
        with safe_open(self.path, "pt") as file:
            self.step = int(file.metadata()["step"])
        self.modules.load_state_dict({k[4:]: v for k, v in state.items() if k.startswith("now.")})
        self.averages.load_state_dict({k[4:]: v for k, v in state.items() if k.startswith("ema.")})
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in state.items():
            if key.startswith("adam."):
                _, index, name = key.split(".")
                moments.setdefault(int(index), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})

    def descend(self, loss: Tensor, decay: float) -> None:
        """Take one step down `loss`, with gradients cut to a norm of 1, and follow it with the averages."""
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
        self.optimizer.step()
        self.average(decay)

    @torch.no_grad()
    def average(self, decay: float) -> None:
        warm = min(decay, (1 + self.step) / (10 + self.step))
        for slow, fast in zip(self.averages.parameters(), self.modules.parameters(), strict=True):
            slow.lerp_(fast, 1 - warm)


def training(
    modules: dict[str, nn.Module],
    path: Path,
    rate: float,
    decay: float,
    optimizer: type[torch.optim.AdamW] = torch.optim.AdamW,
) -> Training:
    from copy import deepcopy

    held = nn.ModuleDict(modules)
    chosen = optimizer(held.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=decay)
    state = Training(held, deepcopy(held).requires_grad_(False), chosen, path)
    state.load()
    return state


def cosine(step: int, total: int) -> float:
    """Return the share of the learning rate at `step`: up over 100 steps, then down a cosine to a fiftieth."""
    return min(1.0, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / total)))


def steps(
    state: Training,
    total: int,
    rate: float,
    log: Path,
    every: int = 100,
    share: Callable[[int, int], float] = cosine,
) -> Iterator[tuple[int, list[float]]]:
    """Yield (step, losses to append to), the learning rate at its `share` of `rate`, saving and logging as it goes."""
    losses: list[float] = []
    began = saved = time.monotonic()
    worked = time.process_time()
    for step in range(state.step, total):
        for group in state.optimizer.param_groups:
            group["lr"] = rate * share(step, total)
        yield step, losses
        state.step = step + 1
        if state.step % every == 0 or state.step == total:
            row = {
                "step": state.step,
                "loss": sum(losses) / len(losses),
                "seconds": round(time.monotonic() - began, 1),
                "cpu_seconds": round(time.process_time() - worked, 1),
            }
            losses.clear()
            with log.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)
        if time.monotonic() - saved > 120:
            state.save()
            saved = time.monotonic()
    state.save()


# ---------------------------------------------------------------- VAE


def vae_batch(step: int) -> Tensor:
    """Whole pictures, or crops of pictures up to four times larger: the VAE must serve every level."""
    generator = stream(step, "vae batch")
    if step < VAE_CROPS:
        count, crop = 24, 64
        sizes = [128, 128, 256, 256, 384, 512]
    else:
        count, crop = 10, 128
        sizes = [128, 128, 128, 256]
    pictures = []
    for seed in torch.randint(0, HELD_OUT, (count // 2,), generator=generator).tolist():
        size = sizes[int(torch.randint(0, len(sizes), (1,), generator=generator))]
        picture = draw(sample_scene(seed), size, size)
        for _ in range(2):
            top, left = torch.randint(0, size - crop + 1, (2,), generator=generator).tolist()
            pictures.append(picture[:, top : top + crop, left : left + crop])
    return torch.stack(pictures).contiguous(memory_format=torch.channels_last)


def train_vae(work: Path) -> None:
    torch.manual_seed(1)
    state = training({"vae": new_vae().to(memory_format=torch.channels_last)}, work / "vae.safetensors", 2e-3, 1e-4)
    vae = state.modules["vae"]
    for step, losses in steps(state, VAE_STEPS, 2e-3, work / "vae.jsonl"):
        picture = vae_batch(step)
        with torch.autocast("cpu", torch.bfloat16):
            moments = vae.quant_conv(vae.encoder(picture))
        mean, logvar = moments.float().chunk(2, dim=1)
        logvar = logvar.clamp(-12, 4)
        noise = torch.randn(mean.shape, generator=stream(step, "vae posterior"))
        with torch.autocast("cpu", torch.bfloat16):
            again = vae.decoder(vae.post_quant_conv(mean + torch.exp(0.5 * logvar) * noise))
        error = again.float() - picture
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        loss = error.abs().mean() + error.square().mean() + 0.5 * edges + 1e-4 * kl
        state.descend(loss, 0.995)
        losses.append(error.detach().abs().mean().item())


def trained_vae(work: Path) -> AutoencoderKL:
    """The averages of the VAE's training, with the sharpened decoder where there is one."""
    state = load_file(work / "vae.safetensors")
    weights = {k.removeprefix("ema.vae."): v for k, v in state.items() if k.startswith("ema.vae.")}
    if (work / "decoder.safetensors").exists():
        state = load_file(work / "decoder.safetensors")
        weights |= {k.removeprefix("ema."): v for k, v in state.items() if k.startswith("ema.")}
    vae = new_vae().to(memory_format=torch.channels_last)
    vae.load_state_dict(weights)
    return vae


def train_decoder(work: Path) -> None:
    """Sharpen the decoder for the encoder as it is: latents, and all that was trained on them, stay the same."""
    vae = trained_vae(work).requires_grad_(False)
    networks = {"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv}
    for network in networks.values():
        network.requires_grad_(True)
    state = training(networks, work / "decoder.safetensors", 1e-3, 1e-4)
    for step, losses in steps(state, DECODER_STEPS, 1e-3, work / "decoder.jsonl"):
        picture = vae_batch(VAE_CROPS + DECODER_STEPS + step)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                latents = vae.quant_conv(vae.encoder(picture)).float().chunk(2, dim=1)[0]
            again = vae.decoder(vae.post_quant_conv(latents))
        error = again.float() - picture
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        loss = error.abs().mean() + error.square().mean() + edges
        state.descend(loss, 0.99)
        losses.append(error.detach().abs().mean().item())


# ---------------------------------------------------------------- latents of the training scenes


def bucket_of(seed: int) -> tuple[int, int]:
    draw_ = torch.rand((), generator=stream(seed, "bucket")).item() * sum(BUCKET_WEIGHTS)
    for bucket, weight in zip(BUCKETS, BUCKET_WEIGHTS, strict=True):
        draw_ -= weight
        if draw_ < 0:
            return bucket
    return BUCKETS[0]


@torch.no_grad()
def make_latents(work: Path) -> None:
    """Encode the training scenes once, by bucket: means and the seeds they came from."""
    if (work / "latents.safetensors").exists():
        return
    vae = trained_vae(work)
    by_bucket: dict[tuple[int, int], list[int]] = {}
    for seed in range(SCENES):
        by_bucket.setdefault(bucket_of(seed), []).append(seed)
    out: dict[str, Tensor] = {}
    for (h, w), seeds in sorted(by_bucket.items()):
        means = []
        for at in range(0, len(seeds), 32):
            batch = [draw(sample_scene(s, w / h), 8 * h, 8 * w) for s in seeds[at : at + 32]]
            means.append(vae.encode(torch.stack(batch)).latent_dist.mean)
        out[f"{h}x{w}"] = torch.cat(means)
        out[f"{h}x{w}.seeds"] = torch.tensor(seeds)
        print(f"encoded {len(seeds)} scenes of {h}x{w}", flush=True)
    every = torch.cat([v.permute(1, 0, 2, 3).flatten(1) for k, v in out.items() if not k.endswith("seeds")], dim=1)
    out["std"] = every.std()
    print("latent mean and deviation by channel", every.mean(1).tolist(), every.std(1).tolist(), flush=True)
    save_file({k: v.contiguous() for k, v in out.items()}, work / "latents.safetensors")


# ---------------------------------------------------------------- UNet and text encoders


def caption_of(seed: int, step: int) -> str:
    """The scene's caption, its words varied a little from step to step."""
    words = sample_scene(seed).caption
    a, b = torch.rand(2, generator=stream(seed, "words", step)).tolist()
    if a < 0.3:
        words = words.replace(" on ", " over ")
    if b < 0.15 and "striped" not in words and "dotted" not in words:
        words = "a plain " + words.split(" ", 1)[1]
    return words


def embed(modules: nn.ModuleDict, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """What `StableDiffusionXLPipeline.encode_prompt` makes of these tokens."""
    one = modules["text_encoder"](tokens, output_hidden_states=True)
    two = modules["text_encoder_2"](tokens, output_hidden_states=True)
    return torch.cat((one.hidden_states[-2], two.hidden_states[-2]), -1), two.text_embeds


class Float32Attention:
    """Attention whose product runs in float32: on CPU the bfloat16 kernel is several times slower at 16 channels."""

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        projected = (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        q, k, v = (x.float().unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in projected)
        with torch.autocast("cpu", enabled=False):
            mixed = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = attn.to_out[0](mixed.transpose(1, 2).flatten(2))
        return out


def denoising_loss(error: Tensor, sigma: Tensor) -> Tensor:
    """Min-SNR weighted error of the noise, plus the error of the picture's coarse means.

    The plain loss hardly sees a wrong colour of the whole background: at sigma 3 a shift of 0.1 in the latents is
    one thousandth. So the means over 4x4 blocks and over the picture are also held, in units of the picture, as
    the multi-scale loss of arXiv 2301.11093 does. `error` is (B, 4, h, w), `sigma` (B, 1, 1, 1).
    """
    weight = torch.clamp(5 * sigma.square(), max=1.0)  # min(snr, 5) / snr, arXiv 2303.09556
    loss = (weight * error.square()).mean()
    shift = error * sigma.clamp(max=4.0)
    blocks, whole = F.avg_pool2d(shift, 4, ceil_mode=True), shift.mean(dim=(-2, -1))
    return loss + 0.5 * blocks.square().mean() + 2 * whole.square().mean()


def train_unet(work: Path) -> None:
    latents = load_file(work / "latents.safetensors")
    factor = 1 / latents["std"].item()
    tokenizer = new_tokenizer(work / "tokenizer")
    torch.manual_seed(2)
    text, text_2 = new_text(tokenizer)
    modules = {
        "unet": new_unet().to(memory_format=torch.channels_last),
        "text_encoder": text,
        "text_encoder_2": text_2,
    }
    state = training(modules, work / "unet.safetensors", 1.5e-3, 1e-3)
    state.modules.train()
    state.modules["unet"].set_attn_processor(Float32Attention())
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alphas = torch.cumprod(1 - betas, 0)
    sizes = [b for b in BUCKETS if f"{b[0]}x{b[1]}" in latents]
    shares = torch.tensor([float(len(latents[f"{h}x{w}.seeds"])) for h, w in sizes])
    for step, losses in steps(state, UNET_STEPS, 1.5e-3, work / "unet.jsonl"):
        g = stream(step, "unet batch")
        h, w = sizes[int(torch.multinomial(shares, 1, generator=g))]
        rows = torch.randint(0, len(latents[f"{h}x{w}"]), (UNET_BATCH,), generator=g)
        x0 = latents[f"{h}x{w}"][rows] * factor
        seeds = latents[f"{h}x{w}.seeds"][rows].tolist()
        words = [caption_of(s, step) for s in seeds]
        tokens = tokenizer(words, padding="max_length", max_length=16, truncation=True, return_tensors="pt").input_ids
        # stratified timesteps: an even spread in every batch
        t = ((torch.arange(UNET_BATCH) + torch.rand(UNET_BATCH, generator=g)) / UNET_BATCH * 1000).long().clamp(0, 999)
        noise = torch.randn(x0.shape, generator=g)
        keep = (torch.rand(UNET_BATCH, generator=g) > 0.1).float()[:, None]
        a = alphas[t].float()[:, None, None, None]
        noisy = (a.sqrt() * x0 + (1 - a).sqrt() * noise).contiguous(memory_format=torch.channels_last)
        prompt_embeds, pooled = embed(state.modules, tokens)
        prompt_embeds, pooled = prompt_embeds * keep[:, :, None], pooled * keep
        ids = torch.tensor([8 * h, 8 * w, 0, 0, 8 * h, 8 * w], dtype=torch.float32).expand(UNET_BATCH, 6)
        added = {"text_embeds": pooled, "time_ids": ids}
        with torch.autocast("cpu", torch.bfloat16):
            predicted = state.modules["unet"](noisy, t, prompt_embeds, added_cond_kwargs=added).sample.float()
        loss = denoising_loss(predicted - noise, ((1 - a) / a).sqrt())
        state.descend(loss, 0.999)
        losses.append(loss.item())


# ---------------------------------------------------------------- the pipeline folder


def pack(work: Path, out: Path) -> None:
    """Write the averages as a `StableDiffusionXLPipeline` folder, weights stored in float16."""
    tokenizer = new_tokenizer(work / "tokenizer")
    vae, unet, (text, text_2) = trained_vae(work), new_unet(), new_text(tokenizer)
    trained = load_file(work / "unet.safetensors")
    for name, module in {"unet": unet, "text_encoder": text, "text_encoder_2": text_2}.items():
        prefix = f"ema.{name}."
        module.load_state_dict({k.removeprefix(prefix): v for k, v in trained.items() if k.startswith(prefix)})
    vae.register_to_config(scaling_factor=1 / load_file(work / "latents.safetensors")["std"].item())
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        steps_offset=1,
        timestep_spacing="leading",
    )
    pipeline = StableDiffusionXLPipeline(
        vae=vae,
        unet=unet,
        text_encoder=text,
        text_encoder_2=text_2,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        scheduler=scheduler,
        add_watermarker=False,
    )
    pipeline.to(torch.float16).save_pretrained(out, safe_serialization=True)
    total = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    print(f"{out}: {total / 1e6:.2f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phase", choices=("vae", "decoder", "latents", "unet", "pack", "all"))
    parser.add_argument("--work", type=Path, default=Path("build/shapes"))
    parser.add_argument("--out", type=Path, default=Path("stages/shapes/model"))
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # costs more than the step, and finds nothing here
    options.work.mkdir(parents=True, exist_ok=True)
    phases = {"vae": train_vae, "decoder": train_decoder, "latents": make_latents, "unet": train_unet}
    for name, phase in phases.items():
        if options.phase in (name, "all"):
            phase(options.work)
    if options.phase in ("pack", "all"):
        pack(options.work, options.out)


if __name__ == "__main__":
    main()
