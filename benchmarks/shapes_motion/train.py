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
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from benchmarks.shapes.train import Float32Attention, denoising_loss, new_tokenizer, steps, training
from stages.models.convert_videocrafter2 import SCHEDULER
from stages.models.videocrafter import VideoCrafterUNet
from stages.shapes.scenes import stream
from stages.shapes_motion.videos import FRAMES, MOTIONS, Video, draw_video, sample_video

if TYPE_CHECKING:
    from collections.abc import Callable

IMAGE_MODEL = Path(__file__).parents[2] / "stages" / "shapes" / "model"
HEIGHT, WIDTH = 80, 128  # pixels: 10 x 16 latent cells, the aspect of VideoCrafter2's 320 x 512
VIDEOS = 3_000  # training videos, five of each seed 0...; the seeds from HELD_OUT on are never trained on
AVERAGED, PLACES = 200, 8  # for so many training videos, the average over videos of the same words is known too
HELD_OUT = 1_000_000
TEXT_STEPS, TEXT_BATCH = 300, 64
UNET_STEPS, UNET_BATCH, RATE = 1040, 8, 1e-3
LATE = 760  # from this step on motions are told apart, and high noise is seen more often, in units of the picture
EARLY, LAST = 850, 999  # the timesteps that decide where an object goes; below, that shows through the noise
SCALE_TO, SCALE_STEPS = 0.7, 400  # VideoCrafter2's dynamic scale
FREESCALE = {"restart": 0.75, "upsample": "rgb", "dilated_layers": "all_up", "dilation": [0.0, 0.97]}  # see README.md


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

    def with_motion(self, videos: list[Video]) -> Tensor:
        """(B, 16, 96) for captions of videos: the words of the motion repeat the state before them."""
        rows = self.states([video.caption.replace(f" {video.motion}", "") for video in videos])
        words = [len(video.motion.split()) for video in videos]
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
        videos = [sample_video(seed) for seed in seeds]
        ids = tokens(tokenizer, [video.caption for video in videos])
        targets = known.with_motion(videos) if isinstance(known, ImageText) else known(ids).last_hidden_state
        marks = torch.stack([motion_marks(video.motion) for video in videos])
        loss = F.mse_loss(state.modules["text"](ids).last_hidden_state, targets + marks)
        state.descend(loss, 0.995)
        losses.append(loss.item())


def motion_marks(motion: str) -> Tensor:
    """(16, 96) to add to the states of a caption: a vector of the motion's own at its last word, less of it after."""
    mark = torch.randn(96, generator=stream(MOTIONS.index(motion), "motion mark"))
    said = 3 + len(motion.split())  # its last word; the caption begins with a mark, article, colour and shape
    return torch.cat((torch.zeros(said, 96), mark[None], 0.3 * mark.expand(15 - said, -1)))


# ---------------------------------------------------------------- latents of the training videos


def training_video(index: int) -> Video:
    """Video `index` of the training set, which has every scene once with each motion, one after the other."""
    scene, motion = divmod(index, len(MOTIONS))
    return sample_video(scene, motion=MOTIONS[motion])


def elsewhere(video: Video, seed: int) -> Video:
    """A video of the same caption and rate whose object has the place, size and way of `seed`."""
    other = sample_video(seed, motion=video.motion)
    same = {name: getattr(video.scene, name) for name in ("color", "shape", "background")}
    return replace(other, scene=replace(other.scene, **same), motion_fps=video.motion_fps)


