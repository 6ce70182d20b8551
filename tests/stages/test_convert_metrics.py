"""Weights of metrics as they are published -> safetensors: the same numbers, one error, nothing left of a failure."""

from __future__ import annotations

import hashlib
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flows.cli.app import app
from stages.errors import SpecError
from stages.metrics.convert import NETWORKS, PUBLISHED, convert
from stages.metrics.extractors import FILES, find_weights, metrics_folder
from stages.metrics.i3d import I3D
from stages.metrics.raft import Raft
from stages.metrics.video_extractors import load_flow, load_video_network
from tests.toys import random_weights

if TYPE_CHECKING:
    from collections.abc import Callable

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def raft_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the authors save it: under `module.`, with two names for one tensor and counts of batches."""
    path = tmp_path_factory.mktemp("raft") / "raft-things.pth"
    state = random_weights(Raft(), 1)
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, path)
    return path


def changed(file: Path, change: Callable[[dict[str, Tensor]], Any], to: Path) -> Path:
    state = torch.load(file, weights_only=True)
    change(state)
    torch.save(state, to)
    return to


def test_raft_has_the_same_numbers_and_is_found(raft_file: Path, tmp_path: Path) -> None:
    made = convert("raft", raft_file, metrics_folder(tmp_path))
    assert Path(made.path) == tmp_path / "models" / "metrics" / "raft-things.safetensors"
    assert made.sha256 == hashlib.sha256(Path(made.path).read_bytes()).hexdigest()
    assert find_weights("raft", tmp_path, None, made.sha256) == made
    given = torch.load(raft_file, weights_only=True)
    kept = {name: tensor for name, tensor in given.items() if not name.endswith("num_batches_tracked")}
    written = load_file(made.path)
    assert {f"module.{name}" for name in written} == kept.keys()
    assert all(torch.equal(tensor, kept[f"module.{name}"]) for name, tensor in written.items())
    net = Raft().eval()
    net.load_state_dict({name.removeprefix("module."): tensor for name, tensor in given.items()})
    pair = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 255
    with torch.no_grad():
        assert torch.equal(load_flow(made, CPU)(*pair), net(*pair))


@pytest.mark.thorough
def test_i3d_as_published_has_no_counts_and_may_be_half(tmp_path: Path) -> None:
    state = {n: x.half() for n, x in random_weights(I3D(), 2).items() if not n.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "i3d_pretrained_400.pt")
    made = convert("i3d", tmp_path / "i3d_pretrained_400.pt", tmp_path / "out")
    written = load_file(made.path)
    assert written.keys() == state.keys()
    assert {tensor.dtype for tensor in written.values()} == {torch.float32}
    frames = list(torch.randint(0, 256, (16, 3, 48, 64), generator=torch.Generator().manual_seed(3)))
    by_resize = [load_video_network(made, CPU, resize) for resize in ("bilinear", "antialias")]
    assert by_resize[0] is not by_resize[1]
    with pytest.raises(ValueError, match="I3D reads 16 frames, and there are 15"):
        by_resize[0].frame_numbers(15)
    assert by_resize[0].frame_numbers(40) == list(range(16))
    logits = by_resize[0].extract(frames)
    assert logits.shape == (1, 400)
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_has_a_file_a_source_and_a_command(name: str) -> None:
    from typer.testing import CliRunner

    assert FILES[name].endswith(".safetensors")
    found = CliRunner().invoke(app, ["convert", name, "--help"])
    assert found.exit_code == 0
    assert PUBLISHED[name].split(",")[0] in "".join(re.sub(r"[│\n]", " ", found.output).split())


def test_one_error_lists_what_does_not_fit(raft_file: Path, tmp_path: Path) -> None:
    def spoil(state: dict[str, Tensor]) -> None:
        del state["module.fnet.conv1.weight"]
        state["module.cnet.norm1.bias"] = torch.zeros(3)
        state["module.something"] = torch.zeros(1)

    path = changed(raft_file, spoil, tmp_path / "spoiled.pth")
    with pytest.raises(SpecError) as error:
        convert("raft", path, tmp_path / "out")
    said = str(error.value)
    assert "1 missing (fnet.conv1.weight)" in said
    assert "1 unknown (something)" in said
    assert "1 of another shape (cnet.norm1.bias (3,) for (64,))" in said
    assert "raft-things.pth" in said
    assert "\n" not in said
    assert not (tmp_path / "out").exists()


def test_another_network_is_told_apart_shortly(raft_file: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"287 missing .* more\); 162 unknown .* more\)") as error:
        convert("i3d", raft_file, tmp_path / "out")
    assert len(str(error.value)) < 3000


def test_a_program_is_refused_with_what_to_take(tmp_path: Path) -> None:
    path = tmp_path / "i3d_torchscript.pt"
    with warnings.catch_warnings():  # torch would rather have its users leave the format
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), path)  # type: ignore[no-untyped-call]
    with pytest.raises(SpecError, match=r"is a TorchScript program, .* i3d_pretrained_400.pt, of TATS .* works"):
        convert("i3d", path, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["i3d_torchscript.pt"]


def test_what_is_there_stays(raft_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = tmp_path / FILES["raft"]
    there.write_bytes(b"mine")
    with pytest.raises(SpecError, match="exists; move it away"):
        convert("raft", raft_file, tmp_path)
    assert there.read_bytes() == b"mine"
    there.unlink()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("stages.metrics.convert.os.fsync", full)
    with pytest.raises(SpecError, match="cannot be written: No space left"):
        convert("raft", raft_file, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", ["missing", "unknown", "misshapen", "noise"])
def test_a_file_that_is_not_quite_it_is_not_loaded(change: str, raft_file: Path, tmp_path: Path) -> None:
    made = convert("raft", raft_file, tmp_path)
    state, path = load_file(made.path), tmp_path / "other.safetensors"
    if change == "missing":
        del state["cnet.conv2.bias"]
    elif change == "unknown":
        state["cnet.conv3.bias"] = torch.zeros(1)
    elif change == "misshapen":
        state["cnet.conv2.bias"] = torch.zeros(255)
    save_file(state, path)
    if change == "noise":
        path.write_bytes(b"noise")
    says = {"missing": "1 missing (cnet.conv2.bias)", "unknown": "1 unknown (cnet.conv3.bias)"}
    says |= {"misshapen": "cnet.conv2.bias (255,) for (256,)", "noise": "RAFT, the large model"}
    with pytest.raises(SpecError) as error:
        load_flow(find_weights("raft", tmp_path, str(path)), CPU)
    assert f"weights.raft: {str(path)!r} is not RAFT" in str(error.value)
    assert says[change] in str(error.value)


def test_the_command_says_where_and_how_to_pin_it(raft_file: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    result = CliRunner().invoke(app, ["convert", "raft", str(raft_file), "--home", str(tmp_path)])
    assert result.exit_code == 0, result.output
    path, pin = result.output.splitlines()
    made = find_weights("raft", tmp_path)
    assert path == made.path
    assert pin == f"weights.raft.sha256: {made.sha256}"
