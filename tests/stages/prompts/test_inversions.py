"""Embeddings: which files are taken for which model, where a prompt names them, and what of them is in a key."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from stages.conditioning import text_stage
from stages.errors import SpecError
from stages.models.describe import describe
from stages.models.folder import ModelInfo
from stages.plan import make_plan
from stages.planner.estimate import estimate
from stages.planner.recorded import recorded_stage
from stages.prompts.convert import convert
from stages.prompts.inversions import inversion, known
from stages.prompts.names import Embedding
from stages.prompts.reading import read
from stages.spec import ModelSpec, RenderSpec, RunOptions, make_spec
from tests.stages.prompts.text_models import write_tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from stages.plan import Plan

WIDTHS = {"sd15": (768,), "sd2": (1024,), "sdxl": (768, 1280)}


def info_of(kind: str, root: Path) -> ModelInfo:
    """A model that reads prompts, with its tokenizer; nothing is loaded."""
    texts = {
        name: {"hidden_size": width, "num_hidden_layers": 12}
        for name, width in zip(("text_encoder", "text_encoder_2"), WIDTHS[kind], strict=False)
    }
    if not (root / "tokenizer").is_dir():
        write_tokenizer(root / "tokenizer", "<|endoftext|>")
    return ModelInfo(kind, root, (64, 64), 4, 7.5, "", "euler", {}, kind == "sdxl", 4, configs=texts, words=root)


def saved(file: Path, metadata: dict[str, str] | None = None, seed: int = 0, **shapes: Sequence[int]) -> Path:
    """A file with tensors of these shapes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    save_file({name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}, file, metadata)
    return file


@pytest.mark.parametrize(
    ("kind", "shapes", "vectors"),
    [
        ("sd15", {"emb_params": (3, 768)}, 3),
        ("sd15", {"<glow>": (768,)}, 1),
        ("sd15", {"glow": (2, 768)}, 2),
        ("sd2", {"emb_params": (8, 1024)}, 8),
        ("sdxl", {"clip_l": (4, 768), "clip_g": (4, 1280)}, 4),
        ("sdxl", {"text_encoders_0": (2, 768), "text_encoders_1": (2, 1280)}, 2),
    ],
)
def test_forms(kind: str, shapes: dict[str, Any], vectors: int, tmp_path: Path) -> None:
    file = saved(tmp_path / "glow.safetensors", **shapes)
    assert inversion(Embedding("glow", file, True), info_of(kind, tmp_path)).vectors == vectors