@torch.no_grad()
def make_latents(work: Path) -> None:
    """Encode the training videos once: (videos, 4, frames, h, w) float16 means, scaled.

    With them, for the first `AVERAGED` of the videos, the average over `PLACES` videos of the same caption.
    """
    if (work / "latents.safetensors").exists():
        return
    vae = AutoencoderKL.from_pretrained(IMAGE_MODEL / "vae").float().to(memory_format=torch.channels_last)

    def encoded(video: Video) -> Tensor:
        frames = draw_video(video, FRAMES, HEIGHT, WIDTH).transpose(0, 1)
        means = vae.encode(frames.contiguous(memory_format=torch.channels_last)).latent_dist.mean
        return (means * vae.config.scaling_factor).transpose(0, 1)

    rows = []
    for index in range(VIDEOS):
        rows.append(encoded(training_video(index)).half())
        if index % 500 == 499:
            print(f"encoded {index + 1} videos", flush=True)
    averages = []
    for index in range(AVERAGED):
        video, first = training_video(index), VIDEOS + index // len(MOTIONS) * PLACES
        placed = [encoded(elsewhere(video, seed)) for seed in range(first, first + PLACES)]
        averages.append(torch.stack(placed).mean(0).half())
    made = {"latents": torch.stack(rows), "averages": torch.stack(averages)}
    save_file({name: rows.contiguous() for name, rows in made.items()}, work / "latents.safetensors")


# ---------------------------------------------------------------- UNet and text


def load_packed(module: nn.Module, file: Path) -> None:
    """Give `module` the weights of a packed model: another stretch of training, with a fresh optimiser."""
    module.load_state_dict({k: v.float() for k, v in load_file(file).items()})


class Bearings(nn.Module):
    """Linear probes of the UNet's blocks, for training alone: where and when a place is, and what the caption says.

    That a left-going object is at the right at first is a product of three: a word, the frame's number (which layers
    over time know only by the zeros beyond the ends of a video) and the column. As long as one of them is missing the
    other two gain nothing, so that the error of the noise alone teaches none of them; the probes ask for each.
    """

    ASKED = 6  # frame, row, column, frame times row, frame times column, and the one that the caption means

    def __init__(self, unet: VideoCrafterUNet) -> None:
        super().__init__()
        blocks = [*unet.down_blocks[:3], unet.mid_block, *unet.up_blocks[1:]]
        layers = [block.temp_attentions[-1] for block in blocks]
        self.probes = nn.ModuleList(nn.Linear(layer.in_channels, self.ASKED) for layer in layers)
        self.seen: dict[int, Tensor] = {}  # by probe, in the last call of the UNet
        for index, layer in enumerate(layers):
            layer.register_forward_hook(partial(self._see, index))

    def _see(self, index: int, layer: nn.Module, given: Any, made: Any) -> None:
        self.seen[index] = made[0]

    def loss(self, motions: list[str]) -> Tensor:
        """Mean squared error of the probes about the first videos the UNet was last called with, of these motions."""
        total = torch.zeros(())
        for index, probe in enumerate(self.probes):
            maps = self.seen[index].float().unflatten(0, (-1, FRAMES))[: len(motions)].movedim(2, -1)
            truth = torch.stack([bearings(motion, *maps.shape[2:4]) for motion in motions])
            errors = (probe(F.layer_norm(maps, maps.shape[-1:])) - truth).square().flatten(0, -2).mean(0)
            total = total + errors.mean() + 2 * errors[-1]
        return total / len(self.probes)


def bearings(motion: str, height: int, width: int) -> Tensor:
    """(frames, h, w, 6): what the probes are to say of a video of `motion`."""
    axes = (torch.linspace(-1.5, 1.5, n) for n in (FRAMES, height, width))
    f, y, x = torch.meshgrid(*axes, indexing="ij")
    meant = {"moving left": -f * x, "moving right": f * x, "moving up": -f * y, "growing": f, "spinning": 0 * f}
    return torch.stack((f, y, x, f * y, f * x, meant[motion]), dim=-1)


Told = Literal["early", "last"]  # at which timesteps motions are told apart


class Drawn(NamedTuple):
    """The videos of one step: numbers, whether the caption is said, timesteps, and noise (B, 4, frames, h, w)."""

    rows: Tensor
    spoken: Tensor
    t: Tensor
    noise: Tensor


