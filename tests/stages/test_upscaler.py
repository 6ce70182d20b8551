"""Networks that enlarge pixels: tiles, what is refused, keys, and the stages that use them.

spandrel's interface is played by `Spandrel`; the last test meets the package itself where it is installed.
"""

from __future__ import annotations

import importlib
import shutil
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from freescale.enlarge import TILE, enlarged_by
from freescale.forward_process import normal
from stages.errors import SpecError, StageError
from stages.models.load import Models, describe
from stages.models.upscaler import UpscalerFile, find_upscaler, load_upscaler
from stages.plan import make_plan
from stages.spec import ModelSpec, RunOptions, make_spec
from stages.upscale import Enlarge, Upscale, encode

if TYPE_CHECKING:
    from pathlib import Path


class Descriptor:
    """As spandrel describes a network for images; this one sharpens and doubles."""

    purpose, scale, input_channels, output_channels = "SR", 2, 3, 3
    tiling, architecture = 1, SimpleNamespace(name="Toy")

    def __init__(self, weight: torch.Tensor) -> None:
        self.model = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.model.weight.data = weight

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return F.interpolate(self.model(image), scale_factor=2, mode="nearest").clamp(0, 1)


class Loader:
    """As spandrel loads a file: by the names of its tensors."""

    def __init__(self, device: str) -> None:
        self.device = device

    def load_from_file(self, path: Path) -> Descriptor:
        tensors = load_file(path, device=self.device)
        found = Descriptor(tensors["weight"])
        if "restores" in tensors:
            found.purpose, found.scale = "Restoration", 1
        return found


@pytest.fixture
def spandrel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package, of which only what is used is there."""
    there = SimpleNamespace(
        ModelLoader=Loader, ImageModelDescriptor=Descriptor, ModelTiling=SimpleNamespace(SUPPORTED=1)
    )
    monkeypatch.setitem(sys.modules, "spandrel", there)
    load_upscaler.cache_clear()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A network's file."""
    return written(tmp_path / "double.safetensors", 1)


def written(path: Path, seed: int, **more: torch.Tensor) -> Path:
    weight = torch.zeros(3, 3, 3, 3)
    weight[range(3), range(3), 1, 1] = 0.8
    save_file({"weight": weight + 0.05 * normal((3, 3, 3, 3), seed), **more}, path)
    return path


def test_tiles_are_the_whole_where_a_network_sees_no_further_than_the_margin() -> None:
    network, picture = Descriptor(normal((3, 3, 3, 3), 1) / 5), normal((1, 3, TILE + 40, TILE + 7), 2).clamp(-1, 1)
    size = (2 * TILE + 80, 2 * TILE + 14)
    tiled = enlarged_by(network, 2, picture, size)
    torch.testing.assert_close(tiled, enlarged_by(network, 2, picture, size, by_tiles=False), atol=1e-6, rtol=0)
    torch.testing.assert_close(tiled, 2 * network((picture + 1) / 2) - 1, atol=1e-6, rtol=0)


def test_a_network_is_asked_until_the_size_is_reached() -> None:
    shapes = list[tuple[int, ...]]()

    def double(image: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(image.shape[2:]))
        return F.interpolate(image, scale_factor=2)

    constant = torch.full((1, 3, 8, 10), 0.25)
    larger = enlarged_by(double, 2, constant, (24, 30))
    torch.testing.assert_close(larger, torch.full((1, 3, 24, 30), 0.25))
    assert shapes == [(8, 10), (16, 20)]
    assert torch.equal(enlarged_by(double, 2, constant, (16, 20)), F.interpolate(constant, scale_factor=2))


@pytest.mark.usefixtures("spandrel")
def test_what_is_no_network_that_enlarges_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.pth").write_bytes(b"")
    (tmp_path / "empty.safetensors").write_bytes(b"no tensors")
    written(tmp_path / "restore.safetensors", 1, restores=torch.zeros(1))
    written(tmp_path / "double.safetensors", 1)
    for name, words in (
        ("a.pth", r"'a.pth' is not a .safetensors file"),
        ("b.safetensors", "b.safetensors is not on disk"),
        ("empty.safetensors", "no network that spandrel knows"),
        ("restore.safetensors", "is a Toy, which does not enlarge RGB pictures"),
    ):
        with pytest.raises(SpecError, match=words):
            find_upscaler(name, tmp_path)
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(SpecError, match="needs the extra upscalers"):
        find_upscaler("double.safetensors", tmp_path)


