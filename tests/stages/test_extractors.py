"""The feature networks: their sizes, what they read of a picture, and files that are none."""

from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from stages.errors import SpecError
from stages.metrics import inception
from stages.metrics.extractors import (
    CLIP_MEAN,
    CLIP_STD,
    FILES,
    clip_pixels,
    find_weights,
    load_extractor,
    metrics_folder,
)
from stages.metrics.resize import resize
from stages.metrics.shapes_net import HEADS, ShapesNet, object_logits
from stages.models.load import EMBEDDED
from stages.shapes.scenes import SHAPES, draw, draw_objects, sample_scene

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

CPU = torch.device("cpu")


def pixels(seed: int, side: int = 128) -> Tensor:
    return ((draw(sample_scene(seed), side, side) + 1) * 127.5).round().to(torch.uint8)[None]


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights under the names of the published file."""
    path = tmp_path_factory.mktemp("inception") / "weights.safetensors"
    g = torch.Generator().manual_seed(1)
    state = {}
    for name, tensor in inception.InceptionV3().state_dict().items():
        if not name.endswith("num_batches_tracked"):  # not every copy of the file has them
            spread = 1.5 / tensor[0].numel() ** 0.5 if tensor.ndim == 4 else 0.05
            state[name] = torch.randn(tensor.shape, generator=g) * spread + (1.0 if "bn" in name else 0.0)
            state[name] = state[name].abs() if name.endswith("running_var") else state[name]
    save_file(state, path)
    return path


def test_inception_has_the_published_shape() -> None:
    """24 365 424 weights: those of the graph, whose 1008 classes are eight more than torchvision's thousand."""
    net = inception.InceptionV3()
    names = dict(net.named_parameters())
    convs = sum(1 for name in names if name.endswith("conv.weight"))
    assert convs == 94
    assert names["Mixed_7c.branch3x3dbl_3b.conv.weight"].shape == (384, 384, 3, 1)
    assert names["fc.weight"].shape == (1008, 2048)
    without_classes = sum(p.numel() for name, p in names.items() if not name.startswith("fc."))
    assert without_classes == 21_785_568


@pytest.mark.thorough
def test_inception_reads_0_to_255_resized_and_centred_on_128(inception_file: Path) -> None:
    network = load_extractor(find_weights("inception", inception_file.parent, str(inception_file)), CPU)
    picture = pixels(7, 160)
    found = network.extract(picture)
    assert found["features"].shape == (1, 2048)
    assert found["logits"].shape == (1, 1008)
    seen = []
    net = network.net  # type: ignore[attr-defined]
    handle = net.Conv2d_1a_3x3.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    network.extract(picture)
    handle.remove()
    assert torch.equal(seen[0], (resize(picture, (299, 299)) - 128) / 128)
    assert torch.allclose(found["logits"], found["features"] @ net.fc.weight.T, rtol=1e-4, atol=1e-5)  # no bias


def test_shapes_knows_scenes_that_it_never_saw() -> None:
    weights = find_weights("shapes", EMBEDDED)
    network = load_extractor(weights, CPU)
    net: ShapesNet = network.net  # type: ignore[attr-defined]
    scenes = [sample_scene(2_000_000 + i) for i in range(60)]
    images = torch.stack([draw(s, 128, 128) for s in scenes])
    said = {name: logits.argmax(-1) for name, logits in net(images).items()}
    shapes = torch.tensor([SHAPES.index(s.shape) for s in scenes])
    assert (said["shape"] == shapes).float().mean() > 0.8
    assert (said["count"] == 1).float().mean() > 0.9
    assert float(net.features(images).square().mean()) == pytest.approx(1, rel=0.2)
    logits = object_logits(net(images))
    assert logits.shape == (60, HEADS["color"] * HEADS["shape"])
    assert torch.allclose(logits.exp().sum(-1), torch.ones(60), atol=1e-5)


def test_shapes_features_tell_repeated_objects_from_one() -> None:
    """The mean feature of pictures with four objects lies farther from that of single ones than chance has it."""
    import dataclasses

    network = load_extractor(find_weights("shapes", EMBEDDED), CPU)

    def features(first: int, count: int) -> Tensor:
        found = []
        for seed in range(first, first + 24):
            scene = sample_scene(seed)
            places = [(y, x) for y in (-0.25, 0.25) for x in (-0.25, 0.25)][:count]
            many = [dataclasses.replace(scene, center=p, radius=0.17) for p in places]
            image = draw_objects(scene, many if count > 1 else [scene], 128, 128)
            found.append(network.extract(((image + 1) * 127.5)[None])["features"])
        return torch.cat(found).mean(0)

    one, other, four = features(2_000_000, 1), features(2_000_100, 1), features(2_000_000, 4)
    assert (one - four).norm() > 2 * (one - other).norm()


