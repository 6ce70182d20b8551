"""What a model folder must hold: every tensor and no other, honoured fields alone, an identity of what is read."""

from __future__ import annotations

import inspect
import json
import os
import shutil
from typing import TYPE_CHECKING, Any

import diffusers
import pytest
import transformers
from diffusers.utils import DummyObject

from freescale import make_schedule
from stages.errors import SpecError
from stages.models.cache_file import CacheFile
from stages.models.checks import read_folder
from stages.models.fields import TABLES
from stages.models.flow import FLOW_FAMILIES
from stages.models.folder import EMBEDDED, EMBEDDED_MODELS, describe
from stages.models.networks import network_class
from stages.models.schedulers import KINDS, table_of
from stages.models.weights import (
    VERIFIED,
    Header,
    Part,
    check_part,
    content_key,
    current,
    headers,
    misfit,
    wanted_tensors,
    weight_files,
)
from stages.spec import ModelSpec
from tests.toys import points

if TYPE_CHECKING:
    from pathlib import Path


def parts_of(root: Path) -> list[Part]:
    family = FLOW_FAMILIES.get(json.loads((root / "model_index.json").read_text())["_class_name"])
    if family is not None:
        folders = {root / kind.folder: kind.name for kind in family.parts.values()}
        return [
            Part(each, name, json.loads((each / "config.json").read_text()), True) for each, name in folders.items()
        ]
    unet = json.loads((root / "unet" / "config.json").read_text())
    found = read_folder(root, unet["_class_name"], pooled=unet.get("addition_embed_type") == "text_time")
    return [*found.texts.values(), found.unet, found.vae]


PARTS = [part for root in EMBEDDED_MODELS.values() for part in parts_of(root)]


def part_id(part: Part) -> str:
    return f"{part.folder.parts[-3]}-{part.folder.name}"


@pytest.mark.parametrize("part", points(PARTS, kept=lambda part: part_id(part) != "shapes_motion-unet"), ids=part_id)
def test_every_tensor_counts(part: Part) -> None:
    """Each tensor is taken away, given another shape and another kind of numbers in turn, in the header alone."""
    wanted = wanted_tensors(part.kind, json.dumps(part.config))
    found = {current(name, part.kind): each for name, each in headers(part.files[1]).items()}
    assert misfit(found, wanted) == ""
    assert content_key(part, part.files[1:]) in VERIFIED
    for name, header in found.items():
        assert misfit({n: h for n, h in found.items() if n != name}, wanted) == f"1 missing ({name})"
        assert "of another shape" in misfit({**found, name: Header((*header.shape, 2), header.dtype)}, wanted)
        assert "of another kind" in misfit({**found, name: Header(header.shape, "I64")}, wanted)
    assert misfit({**found, "extra.weight": Header((1,), "F32")}, wanted) == "1 unknown (extra.weight)"