@pytest.mark.parametrize(
    ("kind", "shapes", "says"),
    [
        (
            "sdxl",
            {"emb_params": (3, 768)},
            "made for Stable Diffusion 1.x; sdxl takes vectors that are 768 wide and 1280",
        ),
        ("sd15", {"clip_l": (4, 768), "clip_g": (4, 1280)}, "made for SDXL; sd15 takes vectors that are 768 wide"),
        ("sd15", {"emb_params": (3, 1024)}, "made for Stable Diffusion 2.x; sd15 takes vectors that are 768 wide"),
        ("sdxl", {"clip_l": (4, 768), "clip_g": (5, 1280)}, "has 4 in clip_l and 5 in clip_g; as many in both work"),
        ("sd15", {"emb_params": (76, 768)}, "has 76 vectors; 1 to 75 fit into a prompt"),
        ("sd15", {"emb_params": (0, 768)}, "has 0 vectors"),
        ("sd15", {"emb_params": (1, 2, 768)}, "sd15 takes vectors"),
        ("sd15", {"a": (1, 768), "b": (1, 768)}, "sd15 takes vectors"),
    ],
)
def test_what_does_not_fit_says_what_it_is_made_for(
    kind: str, shapes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    file = saved(tmp_path / "glow.safetensors", **shapes)
    with pytest.raises(SpecError, match=f"^model.embeddings: .*glow.safetensors.* {says}"):
        inversion(Embedding("glow", file, True), info_of(kind, tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.safetensors", b"<!DOCTYPE html>" + b" " * 100, "model.embeddings: "),
        ("a.safetensors", b"", "model.embeddings: "),
        ("a.pt", b"PK\x03\x04", "is a pickle.*`freescale convert embedding .*a.pt .*a.safetensors`"),
        ("a.bin", b"PK\x03\x04", "is a pickle"),
    ],
)
def test_a_file_that_is_none_is_refused(name: str, content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SpecError, match=says):
        inversion(Embedding("a", tmp_path / name, True), info_of("sd15", tmp_path))


def test_an_embedding_of_integers_is_refused(tmp_path: Path) -> None:
    save_file({"emb_params": torch.ones(2, 768, dtype=torch.int64)}, tmp_path / "a.safetensors")
    with pytest.raises(SpecError, match="takes vectors"):
        inversion(Embedding("a", tmp_path / "a.safetensors", True), info_of("sd15", tmp_path))


def test_what_a_spec_lists_must_be_there_and_fit(tmp_path: Path) -> None:
    info, home = info_of("sd15", tmp_path), tmp_path / "home"
    saved(home / "embeddings" / "faces" / "glow.safetensors", emb_params=(2, 768))
    saved(home / "embeddings" / "grain.safetensors", emb_params=(2, 1024))

    def listed(*embeddings: dict[str, str]) -> tuple[Embedding, ...]:
        return known(info, ModelSpec.model_validate({"embeddings": embeddings}), home).embeddings

    assert sorted(each.trigger for each in listed()) == ["glow", "grain"], "also below the folder, and of any model"
    given = listed({"file": "faces/glow"}, {"file": str(home / "embeddings/faces/glow.safetensors"), "trigger": "x"})
    assert [(each.trigger, each.is_given) for each in given] == [("glow", True), ("x", True), ("grain", False)]
    with pytest.raises(SpecError, match=r"'gloww' is not a file.*; the nearest is '(faces/)?glow'"):
        listed({"file": "gloww"})
    with pytest.raises(SpecError, match="two have the trigger 'GLOW'"):
        listed({"file": "faces/glow"}, {"file": "faces/glow", "trigger": "GLOW"})
    with pytest.raises(SpecError, match=r"made for Stable Diffusion 2.x"):
        listed({"file": "grain"})


@pytest.mark.parametrize(
    ("syntax", "prompt", "names"),
    [
        ("a1111", "a Glow, glowing (glow:1.2)", ["glow", "glow"]),
        ("a1111", "bad-hands-5, bad-hands", ["bad-hands-5", "bad-hands"]),
        ("a1111", "soft  glow", ["glow"]),
        ("a1111", "glow_up, glows", []),
        ("a1111", "<cat>, a <cat>s", ["<cat>"]),
        ("comfy", "embedding:glow, (embedding:bad-hands-5.safetensors:1.2) glow", ["glow", "bad-hands-5"]),
        ("comfy", "embedding:faces/glow", ["faces/glow"]),
        ("comfy", "an embedding:<cat>", ["<cat>"]),
        ("plain", "a glow", []),
    ],
)
def test_a_prompt_names_embeddings(syntax: str, prompt: str, names: list[str], tmp_path: Path) -> None:
    files = [
        saved(tmp_path / "faces" / f"{n}.safetensors", emb_params=(1, 768))
        for n in ("glow", "bad-hands", "bad-hands-5", "<cat>")
    ]
    info = replace(info_of("sd15", tmp_path), embeddings=tuple(Embedding(file.stem, file, False) for file in files))
    found = read(prompt, syntax, info)
    assert [piece.embedding for part in found.parts for piece in part if piece.embedding] == names
    assert set(found.embeddings) == set(names)
    assert found.is_plain == (not names)


def test_names_that_lead_nowhere(tmp_path: Path) -> None:
    wrong = saved(tmp_path / "a" / "glow.safetensors", emb_params=(1, 1024))
    info = replace(info_of("sd15", tmp_path), embeddings=(Embedding("glow", wrong, False),))
    found = read("a glow", "a1111", info)
    assert not found.embeddings
    assert "made for Stable Diffusion 2.x" in found.left[0], "it stays a word, which is said"
    with pytest.raises(SpecError, match=r"made for Stable Diffusion 2.x"):
        read("embedding:glow", "comfy", info)
    with pytest.raises(SpecError, match="there is no embedding 'glowing'; the nearest is 'glow'"):
        read("embedding:glowing", "comfy", info)
    files = [
        saved(tmp_path / name / "glow.safetensors", seed=seed, emb_params=(1, 768)) for seed, name in enumerate("bcd")
    ]
    twice = replace(info, embeddings=tuple(Embedding("glow", file, False) for file in (wrong, *files[:2])))
    with pytest.raises(SpecError, match=r"'glow' is the name of .* and of .*; give the path of one"):
        read("a glow", "a1111", twice)
    copied = saved(tmp_path / "e" / "glow.safetensors", seed=0, emb_params=(1, 768))
    alike = replace(info, embeddings=(Embedding("glow", files[0], False), Embedding("glow", copied, False)))
    assert list(read("a glow", "a1111", alike).embeddings) == ["glow"], "two copies of one are one"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelInfo, Path]:
    home = tmp_path_factory.mktemp("home")
    return describe(ModelSpec(), home), home


