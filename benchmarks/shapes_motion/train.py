"""Train the embedded video model `shapes-motion`: VideoCrafter2's topology in miniature, on moving scenes.

    python -m benchmarks.shapes_motion.train all --work build/shapes_motion

The VAE is that of `shapes`. The spatial layers begin with the weights of `shapes`' UNet, the temporal ones as the
identity, so that the first step draws eight still pictures; the text tower first learns to say what the two encoders of
`shapes` say. Deterministic on one kind of processor with one thread count, and resumable like the training of `shapes`.
"""

from __future__ import annotations

import argparse
import json
import shutil
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from benchmarks.shapes.train import Float32Attention, Training, denoising_loss, new_tokenizer, steps, training
from stages.convert_videocrafter2 import SCHEDULER
from stages.shapes.scenes import stream
from stages.shapes_motion.clips import FRAMES, MOTIONS, Clip, draw_clip, sample_clip
from stages.videocrafter import VideoCrafterUNet

if TYPE_CHECKING:
    from collections.abc import Callable

IMAGE_MODEL = Path(__file__).parents[2] / "stages" / "shapes" / "model"
HEIGHT, WIDTH = 80, 128  # pixels: 10 x 16 latent cells, the aspect of VideoCrafter2's 320 x 512
CLIPS = 2_400  # training clips, seeds 0...; the seeds from HELD_OUT on are never trained on
HELD_OUT = 1_000_000
TEXT_STEPS, TEXT_BATCH = 300, 64
UNET_STEPS, UNET_BATCH, RATE = 1040, 4, 1e-3
LATE = 760  # from this step on, high noise is seen more often and held in units of the picture
SCALE_TO, SCALE_STEPS = 0.7, 400  # VideoCrafter2's dynamic scale
METHOD = {"restart": 0.75, "dilated_layers": "all_up", "dilation": [0.0, 0.97]}  # see README.md


# ---------------------------------------------------------------- the networks


def tokenizer_in(folder: Path) -> CLIPTokenizer:
    """The tokenizer of `shapes` with the words for motions."""
    return new_tokenizer(folder, tuple(sorted({word for motion in MOTIONS for word in motion.split()})))