def draw_batch(step: int, batch: int, shape: torch.Size, averaged: int, told: Told | None) -> Drawn:
    """Draw a step's videos from latents of `shape` (videos, 4, frames, h, w).

    If motions are to be `told` apart, the first five are one scene with each of them, in the same noise at the same
    timestep: nothing but their captions tells them apart, so what differs between their errors is what the network has
    yet to learn about motions, without the noise of noise. They are one of the first `averaged` videos for the last
    timestep. The others are spread over the schedule.
    """
    g, (videos, *of_video) = stream(step, "unet batch"), shape
    rows = torch.randint(0, videos, (batch,), generator=g)
    spoken = torch.rand(batch, generator=g) > 0.1
    noise = torch.randn(batch, *of_video, generator=g)
    five = len(MOTIONS) if told else 0
    share = ((torch.arange(batch) - five + torch.rand(batch, generator=g)) / (batch - five)).clamp(min=0)
    t = ((share**0.6 if told else share) * 1000).long().clamp(max=LAST)
    if told:
        is_last = told == "last"
        rows[:five] = rows[0] % (averaged if is_last else videos) // five * five + torch.arange(five)
        spoken[:five], noise[:five] = True, noise[0].clone()
        t[:five] = LAST if is_last else torch.randint(EARLY, LAST, (1,), generator=g)
    return Drawn(rows, spoken, t, noise)


@dataclass(frozen=True)
class Stretch:
    """How one stretch of the UNet's training goes."""

    steps: int = UNET_STEPS
    batch: int = UNET_BATCH
    folder: Path | None = None  # a packed model to go on from; else begin from `shapes`
    dtype: torch.dtype = torch.float32  # of the UNet's products: weights, losses and attention stay in float32
    rate: float = RATE
    tell_every: int = 1

    def is_late(self, step: int) -> bool:
        """Whether high noise is held in units of the picture, and motions are told apart."""
        return self.folder is not None or step >= LATE

    def told(self, step: int) -> Told | None:
        """Where `step` tells motions apart: early and last take turns."""
        if not self.is_late(step) or step % self.tell_every:
            return None
        return "last" if step // self.tell_every % 2 else "early"


class StepLoss:
    """Noise prediction under the dynamic scale, min-SNR weights and coarse means as for `shapes`.

    At the last timestep the network sees noise alone, as it does when a video is begun; with motions told apart there,
    it is to predict what videos of the caption average.
    """

    def __init__(self, work: Path, tokenizer: CLIPTokenizer, modules: nn.ModuleDict, stretch: Stretch) -> None:
        encoded = load_file(work / "latents.safetensors")
        self.latents, self.averages = encoded["latents"], encoded["averages"]
        self.tokenizer, self.modules, self.stretch = tokenizer, modules, stretch
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        self.alphas = torch.cumprod(1 - betas, 0)
        self.shrink = torch.cat((torch.linspace(1, SCALE_TO, SCALE_STEPS), torch.full((1000 - SCALE_STEPS,), SCALE_TO)))

    def __call__(self, step: int) -> Tensor:
        told, batch = self.stretch.told(step), self.stretch.batch
        rows, spoken, t, noise = draw_batch(step, batch, self.latents.shape, len(self.averages), told)
        videos = [training_video(row) for row in rows.tolist()]
        said = [video.caption if kept else "" for video, kept in zip(videos, spoken.tolist(), strict=True)]
        x0 = self.latents[rows].float()
        if told == "last":
            x0[: len(MOTIONS)] = self.averages[rows[: len(MOTIONS)]].float()
        x0 = x0 * self.shrink[t].float().view(-1, 1, 1, 1, 1)
        a = self.alphas[t].float().view(-1, 1, 1, 1, 1)
        is_last = (t == LAST).view(-1, 1, 1, 1, 1)
        noisy = torch.where(is_last, noise, a.sqrt() * x0 + (1 - a).sqrt() * noise)
        target = (noisy - a.sqrt() * x0) / (1 - a).sqrt()
        rates = torch.tensor([float(video.motion_fps) for video in videos])
        embeds = self.modules["text"](tokens(self.tokenizer, said)).last_hidden_state
        with torch.autocast("cpu", self.stretch.dtype, enabled=self.stretch.dtype != torch.float32):
            predicted = self.modules["unet"](noisy, t, embeds, timestep_cond=rates).sample.float()
        sigma = ((1 - a) / a).sqrt().view(-1, 1, 1, 1).repeat_interleave(FRAMES, 0)
        error = (predicted - target).transpose(1, 2).flatten(0, 1)
        loss, of_picture = denoising_loss(error, sigma), error * sigma.clamp(max=12.0)
        if self.stretch.is_late(step):
            loss = loss + 0.05 * of_picture.square().mean()
        if told:
            apart = of_picture.unflatten(0, (batch, FRAMES))[: len(MOTIONS)]
            if told == "last":  # the same noise alone went in: the mean of the five is no matter of motion
                apart = 2 * (apart - apart.mean(0))
            pointed = self.modules["bearings"].loss([video.motion for video in videos[: len(MOTIONS)]])
            loss = loss + 0.5 * apart.square().mean() + 0.2 * pointed
        return loss