def planned(shapes: tuple[ModelInfo, Path], **values: Any) -> Plan:
    info, home = shapes
    spec = make_spec({"width": 64, "height": 64, "steps": 2, "method": {"name": "direct"}, **values})
    return make_plan(spec, known(info, spec.model, home))


def text_key(plan: Plan) -> str:
    return next(call.key for call in plan.calls if call.stage.name == "conditioning")


def test_the_tensors_of_an_embedding_decide_a_key_and_nothing_else_does(
    shapes: tuple[ModelInfo, Path], tmp_path: Path
) -> None:
    def key(file: Path, **values: Any) -> str:
        listed = {"embeddings": [{"file": str(file), "trigger": "glow"}]}
        return text_key(planned(shapes, prompt="a glow", prompt_syntax="a1111", model=listed, **values))

    tensors = {"clip_l": (2, 48), "clip_g": (2, 48)}
    first = key(saved(tmp_path / "glow.safetensors", **tensors))
    assert key(saved(tmp_path / "other.safetensors", {"trigger_phrase": "x"}, **tensors)) == first
    assert key(saved(tmp_path / "other.safetensors", seed=1, **tensors)) != first
    unnamed = planned(
        shapes,
        prompt="a disc",
        prompt_syntax="a1111",
        model={"embeddings": [{"file": str(tmp_path / "glow.safetensors")}]},
    )
    assert text_key(unnamed) == text_key(planned(shapes, prompt="a disc"))


def test_a_plan_names_the_embeddings_of_the_home_that_it_uses(shapes: tuple[ModelInfo, Path]) -> None:
    info, home = shapes
    file = saved(home / "embeddings" / "glow.safetensors", clip_l=(2, 48), clip_g=(2, 48))
    plan = planned(shapes, prompt="a glow", prompt_syntax="a1111")
    assert [(each.file, each.trigger) for each in plan.spec.model.embeddings] == [(str(file), "glow")]
    again = make_plan(RenderSpec.model_validate(plan.spec.model_dump()), known(info, plan.spec.model, home))
    assert [call.key for call in again.calls] == [call.key for call in plan.calls]
    assert str(home) not in json.dumps([call.stage.params() for call in plan.calls]), "folders are private"
    file.unlink()
    with pytest.raises(SpecError, match=r"glow.safetensors' is not a file"):
        known(info, plan.spec.model, home)
    assert not planned(shapes, prompt="a glow").spec.model.embeddings, "a plain prompt names none"


def test_keys_of_prompts(shapes: tuple[ModelInfo, Path]) -> None:
    """What says the same has one key, in every syntax; what makes other rows has another."""
    plain = text_key(planned(shapes, prompt="a red disc"))
    for same in (
        {"prompt": "a red disc", "prompt_syntax": "a1111"},
        {"prompt": "a (red:1.0) disc", "prompt_syntax": "comfy", "emphasis": "comfy"},
        {"prompt": "a red disc<lora:x:1>", "prompt_syntax": "a1111"},
        {"prompt": "a red disc", "model": {"clip_skip": 2}},
        {"prompt": "a red disc BREAK", "prompt_syntax": "a1111"},
    ):
        assert text_key(planned(shapes, **same)) == plain, same
    others = [
        {"prompt": "a (red:1.1) disc", "prompt_syntax": "a1111"},
        {"prompt": "a (red:1.1) disc", "prompt_syntax": "a1111", "emphasis": "no_norm"},
        {"prompt": "a (red:1.1) disc", "prompt_syntax": "comfy"},
        {"prompt": "a (red:1.1) disc"},
        {"prompt": "BREAK a red disc", "prompt_syntax": "a1111"},
        {"prompt": "a red disc" * 20, "prompt_syntax": "a1111"},
        {"prompt": "a red disc" * 20},
    ]
    assert len({plain, *(text_key(planned(shapes, **values)) for values in others)}) == 1 + len(others)


def test_a_plan_knows_how_long_the_rows_are(shapes: tuple[ModelInfo, Path]) -> None:
    plan = planned(shapes, prompt="a red disc BREAK a blue one", prompt_syntax="a1111")
    assert {getattr(call.stage, "chunks", 2) for call in plan.calls} == {2}
    spec = make_spec({"prompt": "a red disc " * 10, "negative_prompt": "blue", "prompt_syntax": "a1111"})
    assert text_stage(spec, shapes[0], "blue").chunks == 3, "of 14 tokens each"
    assert text_stage(spec, shapes[0], "BREAK blue").chunks == 6
    assert text_stage(spec, shapes[0], "()").negative_prompt == "", "which is zeros for SDXL"


