"""Pictures -> features: one small class for each network, over weights that are on disk. Nothing is downloaded.

    shapes      the package's own, for the embedded model                       64 features, 30 classes
    inception   InceptionV3 of the 2015-12-05 graph, as all published numbers   2048 features, 1008 classes
    CLIP        a transformers CLIPModel folder                                 image and text embeddings

A picture of another size is resized by `stages.metrics.resize` and by nothing else; a crop of the network's own size
is not resized at all. The networks of `video_extractors` have their files here too.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from stages.errors import SpecError
from stages.metrics import inception, motion_net, shapes_net
from stages.metrics.resize import resize
from stages.models.checkpoint_file import misfit, shapes_of
from stages.models.load import CLIP_INPUT, ClipNetworks, load_clip

if TYPE_CHECKING:
    from torch import Tensor

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
FILES = {
    "inception": "inception-2015-12-05.safetensors",
    "clip": "clip",
    "i3d": "i3d-kinetics-400.safetensors",
    "raft": "raft-things.safetensors",
    "aesthetic": "aesthetic-vit-l-14-linear.safetensors",
}
OWN = {"shapes": shapes_net.WEIGHTS, "shapes-motion": motion_net.WEIGHTS}
SAYS = {
    "inception": "InceptionV3 of the 2015-12-05 graph, 2048 features and 1008 logits, as safetensors under the names "
    "of pt_inception-2015-12-05-6726825d.pth, from which `freescale convert inception` makes it",
    "clip": "a transformers CLIPModel with its tokenizer, a folder in safetensors",
    "i3d": "I3D of Kinetics-400, 400 logits, as safetensors under the names of i3d_pretrained_400.pt, from which "
    "`freescale convert i3d` makes it",
    "raft": "RAFT, the large model, as safetensors under the names of raft-things.pth, from which `freescale convert "
    "raft` makes it",
    "aesthetic": "LAION's linear aesthetic head over CLIP ViT-L/14, weight (1, 768) and bias (1), as safetensors; "
    "`freescale convert aesthetic` makes it of sa_0_4_vit_l_14_linear.pth",
}
Net = TypeVar("Net", bound=nn.Module)


class Extractor(Protocol):
    """A feature network over its weights."""

    @property
    def name(self) -> str:
        """Its name in specs and tables."""

    @property
    def fingerprint(self) -> str:
        """sha256 of the weights."""

    @property
    def input_size(self) -> int:
        """Side in pixels of the squares that it reads."""

    def extract(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return "features" (B, d) and, with classes, "logits" (B, c), float32, of `pixels` (B, 3, H, W) in 0…255."""


@dataclass(frozen=True)
class WeightFile:
    """Weights on disk: the name of their network, the path of the file or folder, and their sha256."""

    name: str
    path: str
    sha256: str


