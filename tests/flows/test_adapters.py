"""Adapters of renders: from the spec and from the prompt, in keys, in what is said, and in pictures."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from flows.cli.flags import asked, grid_values
from flows.cli.show_plan import planned
from flows.cli.tables import print_run
from flows.compare.layout import prepare_comparison
from flows.home import Home
from flows.rendering.adapters import adapter_line, adapter_remarks, recorded_adapters
from flows.rendering.fields import Origin, render_fields
from flows.rendering.job import prepare
from stages.errors import SpecError
from stages.metrics.grid import GridSpec
from stages.spec import RunOptions, make_spec
from tests.adapter_files import SHAPES, SHAPES_TEXT, SHAPES_UNET, edited, lora_file, low_rank
from tests.homes import session_in

if TYPE_CHECKING:
    from pathlib import Path

    from flows.rendering.job import Job

WORDS = {"modelspec.trigger_phrase": "grain"}
SMALL = {"width": 64, "height": 64, "steps": 2, "method": {"name": "direct"}}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    lora_file(home / "loras" / "both.safetensors", low_rank(SHAPES), WORDS)
    lora_file(home / "loras" / "styles" / "unet.safetensors", low_rank({SHAPES_UNET: (96, 96)}, seed=1))
    return home


def job(home: Path, prompt: str = "a red disc", *loras: Any, **values: Any) -> Job:
    model = {"loras": loras, **values.pop("model", {})}
    return prepare(make_spec({"prompt": prompt, "model": model, **SMALL, **values}), Home(home))


def keys(made: Job) -> dict[str, str]:
    """The keys of all stages but the last, whose file has the spec in it."""
    return {call.stage.name: call.key for call in made.plan.calls if call.stage.name != "export"}


def test_a_prompt_names_adapters_as_the_spec_does(home: Path) -> None:
    plain = job(home, "a red disc", "both:0.8", "unet:0.5", prompt_syntax="a1111")
    named = job(home, "a red disc <lora:both:0.8><lora:unet:0.5>", prompt_syntax="a1111")
    mixed = job(home, "a red disc <lora:unet:0.5>", "both:0.8", prompt_syntax="a1111")
    assert keys(named) == keys(plain) == keys(mixed)
    assert "<lora" in named.spec.prompt, "the record has what was written"
    assert named.spec.model.loras == ()


def test_two_weights_in_a_prompt_are_those_of_its_program(home: Path) -> None:
    ours = keys(job(home, "a red disc", "both:0.8:0.5", prompt_syntax="a1111"))
    assert keys(job(home, "a red disc <lora:both:0.5:0.8>", prompt_syntax="a1111")) == ours
    assert keys(job(home, "a red disc <lora:both:0.8:0.5>", prompt_syntax="comfy")) == ours


def test_a_plain_prompt_names_none(home: Path) -> None:
    assert job(home, "a red disc <lora:none:1>").plan.info.adapters == ()


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("a <lora:both:high>", "has the weight 'high'"),
        ("a <lora:bot:1>", "'bot' is not a file, nor the name of one under .*; the nearest is 'both'"),
        ("a <hypernet:both:1>", "is a network of the kind hypernet"),
    ],
)
def test_a_network_that_is_none_is_told(prompt: str, says: str, home: Path) -> None:
    with pytest.raises(SpecError, match=says):
        job(home, prompt, prompt_syntax="a1111")


def test_a_network_in_the_negative_prompt_is_refused(home: Path) -> None:
    with pytest.raises(SpecError, match="negative_prompt: it names the LoRA 'both'"):
        job(home, "a red disc", negative_prompt="blue <lora:both:1>", prompt_syntax="a1111")
    assert job(home, "a red disc", negative_prompt="blue <lora:both:1>").plan.info.adapters == ()


def test_a_name_that_two_files_have_is_told_with_both(home: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        lora_file(tmp_path / "loras" / folder / "grain.safetensors")
    with pytest.raises(SpecError, match=r"'grain' is the name of .*a/grain.safetensors and of .*b/grain.safetensors"):
        job(tmp_path, "a red disc", "grain")
    assert job(tmp_path, "a red disc", "b/grain.safetensors").plan.info.adapters


def test_an_adapter_without_text_keeps_the_encoded_prompt(home: Path) -> None:
    base, changed = keys(job(home)), keys(job(home, "a red disc", "unet"))
    assert changed["conditioning"] == base["conditioning"]
    assert changed["base_denoise"] != base["base_denoise"]
    assert keys(job(home, "a red disc <lora:both:0>", prompt_syntax="a1111")) == base
    assert job(home, "a red disc", "both:0").run == job(home).run, "also the file is the same, with its spec"


@pytest.mark.thorough
def test_the_picture_of_a_weight_of_0_is_the_base_s_and_others_differ(home: Path, tmp_path: Path) -> None:
    pictures = {
        loras: session_in(home).render(job(home, "a red disc", *loras)).pixels_sha256
        for loras in ((), ("both:0",), ("both:0.5",), ("both",), ("unet", "both"))
    }
    assert pictures[()] == pictures["both:0",]
    assert len(set(pictures.values())) == 4


def test_what_is_stored_names_files_and_no_folders(home: Path) -> None:
    made = job(home, "a red disc", {"file": str(home / "loras" / "both.safetensors"), "blocks": {"MID": 0.5}})
    record = json.loads(made.plan.exports[-1].stage.params()["provenance"])
    assert record["spec"]["model"]["loras"] == [{"file": "both.safetensors", "blocks": {"MID": 0.5}}]


def test_a_plan_and_a_record_name_adapters_with_their_trigger_words(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = job(home, "a red disc <lora:unet:0.5>", "both:0.8:0.5", prompt_syntax="a1111")
    both, unet = planned(made, Home(home), RunOptions())["adapters"]
    assert (both["kind"], both["weight"], both["text_weight"], both["trigger_words"]) == (
        "LoRA + LoCon",
        0.8,
        0.5,
        ["grain"],
    )
    assert adapter_line(both) == "LoRA + LoCon both: weight 0.8, of the text encoders 0.5; trigger words: grain"
    assert adapter_line(unet) == "LoRA unet: weight 0.5"
    session_in(home).render(made)
    print_run(Home(home), made.run, as_json=False)
    said = capsys.readouterr().out
    assert "adapter both: weight 0.8, of the text encoders 0.5; trigger words: grain" in said
    assert "adapter unet: weight 0.5" in said
    assert "adapters" not in planned(job(home), Home(home), RunOptions())


def test_a_record_of_an_adapter_that_is_gone_has_no_words(tmp_path: Path) -> None:
    spec = {"prompt": "x", "model": {"loras": [{"file": "gone", "weight": 1.0, "text_weight": None}]}}
    assert recorded_adapters(spec, tmp_path) == [
        {"file": "gone", "network": None, "weight": 1.0, "text_weight": 1.0, "trigger_words": []}
    ]


def test_what_has_no_effect_is_said(home: Path, tmp_path: Path) -> None:
    assert list(adapter_remarks(job(home, "a red disc", "both:0.8:0.5"))) == []
    (text,) = adapter_remarks(job(home, "a red disc", "unet:0.8:0.5"))
    assert text == "unet.safetensors changes no text encoder, so its text weight has no effect"
    (half,) = adapter_remarks(job(home, "a red disc", "both", model={"dtype": "bfloat16"}))
    assert half.startswith("bfloat16 keeps 8 bits")
    lost = lora_file(tmp_path / "lost.safetensors", low_rank({SHAPES_UNET: (96, 96), "lora_unet_x": (4, 4)}))
    (left,) = adapter_remarks(job(home, "a red disc", {"file": str(lost), "allow_unmatched": True}))
    assert left == "lost.safetensors: 1 of its modules are left out, as asked (lora_unet_x)"


def test_an_embedding_in_the_file_is_there_for_prompts(home: Path, tmp_path: Path) -> None:
    path = lora_file(tmp_path / "bundle.safetensors", low_rank({SHAPES_TEXT: (128, 48)}))
    rows = {"clip_l": torch.randn(2, 48), "clip_g": torch.randn(2, 48)}
    edited(path, lambda tensors: tensors.update({f"bundle_emb.sks.{name}": row for name, row in rows.items()}))

    def stage(*loras: str) -> Any:
        made = job(home, "a red sks disc", *loras, prompt_syntax="a1111")
        return next(call.stage for call in made.plan.calls if call.stage.name == "conditioning")

    assert [name for name, _ in stage(str(path)).embeddings] == ["sks"]
    assert not getattr(stage(), "embeddings", ())
    edited(path, lambda tensors: tensors.update({"bundle_emb.sks.clip_t5": torch.zeros(2)}))
    with pytest.raises(SpecError, match="the embedding 'sks' with clip_t5"):
        stage(str(path))


def test_paths_are_relative_to_the_file_that_has_them(home: Path, tmp_path: Path) -> None:
    path = lora_file(tmp_path / "near.safetensors")
    origin = Origin(tmp_path, None, "a.yaml")
    fields = render_fields({"model": {"loras": ["near.safetensors:0.5", "both", {"file": "near.safetensors"}]}}, origin)
    assert fields["model"]["loras"] == [{"file": str(path), "weight": 0.5}, {"file": "both"}, {"file": str(path)}]
    assert render_fields({"model": {"loras": "both:0.5, unet"}}, origin)["model"]["loras"] == [
        {"file": "both", "weight": 0.5},
        {"file": "unet"},
    ]


def test_a_comparison_finds_adapters_beside_its_file(home: Path, tmp_path: Path) -> None:
    path, spec = lora_file(tmp_path / "near.safetensors"), tmp_path / "a.yaml"
    spec.write_text("prompts: [a red disc]\nsizes: [64x64]\nmodel: {name: shapes, loras: ['near.safetensors:0.5']}\n")
    values, _ = grid_values(spec, {})
    assert values["model"] == {"name": "shapes", "loras": [{"file": str(path), "weight": 0.5}]}
    cells = prepare_comparison(GridSpec.model_validate(values), Home(home)).rows[0].cells
    assert {each.file for cell in cells for each in cell.queued.job.plan.info.adapters} == {path}


def test_options_take_the_place_of_what_the_file_says(home: Path, tmp_path: Path) -> None:
    spec = tmp_path / "a.yaml"
    spec.write_text("prompt: a red disc\nsize: 64x64\nmodel: {name: shapes, loras: ['unet:0.5']}\n")
    made = asked(str(spec), {"lora": ["both:0.8"], "size": None}, [], Home(home), None).job
    assert [(lora.file, lora.weight) for lora in made.spec.model.loras] == [("both", 0.8)]
    assert [each.file.stem for each in made.plan.info.adapters] == ["both"]
    kept = asked(str(spec), {}, [], Home(home), None).job
    assert [each.file.stem for each in kept.plan.info.adapters] == ["unet"]


def test_a_planner_sees_the_base(home: Path) -> None:
    base, changed = (planned(job(home, "a red disc", *loras), Home(home), RunOptions()) for loras in ((), ("both",)))
    rows = [[(row["memory_bytes"], row["flops"]) for row in each["stages"]] for each in (base, changed)]
    assert rows[0] == rows[1]


def test_a_recorded_run_plans_as_it_did(home: Path) -> None:
    made = job(home, "a red disc <lora:unet:0.5>", "both:0.8", prompt_syntax="a1111")
    again = prepare(make_spec(made.spec.model_dump(mode="json")), Home(home))
    assert keys(again) == keys(made)
    assert replace(again, plan=made.plan) == made
