"""Remarks on prompts: what a model does not read, and marks of other programs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from flows.home import Home
from flows.rendering.job import prepare
from flows.rendering.prompts import marks, prompt_remarks
from stages.models import tokens
from stages.models.folder import EMBEDDED
from stages.spec import make_spec

if TYPE_CHECKING:
    from pathlib import Path

LONG = "a red disc and a blue square and a green triangle"


def said(tmp_path: Path, **values: Any) -> list[str]:
    """The remarks on a small picture."""
    spec = make_spec({"prompt": "a red disc", "width": 128, "height": 128, "method": {"name": "direct"}, **values})
    return list(prompt_remarks(prepare(spec, Home(tmp_path))))


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("a (red:1.2) disc", ["(red:1.2)"]),
        ("(red: .5)", ["(red: .5)"]),
        ("((masterpiece)), best", ["((masterpiece))"]),
        ("a <lora:foo:0.8> disc", ["<lora:foo:0.8>"]),
        ("<hypernet:a:1> <embedding:b>", ["<hypernet:a:1>", "<embedding:b>"]),
        ("embedding:bad_hands_5", ["embedding:bad_hands_5"]),
        ("[red|blue] disc", ["[red|blue]"]),
        ("[red:blue:0.5] disc", ["[red:blue:0.5]"]),
        ("[background]", ["[background]"]),
        ("{red|blue} disc", ["{red|blue}"]),
        ("a __colour__ disc", ["__colour__"]),
        ("cloud++, (blue sky)--", ["cloud++", ")--"]),
        ("a disc --ar 16:9 --v 6", ["--ar 16:9", "--v 6"]),
        ("fire::2 ice", ["fire::2"]),
        ("a disc BREAK a square AND a disc AND a disc", ["BREAK", "AND"]),
        ("ROMEO AND JULIET", []),
        ("a castle (ruined) -- at dawn, 16:9, x-ray, e-mail", []),
        ("a sign that says 'open': yes, 3 < 4 > 2", []),
        ("l'\u00e9toile, \u00fcber", []),
    ],
)
def test_marks_of_other_programs_are_found_and_plain_words_are_not(prompt: str, found: list[str]) -> None:
    assert marks(prompt) == found


def test_a_prompt_that_is_cut_names_what_is_not_read(tmp_path: Path) -> None:
    (remark,) = said(tmp_path, prompt=LONG)
    assert remark == (
        "the prompt has 15 tokens, and shapes reads 14; it does not read 'triangle'; "
        "--prompt-syntax a1111 reads all of it"
    )
    assert said(tmp_path, prompt="a red disc") == []


def test_a_negative_prompt_is_looked_at_too(tmp_path: Path) -> None:
    (remark,) = said(tmp_path, negative_prompt=LONG)
    assert remark.startswith("the negative prompt has ")
    (remark,) = said(tmp_path, negative_prompt=LONG, guidance_scale=1)
    assert remark == "the negative prompt has no effect, since guidance is off; a guidance scale above 1 turns it on"
    assert said(tmp_path, negative_prompt="", guidance_scale=1) == []


def test_a_blank_prompt_and_marks_get_a_remark(tmp_path: Path) -> None:
    assert said(tmp_path, prompt=" \n") == ["the prompt is blank, so the picture follows no words"]
    (remark,) = said(tmp_path, prompt="(a:1) (b:2)")
    assert remark == (
        "the prompt holds '(a:1)', '(b:2)', which is no syntax here and is read as plain words; "
        "--prompt-syntax a1111 or comfy reads such"
    )
    (remark,) = said(tmp_path, prompt="a disc --ar 16:9")
    assert remark == "the prompt holds '--ar 16:9', which is no syntax here and is read as plain words"


def test_tokens_are_counted_as_transformers_counts_them(tmp_path: Path) -> None:
    """Also where a folder has the vocabulary in two files, as the published ones do."""
    from transformers import CLIPTokenizer

    theirs = CLIPTokenizer.from_pretrained(EMBEDDED / "tokenizer")
    model = json.loads((EMBEDDED / "tokenizer" / "tokenizer.json").read_text())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    for text in (LONG, "A  Red\tdisc's\n 123 \u00c9toile!!", "(x:1.2), [a|b] <lora:x:1>", "\U0001f600 \u0130"):
        expected = theirs(text, add_special_tokens=False).input_ids
        for folder in (EMBEDDED / "tokenizer", tmp_path):
            assert tokens._tokenizer(folder).encode(text, add_special_tokens=False).ids == expected