def test_longer_prompts_cost_more(shapes: tuple[ModelInfo, Path]) -> None:
    """By the rows that are attended to, in every estimate; and what a store tells of a stage knows them, too."""
    short, long = (
        planned(shapes, prompt=text, prompt_syntax="a1111") for text in ("(a:1.1)", "(a:1.1)" + " BREAK b" * 3)
    )
    for before, after in zip(short.calls, long.calls, strict=True):
        first, second = (estimate(call, shapes[0], RunOptions(), "cpu") for call in (before, after))
        if after.stage.part in ("text", "unet"):
            assert second.flops > first.flops
            params = {**after.stage.params(), "model": after.model}
            found = recorded_stage(after.stage.name, after.stage.key_version(), params, 4)
            assert found == after.stage
            assert getattr(found, "chunks", 0) == getattr(after.stage, "chunks", 4) == 4
        if after.stage.part == "text":
            assert second.flops == 4 * first.flops
            assert second.disk > 3 * first.disk
            assert second.memory > first.memory


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"emphasis": "comfy"}, "emphasis: comfy is for prompts with weights or embeddings; prompt_syntax: a1111"),
        ({"model": {"clip_skip": 3}}, "model.clip_skip: 3 is more than the text encoders of shapes allow; 1 to 2 work"),
        ({"prompt_syntax": "a1111", "prompt": "[a|b]"}, "changes the words from step to step"),
        ({"prompt_syntax": "a1111", "negative_prompt": "<hypernet:a:1>"}, "of the kind hypernet"),
        ({"prompt_syntax": "a1111", "prompt": "a BREAK " * 70}, "chunks of tokens"),
    ],
)
def test_what_a_spec_cannot_have(shapes: tuple[ModelInfo, Path], values: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError, match=says):
        planned(shapes, **{"prompt": "a", **values})


def test_a_video_model_reads_plain_prompts(shapes: tuple[ModelInfo, Path]) -> None:
    info = replace(shapes[0], frames=4, fps=8.0)
    for values in ({"prompt_syntax": "comfy"}, {"model": {"clip_skip": 1}}, {"emphasis": "off"}):
        spec = make_spec({"prompt": "a", "width": 64, "height": 64, "method": {"name": "direct"}, **values})
        with pytest.raises(SpecError, match=r"makes videos, from plain prompts; leave it out"):
            make_plan(spec, info)


@pytest.mark.parametrize(
    ("pickled", "tensors"),
    [
        (
            {"string_to_token": {"*": 265}, "string_to_param": {"*": torch.ones(2, 768)}, "name": "x", "step": 5},
            ["emb_params"],
        ),
        ({"<glow>": torch.ones(768)}, ["emb_params"]),
        ({"clip_g": torch.ones(1, 1280), "clip_l": torch.ones(1, 768)}, ["clip_g", "clip_l"]),
    ],
)
def test_a_pickle_is_converted(pickled: dict[str, Any], tensors: list[str], tmp_path: Path) -> None:
    torch.save(pickled, tmp_path / "a.pt")
    convert(tmp_path / "a.pt", target := tmp_path / "a.safetensors")
    kind = "sdxl" if len(tensors) > 1 else "sd15"
    assert inversion(Embedding("a", target, True), info_of(kind, tmp_path)).vectors in (1, 2)
    with pytest.raises(SpecError, match="is there already"):
        convert(tmp_path / "a.pt", target)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["a.pt", "a.safetensors"]


class Runs:
    """Something that would be made by running code."""


@pytest.mark.parametrize(
    ("pickled", "says"),
    [
        ({"string_to_param": {"*": torch.ones(2, 768)}, "optimizer": Runs()}, "holds more than tensors"),
        ({"a": torch.ones(768), "b": torch.ones(768)}, "holds 2 embeddings; a file of one works"),
        ({"string_to_param": {}}, "holds no vectors"),
        ([1, 2], "holds no vectors"),
    ],
)
def test_a_pickle_with_anything_else_is_refused(pickled: Any, says: str, tmp_path: Path) -> None:
    torch.save(pickled, tmp_path / "a.pt")
    with pytest.raises(SpecError, match=says):
        convert(tmp_path / "a.pt", tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists()
