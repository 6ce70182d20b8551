"""Prompts as rows, at toy widths: equal to the stock pipelines where those know how, and to formulas where not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from stages.conditioning import EncodeChunks
from stages.errors import SpecError, StageError
from stages.prompts.encode import TextSettings, encode_prompts
from stages.prompts.inversions import inversion
from stages.prompts.names import Embedding
from stages.prompts.reading import equal_chunks, layers_skipped
from tests.stages.prompts.text_models import KINDS, WIDTHS, stock, text_model

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from stages.models.load import Models

A1111 = TextSettings("a1111", "original")
LONG = "a " * 70 + ", " + "b " * 20  # the words after the comma begin a chunk


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Models]:
    return {kind: text_model(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


def equal(found: dict[str, Tensor], wanted: list[Tensor]) -> bool:
    return len(found) == len(wanted) and all(torch.equal(a, b) for a, b in zip(found.values(), wanted, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("prompt", "negative"),
    [
        ("", ""),
        ("a", None),
        ("a " * 75, "b"),
        ("a " * 76, " "),
        ("a " * 151, "b " * 80),
        ("wow! <|endoftext|> \u00e9", "!"),
    ],
    ids=["0", "1", "75", "76", "151", "marks"],
)
def test_a_plain_prompt_is_the_stock_pipelines_to_the_bit(
    models: dict[str, Models], kind: str, prompt: str, negative: str | None
) -> None:
    assert equal(encode_prompts(models[kind], prompt, negative), stock(models[kind], prompt, negative))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompt", ["", "a", "a " * 75])
def test_one_chunk_without_weights_is_the_stock_pipelines_too(
    models: dict[str, Models], kind: str, prompt: str
) -> None:
    for settings in (A1111, TextSettings("a1111", "no_norm"), TextSettings("comfy", "comfy")):
        assert equal(encode_prompts(models[kind], prompt, "b", settings), stock(models[kind], prompt, "b"))


@pytest.mark.parametrize("kind", KINDS)
def test_every_chunk_has_the_rows_of_its_own_words(models: dict[str, Models], kind: str) -> None:
    whole = encode_prompts(models[kind], LONG, None, A1111)
    first, second = (encode_prompts(models[kind], text, None) for text in ("a " * 70 + ",", "b " * 20))
    assert torch.equal(whole["prompt_embeds"], torch.cat([first["prompt_embeds"], second["prompt_embeds"]], 1))
    if kind == "sdxl":
        assert torch.equal(whole["text_embeds"], first["text_embeds"]), "the pooled row is the first chunk's"


def test_a_prompt_and_its_negative_one_become_equally_long(models: dict[str, Models]) -> None:
    found = encode_prompts(models["sdxl"], "a BREAK b", "c", A1111)
    short = encode_prompts(models["sdxl"], "c", None)
    assert torch.equal(found["negative_embeds"], short["prompt_embeds"].repeat(1, 2, 1))
    found = encode_prompts(models["sdxl"], "a BREAK b BREAK c", "d BREAK e", A1111)
    assert {rows.shape[1] for name, rows in found.items() if "text" not in name} == {6 * 77}
    zeros = encode_prompts(models["sdxl"], "a BREAK b", "", A1111)
    assert zeros["negative_embeds"].shape == (1, 2 * 77, 80)
    assert not zeros["negative_embeds"].any()
    assert not zeros["negative_text_embeds"].any()
    assert equal_chunks(2, 3) == 6
    with pytest.raises(SpecError, match="9 chunks of tokens"):
        equal_chunks(8, 9)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_act_by_each_rule(models: dict[str, Models], kind: str) -> None:
    """Word 1 to 3 of `a b c` are the rows 1 to 3; each text encoder's rows have a mean of their own."""
    encode: Any = lambda prompt, how: encode_prompts(models[kind], prompt, None, TextSettings(*how))  # noqa: E731
    plain, empty = (encode(text, ("plain", "off"))["prompt_embeds"] for text in ("a b c", ""))
    weights = torch.ones(77, 1)
    weights[2] = 1.3
    for syntax in ("a1111", "comfy"):
        found = {how: encode("a (b:1.3) c", (syntax, how)) for how in ("original", "no_norm", "comfy", "off")}
        rows = {how: each["prompt_embeds"] for how, each in found.items()}
        assert torch.equal(rows["off"], plain)
        assert torch.equal(rows["no_norm"], plain * weights)
        assert torch.equal(rows["comfy"], (plain - empty) * weights + empty)
        start = 0
        for part in models[kind].info.texts:
            own = slice(start, start := start + WIDTHS[part])
            assert torch.allclose(rows["original"][..., own].mean(), plain[..., own].mean(), rtol=1e-4)
            scaled = (plain * weights)[..., own]
            assert torch.allclose(rows["original"][..., own], scaled * plain[..., own].mean() / scaled.mean())
        if kind == "sdxl":
            assert len({each["text_embeds"].sum().item() for each in found.values()}) == 1, "pooled: no weights"


