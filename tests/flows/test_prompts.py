"""Remarks on prompts: what a model does not read, and marks of other programs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from flows.home import Home
from flows.rendering.job import Job, prepare
from flows.rendering.prompts import marks, prompt_remarks
from flows.rendering.stored import StoredRun, resumed
from stages.models import tokens
from stages.models.folder import EMBEDDED
from stages.observer import NullObserver
from stages.runner import Interrupted
from stages.spec import make_spec
from tests.homes import session_in

if TYPE_CHECKING:
    from pathlib import Path

    from flows.rendering.stop import StopEvent
    from stages.call import Call

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


@pytest.mark.parametrize(
    ("syntax", "prompt", "found"),
    [
        ("a1111", "a (red:1.2) [blue] ((disc)) BREAK <lora:x:1>", []),
        ("a1111", "embedding:x AND __y__ {a|b} --ar 16:9", ["embedding:x", "AND", "__y__", "{a|b}", "--ar 16:9"]),
        ("comfy", "a (red:1.2) embedding:x <lora:x:1>", []),
        ("comfy", "[blue] BREAK", ["[blue]", "BREAK"]),
    ],
)
def test_marks_of_a_syntax_are_no_marks_of_another_program(syntax: str, prompt: str, found: list[str]) -> None:
    assert marks(prompt, syntax) == found


def test_what_a_prompt_does_with_its_syntax_is_said(tmp_path: Path) -> None:
    a1111: dict[str, Any] = {"prompt_syntax": "a1111"}
    assert said(tmp_path, prompt=f"(a:1.2) {LONG}", **a1111) == [], "all of it is read"
    (remark,) = said(tmp_path, prompt="(a BREAK disc)", **a1111)
    assert remark == "the prompt has BREAK inside of brackets, where it is a word"
    (remark,) = said(tmp_path, prompt="BREAK a disc", **a1111)
    assert remark == "the prompt begins with BREAK, so its first chunk has no words"
    for blank in ("( )", "[]"):
        (remark,) = said(tmp_path, prompt=blank, **a1111)
        assert remark.startswith("the prompt is blank")
    for emphasis in ("comfy", "off"):
        (remark,) = said(tmp_path, emphasis=emphasis, **a1111)
        assert remark == f"emphasis {emphasis} has no effect, since no words have a weight"
        assert said(tmp_path, prompt="(a:1.2)", emphasis=emphasis, **a1111) == []
    glow = tmp_path / "embeddings" / "glow.safetensors"
    glow.parent.mkdir()
    save_file({"clip_l": torch.ones(2, 48), "clip_g": torch.ones(2, 48)}, glow)
    save_file({"emb_params": torch.ones(2, 768)}, glow.with_name("meadow.safetensors"))
    uses, stays = said(tmp_path, prompt="a glow on a meadow", **a1111)
    assert uses == f"the prompt uses the embedding 'glow', {glow}"
    assert stays.startswith("the prompt has the name of an embedding that stays words: ")
    listed = {"embeddings": [{"file": "glow"}]}
    (remark,) = said(tmp_path, prompt="a disc", model=listed, **a1111)
    assert remark == "the embedding glow.safetensors has no effect, since no prompt has 'glow'"


def test_a_stopped_render_goes_on_with_the_embeddings_that_it_began_with(tmp_path: Path) -> None:
    """Whatever the home's folder holds by then, and to the same bytes."""
    values = {"prompt": "a (red:1.3) glow BREAK a disc", "negative_prompt": "blue", "prompt_syntax": "a1111"}
    small = {"width": 64, "height": 64, "steps": 3, "method": {"name": "direct"}, **values}
    digests = []
    for folder in ("whole", "stopped"):
        home = tmp_path / folder
        file = home / "embeddings" / "glow.safetensors"
        file.parent.mkdir(parents=True)
        stream = torch.Generator().manual_seed(1)
        save_file({name: torch.randn(2, 48, generator=stream) for name in ("clip_l", "clip_g")}, file)
        job = prepare(make_spec(small), Home(home))
        if folder == "stopped":
            session = session_in(home, checkpoint_every=0)
            session.observer = _StopsAt(session.stop)
            with pytest.raises(Interrupted):
                session.render(job)
            save_file({"emb_params": torch.ones(1, 768)}, file.with_name("disc.safetensors"))
            found = resumed(Home(home), job.run)
            assert isinstance(found, Job)
            assert [call.key for call in found.plan.calls] == [call.key for call in job.plan.calls]
            job = found
        digests.append(session_in(home).render(job).pixels_sha256)
    assert digests[0] == digests[1]
    file.unlink()
    assert isinstance(resumed(Home(home), job.run), StoredRun), "a done run needs no embedding"


class _StopsAt(NullObserver):
    """Asks for a stop at the second step."""

    def __init__(self, stop: StopEvent) -> None:
        self.stop = stop

    def stepped(self, call: Call, step: int) -> None:
        if step == 2:
            self.stop.ask("test")


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