def train_unet(work: Path, stretch: Stretch) -> None:
    """Train UNet and text, from `shapes` or on from a packed model.

    With the text tower of `train_text`, or where that was not run with the packed one, whose motions are marked.
    """
    tokenizer, folder = tokenizer_in(work / "tokenizer"), stretch.folder
    torch.manual_seed(4)
    text = new_text(tokenizer)
    if folder is None or (work / "text.safetensors").exists():
        learned = load_file(work / "text.safetensors")
        text.load_state_dict({k.removeprefix("ema.text."): v for k, v in learned.items() if k.startswith("ema.text.")})
    else:
        load_packed(text, folder / "text_encoder" / "model.safetensors")
    unet = new_unet()
    if folder is None:
        print(f"{warm_start(unet)} tensors from `shapes` of {len(unet.state_dict())}", flush=True)
    else:
        load_packed(unet, folder / "unet" / "diffusion_pytorch_model.safetensors")
    networks = {"unet": unet, "text": text, "bearings": Bearings(unet)}
    state = training(networks, work / "unet.safetensors", stretch.rate, 1e-3)
    state.modules.train()
    state.modules["unet"].set_attn_processor(Float32Attention())
    loss = StepLoss(work, tokenizer, state.modules, stretch)
    for step, losses in steps(state, stretch.steps, stretch.rate, work / "unet.jsonl", every=20):
        taken = loss(step)
        state.descend(taken, 0.995)
        losses.append(taken.item())


# ---------------------------------------------------------------- the pipeline folder


def pack(work: Path, out: Path) -> None:
    """Write the averages as a folder for `stages/models/folder.py`: float16, and float8 for the UNet's matrices."""
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
        "unet": ["stages.models.videocrafter", "VideoCrafterUNet"],
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
        "method": {"freescale": FREESCALE},
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
    parser.add_argument("--batch", type=int, default=UNET_BATCH, help="videos of one step of the UNet")
    parser.add_argument("--rate", type=float, default=RATE, help="of learning, the largest")
    parser.add_argument("--tell-every", type=int, default=1, help="steps from one that tells motions apart to the next")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the UNet's products")
    options = parser.parse_args()
    if options.batch <= len(MOTIONS):
        parser.error(f"--batch {options.batch}, allowed: {len(MOTIONS) + 1} or more, for one of each motion and others")
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    options.work.mkdir(parents=True, exist_ok=True)
    stretch = Stretch(
        steps=options.steps,
        batch=options.batch,
        folder=options.folder,
        dtype=getattr(torch, options.dtype),
        rate=options.rate,
        tell_every=options.tell_every,
    )
    phases: dict[str, Callable[[Path], None]] = {
        "text": partial(train_text, folder=options.folder),
        "latents": make_latents,
        "unet": partial(train_unet, stretch=stretch),
    }
    for name, phase in phases.items():
        if options.phase in (name, "all"):
            phase(options.work)
    if options.phase in ("pack", "all"):
        pack(options.work, options.out)


if __name__ == "__main__":
    main()