def test_a_tensor_that_is_gone_is_named_before_any_work(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "m"
    shutil.copytree(EMBEDDED, folder)
    file = folder / "text_encoder_2" / "model.safetensors"
    tensors = load_file(file)
    del tensors["text_projection.weight"]
    save_file(tensors, file)
    with pytest.raises(SpecError, match=r"1 missing \(text_projection.weight\)"):
        describe(ModelSpec(name=str(folder)), tmp_path)


def test_a_part_that_was_right_is_remembered_and_a_wrong_one_is_not(tmp_path: Path) -> None:
    part, known = parts_of(EMBEDDED)[0], CacheFile(tmp_path / "weights.json")
    shutil.copytree(part.folder, tmp_path / "text_encoder")
    other = Part(tmp_path / "text_encoder", part.kind, {**part.config, "layer_norm_eps": 1e-6})
    check_part(other, known)
    assert len(known.entries) == 1
    with pytest.raises(SpecError, match="of another shape"):
        check_part(Part(other.folder, part.kind, {**part.config, "vocab_size": 7}), known)
    assert len(known.entries) == 1


def test_a_file_that_is_cut_off_says_how_much_is_there(tmp_path: Path) -> None:
    source = EMBEDDED / "vae" / "diffusion_pytorch_model.safetensors"
    file, size = tmp_path / "x.safetensors", source.stat().st_size
    for content, said in (
        (source.read_bytes()[:-9], f"{size - 9} of {size} bytes"),
        (source.read_bytes() + b"more", "4 bytes too many"),
        (source.read_bytes()[:100], "cut off"),
        (b"\x00" * 64, "no safetensors file"),
    ):
        file.write_bytes(content)
        with pytest.raises(SpecError, match=said):
            headers(file)


def test_every_field_of_a_class_has_its_values_and_its_default_is_one_of_them() -> None:
    for kind, table in TABLES.items():
        if kind.startswith("CLIP"):
            assert set(transformers.CLIPTextConfig().to_dict()) <= set(table)
            continue
        parameters = list(inspect.signature(network_class(kind).__init__).parameters.values())[1:]
        for parameter in parameters:
            default = json.loads(json.dumps(parameter.default))
            assert table[parameter.name].holds(default), f"{kind}: {parameter.name} = {default}"


def test_a_scheduler_that_says_nothing_is_read_as_its_class_has_it() -> None:
    """But for `clip_sample`, which diffusers' pipelines turn off where a file does not say it."""
    for name, kind in KINDS.items():
        if isinstance(getattr(diffusers, name), DummyObject):
            continue  # it needs torchsde, and only then has a signature
        parameters = list(inspect.signature(getattr(diffusers, name).__init__).parameters.values())[1:]
        whole: dict[str, Any] = {each.name: each.default for each in parameters}
        assert set(whole) <= set(table_of(name)), name
        own = {field: whole.get(field, value) for field, value in kind.absent.items()}
        assert own == dict(kind.absent), name
        said = {**whole, **dict(kind.absent)}
        assert make_schedule(said, 7, kind.solver) == make_schedule(kind.absent, 7, kind.solver), name


@pytest.fixture
def model(tmp_path: Path) -> Path:
    shutil.copytree(EMBEDDED, tmp_path / "m")
    return tmp_path / "m"


def identity(model: Path) -> dict[str, str]:
    return dict(describe(ModelSpec(name=str(model)), model.parent / "home").fingerprints)


def test_what_is_not_loaded_changes_nothing(model: Path) -> None:
    before = identity(model)
    for name in ("unet/.DS_Store", "unet/model.fp16.safetensors", "text_encoder/notes.txt", "scheduler/x.json"):
        (model / name).write_text("{}")
    assert identity(model) == before


def test_what_is_loaded_decides_whatever_its_time_says(model: Path) -> None:
    before = identity(model)
    file = model / "unet" / "diffusion_pytorch_model.safetensors"
    stat, content = file.stat(), bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = identity(model)
    assert after["unet"] != before["unet"]
    assert (after["vae"], after["text"]) == (before["vae"], before["text"])


def test_whether_an_empty_prompt_is_zeros_is_part_of_the_identity(model: Path) -> None:
    before, index = identity(model), model / "model_index.json"
    config = json.loads(index.read_text())
    index.write_text(json.dumps({**config, "force_zeros_for_empty_prompt": False}))
    assert identity(model)["text"] != before["text"]


@pytest.mark.parametrize(
    ("shards", "says"),
    [
        (["a.safetensors", "b.safetensors"], None),
        (["a.safetensors", "c.safetensors"], "has no c.safetensors"),
        (["../a.safetensors"], r"names '../a.safetensors'"),
        (["/a.safetensors"], r"names '/a.safetensors'"),
        (["a.bin"], "names 'a.bin'"),
    ],
)
def test_weights_in_several_files_are_those_of_their_index(tmp_path: Path, shards: list[str], says: str | None) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        (tmp_path / name).touch()
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {f"x{at}": name for at, name in enumerate(shards)}}))
    if says is None:
        found = weight_files(tmp_path, "diffusion_pytorch_model")
        assert found == (index, tmp_path / "a.safetensors", tmp_path / "b.safetensors")
        return
    with pytest.raises(SpecError, match=says):
        weight_files(tmp_path, "diffusion_pytorch_model")