@dataclass(frozen=True)
class ShapesExtractor:
    """The network of `shapes_net`, at 128x128."""

    net: shapes_net.ShapesNet
    fingerprint: str
    device: torch.device
    name: str = "shapes"
    input_size: int = shapes_net.INPUT

    @torch.no_grad()
    def extract(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return features (B, 64) and logits (B, 30) of colour and shape, of `pixels` (B, 3, H, W) in 0…255."""
        images = resize(pixels.to(self.device), (self.input_size, self.input_size)) / 127.5 - 1
        features = self.net.features(images)
        return {"features": features.cpu(), "logits": shapes_net.object_logits(self.net.classify(features)).cpu()}


@dataclass(frozen=True)
class InceptionExtractor:
    """The network of `inception`, at 299x299."""

    net: inception.InceptionV3
    fingerprint: str
    device: torch.device
    name: str = "inception"
    input_size: int = inception.INPUT

    @torch.no_grad()
    def extract(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return features (B, 2048) and logits (B, 1008), of `pixels` (B, 3, H, W) in 0…255."""
        features, logits = self.net(resize(pixels.to(self.device), (self.input_size, self.input_size)))
        return {"features": features.cpu(), "logits": logits.cpu()}


@dataclass(frozen=True)
class ClipExtractor:
    """CLIP's image side: shorter side to the network's size, the middle square, CLIP's own mean and deviation."""

    nets: ClipNetworks
    fingerprint: str
    name: str = "clip"

    @property
    def input_size(self) -> int:
        """Side in pixels of the squares that it reads, from the model's configuration."""
        return self.nets.image_size

    @torch.no_grad()
    def extract(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return image embeddings "features" (B, d) of length 1, of `pixels` (B, 3, H, W) in 0…255."""
        return {"features": F.normalize(self.nets.embed_images(clip_pixels(pixels, self.input_size)), dim=-1).cpu()}

    @torch.no_grad()
    def embed_pixels(self, images: Tensor) -> Tensor:
        """Return embeddings (B, d), of any length, of `images` (B, 3, side, side) that are normalised already."""
        return self.nets.embed_images(images).cpu()

    @torch.no_grad()
    def embed_text(self, prompt: str) -> Tensor:
        """Return the prompt's embedding (1, d) of length 1; words beyond the model's context are cut off."""
        return F.normalize(self.nets.embed_text(prompt), dim=-1).cpu()


def clip_pixels(pixels: Tensor, side: int) -> Tensor:
    """Return `pixels` (B, 3, H, W) in 0…255 as CLIP reads them: (B, 3, side, side), normalised."""
    height, width = pixels.shape[-2:]
    scale = side / min(height, width)
    sized = resize(pixels, (max(side, round(height * scale)), max(side, round(width * scale))))
    top, left = (sized.shape[-2] - side) // 2, (sized.shape[-1] - side) // 2
    values = sized[..., top : top + side, left : left + side] / 255
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    return (values.cpu() - mean) / std


def metrics_folder(home: Path) -> Path:
    """Return the folder of a home in which the networks' weights lie by default."""
    return home / "models" / "metrics"


def _usual(name: str, home: Path) -> Path:
    """Return where the weights of a network lie by default; homes of earlier versions have them in `measures`."""
    path, earlier = metrics_folder(home) / FILES[name], home / "models" / "measures" / FILES[name]
    return earlier if earlier.exists() and not path.exists() else path


def find_weights(name: str, home: Path, path: str | None = None, sha256: str | None = None) -> WeightFile:
    """Return the weights of a network by name: those at `path`, else those of the package or of the home.

    Raises `SpecError` for a missing file, with what it is and where to put it, and for another checksum than `sha256`.
    """
    if name in OWN:
        return WeightFile(name, str(OWN[name]), _digest(OWN[name]))
    file = Path(os.path.expanduser(path)) if path else _usual(name, home)
    inner = file / CLIP_INPUT if name == "clip" else file
    if not inner.is_file():
        raise SpecError(
            f"weights.{name}: {str(inner)!r} is not there ({SAYS[name]}); put it there, or name another path with "
            f"weights.{name}.path; weights.{name}.sha256 pins its checksum"
        )
    found = _digest(inner)
    if sha256 is not None and found != sha256.lower():
        raise SpecError(f"weights.{name}.sha256: {str(inner)!r} has {found}, not {sha256}")
    return WeightFile(name, str(file), found)


def load_extractor(weights: WeightFile, device: torch.device) -> Extractor:
    """Return the network with its weights, kept for the next call. Raises `SpecError` for a file of another network."""
    return _load(weights, str(device))


@cache
def _load(weights: WeightFile, device: str) -> Extractor:
    at = torch.device(device)
    if weights.name == "clip":
        return ClipExtractor(load_clip(Path(weights.path), at), weights.sha256)
    if weights.name == "shapes":
        return ShapesExtractor(filled(shapes_net.ShapesNet(), weights, at), weights.sha256, at)
    return InceptionExtractor(filled(inception.InceptionV3(), weights, at), weights.sha256, at)


def filled(net: Net, weights: WeightFile, device: torch.device) -> Net:
    """Return `net` with the weights of a file, without gradients. Raises `SpecError` for a file of another network."""
    wanted = net.state_dict()
    try:
        state = load_file(weights.path)
        found = misfit(state, shapes_of(net))
    except (SafetensorError, OSError) as error:
        found = str(error)
    if found:
        what = SAYS.get(weights.name, "its file")
        raise SpecError(f"weights.{weights.name}: {weights.path!r} is not {what}: {found}")
    net.load_state_dict(wanted | {name: tensor.to(wanted[name].dtype) for name, tensor in state.items()})
    return net.to(device).eval().requires_grad_(False)


@cache
def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
