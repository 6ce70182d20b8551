"""The syntax of prompts: the published examples of both parsers, networks, and what is refused."""

from __future__ import annotations

import contextlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.errors import SpecError
from stages.prompts.syntax import MOST_WEIGHT, Network, Parts, parse, split_networks


def one_part(prompt: str, syntax: str) -> list[tuple[str, float]]:
    (part,) = parse(prompt, syntax)
    return [(phrase.text, pytest.approx(phrase.weight)) for phrase in part]


@pytest.mark.parametrize(
    ("prompt", "phrases"),
    [
        ("normal text", [("normal text", 1)]),
        ("an (important) word", [("an ", 1), ("important", 1.1), (" word", 1)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        (r"\(literal\]", [("(literal]", 1)]),
        (r"\\(a)", [("\\", 1), ("a", 1.1)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                ("a ", 1),
                ("house", 1.573),
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641),
                (".", 1.1),
            ],
        ),
        ("[[a] b)", [("a", 1 / 1.21), (" b)", 1 / 1.1)]),
        ("(a [b) c]", [("a ", 1.1), ("b", 1), (" c", 1 / 1.1)]),
        ("(x:-1)", [("x", -1)]),
        ("(x: .5 )", [("x", 0.5)]),
        ("(x:1.2.3)", [("x:1.2.3", 1.1)]),
        ("16:9", [("16:9", 1)]),
        (":1.2)", [(":1.2)", 1)]),
        ("(a BREAK b)", [("a BREAK b", 1.1)]),
        ("BREAKFAST", [("BREAKFAST", 1)]),
        ("", []),
    ],
)
def test_a1111(prompt: str, phrases: list[tuple[str, float]]) -> None:
    assert one_part(prompt, "a1111") == phrases


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("a BREAK b", ["a", "b"]),
        ("a\nBREAK\nb", ["a", "b"]),
        ("BREAK a", ["", "a"]),
        ("a BREAK", ["a", ""]),
        ("a BREAK BREAK b", ["a", "", "b"]),
        ("(a) BREAK [b]", ["a", "b"]),
    ],
)
def test_breaks_begin_chunks(prompt: str, parts: list[str]) -> None:
    assert ["".join(phrase.text for phrase in part).strip() for part in parse(prompt, "a1111")] == parts


@pytest.mark.parametrize(
    ("prompt", "phrases"),
    [
        ("(a:1.3) b", [("a", 1.3), (" b", 1)]),
        ("((a))", [("a", 1.21)]),
        ("((a:1.2) b:1.5)", [("a", 1.2), (" b", 1.5)]),
        ("((a) b:1.5)", [("a", 1.65), (" b", 1.5)]),
        ("(b:(a:1.2))", [("b:", 1.1), ("a", 1.2)]),
        ("(:1.2)", [(":1.2", 1.1)]),
        ("(a", [("(a", 1)]),
        ("a) (b)", [("a) ", 1), ("b", 1.1)]),
        (r"\(a:1.2\)", [("(a:1.2)", 1)]),
        ("[a] BREAK b", [("[a] BREAK b", 1)]),
    ],
)
def test_comfy(prompt: str, phrases: list[tuple[str, float]]) -> None:
    assert one_part(prompt, "comfy") == phrases


@pytest.mark.parametrize("prompt", ["(a:1.3) [b] BREAK c", r"\(a\)", "[a|b]"])
def test_plain_has_no_syntax(prompt: str) -> None:
    assert one_part(prompt, "plain") == [(prompt, 1)]


@pytest.mark.parametrize(
    "prompt", ["[red:blue:0.5]", "a [red|blue] disc", "[red:0.5]", "[:blue:3]", "[[red]|b]", "[(red:1.2)|b]"]
)
def test_words_that_change_from_step_to_step_are_refused(prompt: str) -> None:
    with pytest.raises(SpecError, match="changes the words from step to step"):
        parse(prompt, "a1111")


@pytest.mark.parametrize("prompt", [r"\[red|blue\]", "[a, b]", "[16:9 aspect]", "a | b", "[(a:1.2)]"])
def test_other_brackets_are_not(prompt: str) -> None:
    assert parse(prompt, "a1111")


@pytest.mark.parametrize(("prompt", "syntax"), [("(a:101)", "a1111"), ("(a:-101)", "comfy"), ("(" * 60 + "a", "a1111")])
def test_a_weight_beyond_every_use_is_refused(prompt: str, syntax: str) -> None:
    with pytest.raises(SpecError, match=r"prompt: 'a' has the weight .*; -100 to 100 work"):
        parse(prompt, syntax)


@pytest.mark.parametrize(
    ("prompt", "syntax", "network"),
    [
        ("<lora:a:0.8>", "a1111", Network("a", 0.8, None)),
        ("<lora:a>", "a1111", Network("a", 1.0, None)),
        ("<lora:a:0.8:0.5>", "a1111", Network("a", 0.5, 0.8)),
        ("<lora:a:0.8:0.5>", "comfy", Network("a", 0.8, 0.5)),
        ("<lora:a:te=0.2>", "a1111", Network("a", 1.0, 0.2)),
        ("<lora:a:0.7:unet=0>", "a1111", Network("a", 0.0, 0.7)),
        ("<lora:film grain v1.2:-1>", "comfy", Network("film grain v1.2", -1.0, None)),
    ],
)
def test_networks_are_taken_out(prompt: str, syntax: str, network: Network) -> None:
    """The web UI reads the first of two numbers as the text encoder's, nodes of ComfyUI as the UNet's."""
    assert split_networks(f"a disc, {prompt} red", syntax) == ("a disc,  red", (network,))


def test_a_plain_prompt_names_no_network() -> None:
    assert split_networks("a <lora:b:1>", "plain") == ("a <lora:b:1>", ())


@pytest.mark.parametrize(
    ("network", "says"),
    [
        ("<hypernet:a:1>", "of the kind hypernet"),
        ("<lyco:a:1>", "of the kind lyco"),
        ("<lora:a:b>", "has the weight 'b'"),
        ("<lora:a:1e9>", "has the weight '1e9'"),
        ("<lora: :1>", "is not <lora:NAME:WEIGHT>"),
        ("<lora:a:1:1:1>", "is not <lora:NAME:WEIGHT>"),
        ("<lora:a:1:lbw=ALL>", "is not <lora:NAME:WEIGHT>"),
    ],
)
def test_other_networks_are_refused(network: str, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        split_networks(network)


PROMPTS = st.text(st.sampled_from(list("ab ()[]:\\.1,BREAK\n")), max_size=40)


@given(PROMPTS, st.sampled_from(["a1111", "comfy", "plain"]))
def test_any_text_is_read_or_refused_in_words(prompt: str, syntax: str) -> None:
    parts: Parts = ()
    with contextlib.suppress(SpecError):
        parts = parse(prompt, syntax)
    for part in parts:
        assert all(phrase.text and abs(phrase.weight) <= MOST_WEIGHT for phrase in part)
        assert all(a.weight != b.weight for a, b in itertools.pairwise(part)), "neighbours of one weight are one"


@given(st.text(st.characters(exclude_characters="()[]:\\"), max_size=30).filter(lambda text: "BREAK" not in text))
def test_words_alone_stay_as_they_are(prompt: str) -> None:
    for syntax in ("a1111", "comfy", "plain"):
        assert "".join(phrase.text for part in parse(prompt, syntax) for phrase in part) == prompt