@pytest.mark.usefixtures("spandrel")
def test_a_file_that_changes_after_the_check_is_not_used(file: Path) -> None:
    found = find_upscaler(str(file), None)
    load_upscaler.cache_clear()
    written(file, 2)
    with pytest.raises(StageError, match="has changed since it was checked"):
        load_upscaler(found, "cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(describe(ModelSpec(), tmp_path_factory.mktemp("home")), "float32", torch.device("cpu"))


@pytest.mark.usefixtures("spandrel")
@pytest.mark.parametrize("name", ["enlarge", "mrflow", "draft"])
def test_the_content_is_in_the_key_and_the_path_is_not(name: str, file: Path, tmp_path: Path, models: Models) -> None:
    def keys(upscaler: str | None) -> dict[str, str]:
        method = {"name": name, "upscaler": upscaler}
        spec = make_spec({"prompt": "a disc", "width": 256, "height": 256, "method": method})
        plan = make_plan(spec, models.info, tmp_path)
        assert plan.spec.method.upscaler == (upscaler and str(tmp_path / upscaler))  # type: ignore[attr-defined]
        return {call.label: call.key for call in plan.calls}

    (tmp_path / "elsewhere").mkdir()
    shutil.copy(file, tmp_path / "elsewhere" / "double.safetensors")
    plain, here = keys(None), keys("double.safetensors")
    changed = {"enlarge 1"} if name == "enlarge" else {label for label in plain if label.endswith(" 1")}
    assert {label for label in plain if plain[label] != here[label]} == changed | {"export 1", "export 0"}
    assert keys("elsewhere/double.safetensors") == here
    written(file, 2)
    assert keys("double.safetensors")[f"{'enlarge' if name == 'enlarge' else 'upscale'} 1"] not in {*here.values()}


class OnDisk:
    """A picture as the store gives it."""

    def __init__(self, image: torch.Tensor) -> None:
        self.image, self.size = image, (image.shape[2], image.shape[3])

    def whole(self) -> torch.Tensor:
        return self.image


@pytest.mark.usefixtures("spandrel")
def test_the_stages_that_enlarge(file: Path, models: Models) -> None:
    found, image = find_upscaler(str(file), None), normal((1, 3, 64, 72), 1).clamp(-1, 1).half()
    wanted = enlarged_by(load_upscaler(found, "cpu").network, 2, image.float(), (120, 136))
    parents: Any = {"image": {"image": OnDisk(image)}}
    how = {"upscaler": found.path, "upscaler_sha256": found.sha256}
    stream = Enlarge((120, 136), "bicubic", **how).run(parents, models, RunOptions())["image"]
    assert torch.equal(torch.cat(list(stream.pieces({})), 2), wanted.half())
    latents = Upscale(1, 1, (120, 136), "mode", **how).run(parents, models, RunOptions())["latents"]
    assert torch.equal(latents, encode(models, RunOptions(), wanted, "mode", 1, 1))


@pytest.mark.thorough
def test_a_network_of_spandrel_itself(tmp_path: Path) -> None:
    """Real-ESRGAN's compact architecture, with random weights."""
    pytest.importorskip("spandrel", reason="spandrel is not installed (the extra upscalers)")
    kind = importlib.import_module("spandrel.architectures.Compact.__arch.SRVGG").SRVGGNetCompact
    torch.manual_seed(0)
    net = kind(num_feat=8, num_conv=2, upscale=2)
    save_file({name: x.contiguous() for name, x in net.state_dict().items()}, tmp_path / "compact.safetensors")
    found: UpscalerFile = find_upscaler("compact.safetensors", tmp_path)
    upscaler, image = load_upscaler(found, "cpu"), torch.rand(1, 3, 16, 20)
    assert (upscaler.scale, upscaler.by_tiles) == (2, True)
    with torch.no_grad():
        assert torch.equal(upscaler.network(image), net(image).clamp(0, 1))