def test_a_larger_picture_is_resized_and_a_crop_of_the_input_size_is_not() -> None:
    network = load_extractor(find_weights("shapes", EMBEDDED), CPU)
    large, small = network.extract(pixels(3, 384)), network.extract(resize(pixels(3, 384), (128, 128)))
    assert torch.equal(large["features"], small["features"])
    assert not torch.equal(large["features"], network.extract(pixels(3, 384)[..., :128, :128])["features"])


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of toy width with the embedded model's words."""
    from transformers import CLIPConfig, CLIPModel

    folder = tmp_path_factory.mktemp("clip") / "clip"
    shutil.copytree(EMBEDDED / "tokenizer", folder)
    text = json.loads((EMBEDDED / "text_encoder" / "config.json").read_text())
    same = {name: text[name] for name in ("vocab_size", "max_position_embeddings", "bos_token_id", "eos_token_id")}
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=same | small, vision_config=small | {"image_size": 32, "patch_size": 8}, projection_dim=12
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(folder)
    return folder


def test_clip_embeds_pictures_and_words(clip_folder: Path) -> None:
    network = load_extractor(find_weights("clip", clip_folder, str(clip_folder)), CPU)
    assert network.input_size == 32
    picture = network.extract(pixels(1))["features"]
    words = network.embed_text("a red disc on a meadow " * 20)  # type: ignore[attr-defined]
    assert picture.shape == words.shape == (1, 12)
    assert float(picture.norm()) == pytest.approx(1, abs=1e-5)
    assert not torch.equal(words, network.embed_text("a blue star on sand"))  # type: ignore[attr-defined]


def test_clip_sees_the_middle_square() -> None:
    wide = torch.zeros(1, 3, 40, 100)
    wide[..., 30:70] = 255
    seen = clip_pixels(wide, 40)
    white = (1 - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    assert torch.allclose(seen, white.reshape(1, 3, 1, 1).expand(1, 3, 40, 40))
    assert clip_pixels(wide, 16).shape == (1, 3, 16, 16)
    g = torch.Generator().manual_seed(0)
    square = torch.randint(0, 256, (1, 3, 64, 64), generator=g).float()
    by_hand = F.interpolate(square, (32, 32), mode="bicubic", antialias=True).clamp(0, 255) / 255
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    assert torch.allclose(clip_pixels(square, 32), (by_hand - mean) / std, atol=1e-6)


@pytest.mark.parametrize("name", ["inception", "clip", "i3d", "raft", "aesthetic"])
def test_missing_weights_say_which_file_and_where_it_goes(name: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError) as raised:
        find_weights(name, tmp_path)
    said = str(raised.value)
    assert str(tmp_path / "models" / "metrics") in said
    assert f"weights.{name}.path" in said
    assert f"weights.{name}.sha256" in said
    assert "\n" not in said


@pytest.mark.thorough
def test_weights_of_another_checksum_or_network_are_refused(tmp_path: Path, inception_file: Path) -> None:
    with pytest.raises(SpecError, match=r"weights\.inception\.sha256: .* has [0-9a-f]{64}, not 0000"):
        find_weights("inception", tmp_path, str(inception_file), "0" * 64)
    wrong = tmp_path / "wrong.safetensors"
    save_file({"fc.weight": torch.zeros(3)}, wrong)
    for data in (wrong.read_bytes(), b"no safetensors at all"):
        place = tmp_path / f"{len(data)}.safetensors"
        place.write_bytes(data)
        with pytest.raises(SpecError, match=re.escape(f"weights.inception: {str(place)!r} is not InceptionV3")):
            load_extractor(find_weights("inception", tmp_path, str(place)), CPU)


def test_weights_of_a_home_of_an_earlier_version_are_found(tmp_path: Path) -> None:
    earlier = tmp_path / "models" / "measures" / FILES["inception"]
    earlier.parent.mkdir(parents=True)
    earlier.write_bytes(b"earlier")
    assert find_weights("inception", tmp_path).path == str(earlier)
    now = metrics_folder(tmp_path) / FILES["inception"]
    now.parent.mkdir()
    now.write_bytes(b"now")
    assert find_weights("inception", tmp_path).path == str(now)