def test_rows_that_are_no_numbers_are_an_error(models: dict[str, Models], tmp_path: Path) -> None:
    file = tmp_path / "glow.safetensors"
    save_file({"emb_params": torch.full((1, 32), 3e38)}, file)  # finite, and beyond it within the encoder
    given = {"glow": (str(file), inversion(Embedding("glow", file, True), models["sd15"].info).sha256)}
    with pytest.raises(StageError, match="prompt_embeds: the rows are not finite"):
        encode_prompts(models["sd15"], "glow", None, TextSettings("a1111", "original", embeddings=given))


def test_clip_skip(models: dict[str, Models]) -> None:
    """SD 1.x: hidden state n from the end, then the final norm. SDXL: from 3 on, without a norm, of both encoders."""
    for kind, norm, usual in (("sd15", True, 1), ("sdxl", False, 2)):
        own, states = models[kind], list[Any]()
        for part in own.info.texts:
            network = own.text_encoder(part)
            words = own.tokenizer(part)("a b", padding="max_length", return_tensors="pt").input_ids
            hidden = network(words, output_hidden_states=True).hidden_states
            last = getattr(network, "text_model", network).final_layer_norm if norm else torch.nn.Identity()
            states.append([last(each) for each in hidden])
        for skip in (1, 2, 3, 4):
            found = encode_prompts(own, "a b", None, TextSettings(skip=layers_skipped(skip, own.info)))
            wanted = torch.cat([each[-max(skip, usual)] for each in states], -1)
            assert torch.equal(found["prompt_embeds"], wanted), (kind, skip)
    with pytest.raises(
        SpecError, match=r"model.clip_skip: 5 is more than the text encoders of sd15 allow; 1 to 4 work"
    ):
        layers_skipped(5, models["sd15"].info)


@pytest.mark.parametrize(
    ("layers", "skips"),
    [([12], {1: None, 2: 2, 12: 12}), ([23], {1: None, 2: None, 3: 2, 24: 23}), ([12, 32], {1: None, 2: None, 3: 3})],
    ids=["SD 1.x", "SD 2.x", "SDXL"],
)
def test_clip_skip_as_pages_of_models_count_it(
    models: dict[str, Models], layers: list[int], skips: dict[int, Any]
) -> None:
    from dataclasses import replace

    names = ("text_encoder", "text_encoder_2")
    texts = {name: {"num_hidden_layers": count} for name, count in zip(names, layers, strict=False)}
    info = replace(models["sd15"].info, configs=texts)
    assert {skip: layers_skipped(skip, info) for skip in skips} == skips


@pytest.mark.parametrize("kind", KINDS)
def test_an_embedding_of_a_words_own_vectors_is_the_word(models: dict[str, Models], kind: str, tmp_path: Path) -> None:
    own, names = models[kind], {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
    tensors = {}
    for part in own.info.texts:
        ids = own.tokenizer(part)("b c", add_special_tokens=False).input_ids
        name = names[part] if kind == "sdxl" else "emb_params"
        tensors[name] = own.text_encoder(part).get_input_embeddings().weight[ids].clone()
    save_file(tensors, tmp_path / "glow.safetensors")
    known = inversion(Embedding("glow", tmp_path / "glow.safetensors", True), own.info)
    assert known.vectors == 2
    for syntax, prompt in (("a1111", "a Glow d"), ("comfy", "a embedding:glow d")):
        settings = TextSettings(syntax, "off", embeddings={"glow": (str(known.file), known.sha256)})
        found, wanted = encode_prompts(own, prompt, None, settings), encode_prompts(own, "a b c d", None)
        assert all(torch.equal(found[name], rows) for name, rows in wanted.items()), "the pooled row, too"
    stage = EncodeChunks("a glow", None, "a1111", "off", None, (("glow", "0" * 64),), (str(known.file),))
    with pytest.raises(StageError, match="is not as it was"):
        stage.run({}, own, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_a_mark_of_the_tokenizer_is_a_word_in_chunks(models: dict[str, Models], kind: str) -> None:
    """`!` is what some tokenizers fill prompts up with, and is then no word; in a prompt with weights it is one."""
    own = models[kind]
    found = encode_prompts(own, "a! BREAK b", None, A1111)["prompt_embeds"][:, :77]
    part = next(iter(own.info.texts))
    ids = [512, 320, 256, 513]  # a</w> !</w>
    network, pad = own.text_encoder(part), own.tokenizer(part).pad_token_id
    out = network(torch.tensor([ids + [pad] * 73]), output_hidden_states=True)
    wanted = out.hidden_states[-2] if kind == "sdxl" else out.last_hidden_state
    assert torch.equal(found[..., : wanted.shape[-1]], wanted)
