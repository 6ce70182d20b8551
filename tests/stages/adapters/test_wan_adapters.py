"""Adapters of Wan: everything that it has learnt may be changed, and which of two networks a file is for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from flows.rendering.adapters import adapter_line
from stages.errors import SpecError
from stages.models.describe import describe
from stages.models.files.transformer_keys import transformer_name
from stages.models.load import Models
from stages.spec import ModelSpec
from tests.adapter_files import PEFT, lora_file, low_rank
from tests.wan_folder import wan_folder

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

CPU = torch.device("cpu")
QUERIES = "blocks.0.self_attn.q"
STORED = "blocks.0.attn1.to_q.weight"


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wan_folder(tmp_path_factory.mktemp("wan") / "model")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wan_folder(tmp_path_factory.mktemp("pair") / "model", experts=True)


def network(folder: Path, home: Path, *loras: dict[str, Any]) -> dict[str, Tensor]:
    info = describe(ModelSpec(name=str(folder), loras=list(loras)), home)
    found: dict[str, Tensor] = Models(info, "float32", CPU).unet.state_dict()
    return found


def changed(folder: Path, home: Path, *loras: dict[str, Any]) -> list[str]:
    plain, found = network(folder, home), network(folder, home, *loras)
    return sorted(name for name, each in found.items() if not torch.equal(each, plain[name]))


def test_a_file_of_differences_changes_everything_that_is_learnt(single: Path, tmp_path: Path) -> None:
    """As files that distil Wan to few steps have them: weights, biases, norms and the tables of modulation."""
    plain = network(single, tmp_path)
    tensors: dict[str, Tensor] = {}
    wanted: dict[str, Tensor] = {}
    ends = {"weight": "diff", "bias": "diff_b", "modulation": "diff_m"}
    for n, (name, each) in enumerate(plain.items()):
        module, _, end = transformer_name("wan", name).rpartition(".")
        change = torch.randn(each.shape, generator=torch.Generator().manual_seed(n))
        tensors[f"diffusion_model.{module}.{ends[end]}"], wanted[name] = change, each + 0.5 * change
    assert {name.rpartition(".")[2] for name in tensors} == set(ends.values())
    save_file(tensors, tmp_path / "x.safetensors")
    found = network(single, tmp_path, {"file": str(tmp_path / "x.safetensors"), "weight": 0.5})
    for name, each in wanted.items():
        torch.testing.assert_close(found[name], each, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("asked", "parts"),
    [
        ("transformer", ("transformer",)),
        ("transformer_2", ("transformer_2",)),
        ("both", ("transformer", "transformer_2")),
    ],
)
def test_a_file_changes_the_network_that_is_named(
    asked: str, parts: tuple[str, ...], pair: Path, tmp_path: Path
) -> None:
    file = lora_file(tmp_path / "x.safetensors", low_rank({f"diffusion_model.{QUERIES}": (32, 32)}))
    lora = {"file": str(file), "network": asked}
    assert changed(pair, tmp_path, lora) == [f"{part}.{STORED}" for part in parts]
    infos = [describe(ModelSpec(name=str(pair), loras=each), tmp_path) for each in ([], [lora])]
    plain, info = (info.fingerprints for info in infos)
    assert {part for part in plain if plain[part] != info[part]} == {"unet"}
    assert [each.network for each in infos[1].adapters] == list(parts)


@pytest.mark.thorough
def test_each_network_has_a_file_of_its_own(pair: Path, tmp_path: Path) -> None:
    files = [
        lora_file(tmp_path / f"{n}.safetensors", low_rank({f"diffusion_model.{QUERIES}": (32, 32)}, seed=n))
        for n in range(2)
    ]
    both, swapped = (
        [{"file": str(file), "network": name} for file, name in zip(files, names, strict=True)]
        for names in (("transformer", "transformer_2"), ("transformer_2", "transformer"))
    )
    assert changed(pair, tmp_path, *both) == [f"transformer.{STORED}", f"transformer_2.{STORED}"]
    prints = {
        describe(ModelSpec(name=str(pair), loras=each), tmp_path).fingerprints["unet"] for each in (both, swapped)
    }
    assert len(prints) == 2


def test_names_in_a_file_of_diffusers_say_the_network_and_the_scale(pair: Path, tmp_path: Path) -> None:
    names = [f"{part}.blocks.0.attn1.to_q" for part in ("transformer", "transformer_2")]
    tensors = low_rank(dict.fromkeys(names, (32, 32)), names=PEFT)
    scales = {"transformer.lora_alpha": 2, "transformer.r": 2, "transformer_2.lora_alpha": 6, "transformer_2.r": 2}
    file = lora_file(tmp_path / "x.safetensors", tensors, {"lora_adapter_metadata": json.dumps(scales)})
    plain, found = network(pair, tmp_path), network(pair, tmp_path, {"file": str(file)})
    for name, scale in zip(names, (1, 3), strict=True):
        change = scale * tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
        torch.testing.assert_close(found[f"{name}.weight"], plain[f"{name}.weight"] + change, atol=1e-6, rtol=1e-6)


def test_a_network_is_asked_for_where_there_are_two_alone(single: Path, pair: Path, tmp_path: Path) -> None:
    file = lora_file(tmp_path / "x.safetensors", low_rank({f"diffusion_model.{QUERIES}": (32, 32)}))
    with pytest.raises(SpecError, match=r"does not say which network .* set its `network`: transformer works at high"):
        describe(ModelSpec(name=str(pair), loras=[{"file": str(file)}]), tmp_path)
    with pytest.raises(SpecError, match=r"network: 'both' is for a model with two, and .* has one; leave it out"):
        describe(ModelSpec(name=str(single), loras=[{"file": str(file), "network": "both"}]), tmp_path)
    with pytest.raises(ValueError, match="network"):
        ModelSpec(name=str(pair), loras=[{"file": str(file), "network": "low"}])
    both = lora_file(
        tmp_path / "y.safetensors",
        low_rank({f"{part}.{QUERIES}": (32, 32) for part in ("transformer", "transformer_2")}),
    )
    with pytest.raises(SpecError, match=r"1 of 2 modules that the model .* lacks \(transformer_2\."):
        describe(ModelSpec(name=str(pair), loras=[{"file": str(both), "network": "transformer"}]), tmp_path)


def test_a_line_says_the_network() -> None:
    adapter = {"file": "a/high.safetensors", "weight": 1.0, "text_weight": 1.0, "trigger_words": []}
    assert adapter_line({**adapter, "network": "transformer"}) == "adapter high: weight 1, in transformer"
    assert adapter_line(adapter) == "adapter high: weight 1"