def new_text(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """One tower, as wide as the two encoders of `shapes` together."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=192,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=16,
            hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=0,
        )
    )


def new_unet() -> VideoCrafterUNet:
    """Four levels, attention in space and time on the upper three: module for module VideoCrafter2's.

    Its dropout is off: so few steps need no holding back, and a step then depends on its own streams alone.
    """
    unet = VideoCrafterUNet(
        sample_size=(HEIGHT // 8, WIDTH // 8),
        block_out_channels=(48, 96, 112, 64),
        cross_attention_dim=96,
        attention_head_dim=16,
        norm_num_groups=16,
    )
    return without_dropout(unet)


def without_dropout(unet: VideoCrafterUNet) -> VideoCrafterUNet:
    """`unet`, which drops nothing also in training."""
    for module in unet.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return unet


def warm_start(unet: VideoCrafterUNet) -> int:
    """Give the spatial layers the weights of `shapes`, and make the rest do nothing; return the tensors given."""
    image = UNet2DConditionModel.from_pretrained(IMAGE_MODEL / "unet").state_dict()
    moved = {"up_blocks.0.": "up_blocks.1.", "up_blocks.1.": "up_blocks.2.", "up_blocks.2.": "up_blocks.3."}
    ours, given = unet.state_dict(), {}
    for name, tensor in image.items():
        target = next((new + name.removeprefix(old) for old, new in moved.items() if name.startswith(old)), name)
        if target in ours and ours[target].ndim == tensor.ndim:
            given[target] = _fitted(tensor.float(), ours[target])
    unet.load_state_dict(given, strict=False)
    for name, module in unet.named_modules():
        is_temporal = ".temp_attentions." in name or name.startswith("transformer_in")
        if name.endswith("proj_out") and (is_temporal or f"{name}.weight" not in given):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.zeros_(unet.time_embedding.fps_embedding.linear_2.weight)
    nn.init.zeros_(unet.time_embedding.fps_embedding.linear_2.bias)
    return len(given)


def _fitted(tensor: Tensor, ours: Tensor) -> Tensor:
    """`tensor` in the place of `ours`; where the deepest level is narrower here, the skip's channels at its end."""
    if tensor.shape == ours.shape:
        return tensor
    filled, own = ours.clone(), tuple(slice(max(n - m, 0), None) for n, m in zip(ours.shape, tensor.shape, strict=True))
    theirs = tuple(slice(max(m - n, 0), None) for n, m in zip(ours.shape, tensor.shape, strict=True))
    filled[own] = tensor[theirs]
    return filled


# ---------------------------------------------------------------- text: say what `shapes` says


class ImageText:
    """What the UNet of `shapes` is told: the second to last states of both encoders, side by side."""

    def __init__(self) -> None:
        self.tokenizer = CLIPTokenizer.from_pretrained(IMAGE_MODEL / "tokenizer")
        self.one = CLIPTextModel.from_pretrained(IMAGE_MODEL / "text_encoder").eval()
        self.two = CLIPTextModelWithProjection.from_pretrained(IMAGE_MODEL / "text_encoder_2").eval()

    @torch.no_grad()
    def states(self, captions: list[str]) -> Tensor:
        """(B, 16, 96) for captions of still scenes."""
        ids = self.tokenizer(captions, padding="max_length", max_length=16, return_tensors="pt").input_ids
        pair = [encoder(ids, output_hidden_states=True).hidden_states[-2] for encoder in (self.one, self.two)]
        return torch.cat(pair, -1).float()

    def with_motion(self, clips: list[Clip]) -> Tensor:
        """(B, 16, 96) for captions of clips: the words of the motion repeat the state before them."""
        rows = self.states([clip.caption.replace(f" {clip.motion}", "") for clip in clips])
        words = [len(clip.motion.split()) for clip in clips]
        said = (torch.cat((row[:4], row[3:4].expand(n, -1), row[4:]))[:16] for row, n in zip(rows, words, strict=True))
        return torch.stack(tuple(said))


def tokens(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """(B, 16) token numbers, filled up with 0 as OpenCLIP does."""
    rows = tokenizer(captions, padding=False).input_ids
    return torch.tensor([row + [0] * (16 - len(row)) for row in rows])


def train_text(work: Path, folder: Path | None = None) -> None:
    """Regress the tower onto the states of `shapes`, or of the packed model in `folder`, and mark the motions.

    For `shapes`, which knows no motion, the words of one repeat the word before them. Without marks the UNet is told
    of left and right by a difference a fifth of that between two colours, and does not learn them.
    """
    tokenizer = tokenizer_in(work / "tokenizer")
    torch.manual_seed(3)
    text = new_text(tokenizer)
    if folder is not None:
        load_packed(text, folder / "text_encoder" / "model.safetensors")
    known = deepcopy(text).eval().requires_grad_(False) if folder is not None else ImageText()
    state = training({"text": text}, work / "text.safetensors", 2e-3, 1e-4)
    for step, losses in steps(state, TEXT_STEPS, 2e-3, work / "text.jsonl"):
        seeds = torch.randint(0, HELD_OUT, (TEXT_BATCH,), generator=stream(step, "text batch")).tolist()
        clips = [sample_clip(seed) for seed in seeds]
        ids = tokens(tokenizer, [clip.caption for clip in clips])
        targets = known.with_motion(clips) if isinstance(known, ImageText) else known(ids).last_hidden_state
        marks = torch.stack([motion_marks(clip.motion) for clip in clips])
        loss = F.mse_loss(state.modules["text"](ids).last_hidden_state, targets + marks)
        _descend(state, loss, losses)


def motion_marks(motion: str) -> Tensor:
    """(16, 96) to add to the states of a caption: a vector of the motion's own at its last word, less of it after."""
    mark = torch.randn(96, generator=stream(MOTIONS.index(motion), "motion mark"))
    said = 3 + len(motion.split())  # its last word; the caption begins with a mark, article, colour and shape
    return torch.cat((torch.zeros(said, 96), mark[None], 0.3 * mark.expand(15 - said, -1)))


def _descend(state: Training, loss: Tensor, losses: list[float]) -> None:
    state.optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(state.modules.parameters(), 1.0)
    state.optimizer.step()
    state.average(0.995)
    losses.append(loss.item())


# ---------------------------------------------------------------- latents of the training clips


@torch.no_grad()
def make_latents(work: Path) -> None:
    """Encode the training clips once: (clips, 4, frames, h, w) float16 means, scaled."""
    if (work / "latents.safetensors").exists():
        return
    vae = AutoencoderKL.from_pretrained(IMAGE_MODEL / "vae").float().to(memory_format=torch.channels_last)
    rows = []
    for seed in range(CLIPS):
        frames = draw_clip(sample_clip(seed), FRAMES, HEIGHT, WIDTH).transpose(0, 1)
        means = vae.encode(frames.contiguous(memory_format=torch.channels_last)).latent_dist.mean
        rows.append((means * vae.config.scaling_factor).transpose(0, 1).half())
        if seed % 500 == 499:
            print(f"encoded {seed + 1} clips", flush=True)
    save_file({"latents": torch.stack(rows).contiguous()}, work / "latents.safetensors")


# ---------------------------------------------------------------- UNet and text


def load_packed(module: nn.Module, file: Path) -> None:
    """Give `module` the weights of a packed model: another stretch of training, with a fresh optimiser."""
    module.load_state_dict({k: v.float() for k, v in load_file(file).items()})


def train_unet(
    work: Path,
    total: int = UNET_STEPS,
    batch: int = UNET_BATCH,
    folder: Path | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Noise prediction under the dynamic scale, min-SNR weights and coarse means as for `shapes`.

    Begins from `shapes`, or goes on from a packed model in `folder`, either with the text tower of `train_text`.
    `dtype` is that of the UNet's products: weights, losses and attention stay in float32.
    """
    latents = load_file(work / "latents.safetensors")["latents"]
    tokenizer, text = tokenizer_in(work / "tokenizer"), None
    torch.manual_seed(4)
    text = new_text(tokenizer)
    learned = load_file(work / "text.safetensors")
    text.load_state_dict({k.removeprefix("ema.text."): v for k, v in learned.items() if k.startswith("ema.text.")})
    unet = new_unet()
    if folder is None:
        print(f"{warm_start(unet)} tensors from `shapes` of {len(unet.state_dict())}", flush=True)
    else:
        load_packed(unet, folder / "unet" / "diffusion_pytorch_model.safetensors")
    state = training({"unet": unet, "text": text}, work / "unet.safetensors", RATE, 1e-3)
    state.modules.train()
    state.modules["unet"].set_attn_processor(Float32Attention())
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alphas = torch.cumprod(1 - betas, 0)
    shrink = torch.cat((torch.linspace(1, SCALE_TO, SCALE_STEPS), torch.full((1000 - SCALE_STEPS,), SCALE_TO)))
    late = LATE if folder is None else 0
    for step, losses in steps(state, total, RATE, work / "unet.jsonl", every=20):
        g = stream(step, "unet batch")
        rows = torch.randint(0, len(latents), (batch,), generator=g)
        clips = [sample_clip(seed) for seed in rows.tolist()]
        spoken = (torch.rand(batch, generator=g) > 0.1).tolist()
        said = [clip.caption if kept else "" for clip, kept in zip(clips, spoken, strict=True)]
        share = (torch.arange(batch) + torch.rand(batch, generator=g)) / batch
        t = ((share if step < late else share**0.6) * 1000).long().clamp(0, 999)
        x0 = latents[rows].float() * shrink[t].float().view(-1, 1, 1, 1, 1)
        noise = torch.randn(x0.shape, generator=g)
        a = alphas[t].float().view(-1, 1, 1, 1, 1)
        rates = torch.tensor([float(clip.motion_fps) for clip in clips])
        embeds = state.modules["text"](tokens(tokenizer, said)).last_hidden_state
        noisy = a.sqrt() * x0 + (1 - a).sqrt() * noise
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            predicted = state.modules["unet"](noisy, t, embeds, timestep_cond=rates).sample.float()
        sigma = ((1 - a) / a).sqrt().view(-1, 1, 1, 1).repeat_interleave(FRAMES, 0)
        error = (predicted - noise).transpose(1, 2).flatten(0, 1)
        loss = denoising_loss(error, sigma)
        if step >= late:
            loss = loss + 0.05 * (error * sigma.clamp(max=12.0)).square().mean()
        _descend(state, loss, losses)


# ---------------------------------------------------------------- the pipeline folder


def pack(work: Path, out: Path) -> None:
    """Write the averages as a folder for `stages/model_folder.py`: float16, and float8 for the UNet's matrices."""
    tokenizer = tokenizer_in(work / "tokenizer")
    trained = load_file(work / "unet.safetensors")
    for part, module in {"unet": new_unet(), "text": new_text(tokenizer)}.items():
        prefix = f"ema.{part}."
        module.load_state_dict({k.removeprefix(prefix): v for k, v in trained.items() if k.startswith(prefix)})
        module.half().save_pretrained(out / {"text": "text_encoder"}.get(part, part), safe_serialization=True)
    narrow(out / "unet" / "diffusion_pytorch_model.safetensors")
    tokenizer.save_pretrained(out / "tokenizer")
    shutil.copytree(IMAGE_MODEL / "vae", out / "vae", dirs_exist_ok=True)
    from_the_top = {**SCHEDULER, "timestep_spacing": "trailing", "steps_offset": 0}  # see README.md: colours
    DDIMScheduler.from_config(from_the_top).save_pretrained(out / "scheduler")
    parts = {
        "unet": ["stages.videocrafter", "VideoCrafterUNet"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "DDIMScheduler"],
    }
    (out / "model_index.json").write_text(json.dumps({"_class_name": "VideoCrafter2Pipeline", **parts}, indent=1))
    card = {
        "steps": 8,
        "guidance_scale": 3.0,
        "negative_prompt": "",
        "native": [HEIGHT, WIDTH],
        "frames": FRAMES,
        "fps": 8,
        "motion_fps": 8,
        "dynamic_scale": [SCALE_TO, SCALE_STEPS],
        "pad_token_id": 0,
        "method": METHOD,
    }
    (out / "freescale.json").write_text(json.dumps(card, indent=1))
    total = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    print(f"{out}: {total / 1e6:.2f} MB")


def narrow(path: Path) -> None:
    """Store the large matrices of a file in eight bits (e4m3); every reader widens them to its own dtype."""
    state = load_file(path)
    save_file(
        {k: v.to(torch.float8_e4m3fn) if v.numel() > 4096 else v for k, v in state.items()}, path, {"format": "pt"}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phase", choices=("text", "latents", "unet", "pack", "all"))
    parser.add_argument("--work", type=Path, default=Path("build/shapes_motion"))
    parser.add_argument("--out", type=Path, default=Path("stages/shapes_motion/model"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=UNET_STEPS)
    parser.add_argument("--from", dest="folder", type=Path, help="a packed model to go on from; else `shapes`")
    parser.add_argument("--batch", type=int, default=UNET_BATCH, help="clips of one step of the UNet")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the UNet's products")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    options.work.mkdir(parents=True, exist_ok=True)
    dtype = getattr(torch, options.dtype)
    unet = partial(train_unet, total=options.steps, batch=options.batch, folder=options.folder, dtype=dtype)
    phases: dict[str, Callable[[Path], None]] = {
        "text": partial(train_text, folder=options.folder),
        "latents": make_latents,
        "unet": unet,
    }
    for name, phase in phases.items():
        if options.phase in (name, "all"):
            phase(options.work)
    if options.phase in ("pack", "all"):
        pack(options.work, options.out)


if __name__ == "__main__":
    main()
