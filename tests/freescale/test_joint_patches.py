"""Patch attention in joint attention against a slow one, block by block, and what it leaves alone."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch

from freescale import normal
from freescale.backbones import backbone_of
from freescale.backbones.flux import Flux, image_ids
from freescale.forward_process import generator
from freescale.joint_attention import JointAttention
from freescale.joint_patches import JointPatches
from freescale.patch_attention import PatchAttention
from freescale.rectified_attention import Rectified, RectifiedAttention, Tiles
from freescale.unet_patches import patched
from freescale.windows import window_size
from tests.oracles import joint_fusion as oracle
from tests.toys import flux2_network, flux_network, is_same, snapshot, zimage_network

GRID, TEXT = (8, 6), 3
TURNS: dict[str, Any] = {"dims": (4, 6, 6), "theta": 10000.0}


def double() -> Any:
    return copy.deepcopy(flux_network()).double()


def called(network: Any, attn: Any, image: torch.Tensor, text: torch.Tensor, asked: PatchAttention | None) -> Any:
    """One attention module, its text rows first; in patches where asked, else as the network has it."""
    rotary = network.pos_embed(torch.cat([torch.zeros(TEXT, 3), image_ids(GRID, torch.device("cpu"))]))
    changes = [] if asked is None else [Flux(network).in_patches(asked, (2 * GRID[0], 2 * GRID[1]))]
    with torch.no_grad(), patched(network, changes):
        if attn.added_kv_proj_dim is None:
            return attn(torch.cat([text, image], dim=1), image_rotary_emb=rotary)
        of_image, of_text = attn(image, text, image_rotary_emb=rotary)
        return torch.cat([of_text, of_image], dim=1)


@pytest.mark.parametrize(("block", "moves"), [("transformer_blocks", True), ("single_transformer_blocks", False)])
def test_a_block_attends_to_its_window_and_to_text_at_the_trained_place(block: str, moves: bool) -> None:
    """Queries and keys are numbered from the window's first token on; text is at (0, 0, 0)."""
    network = double()
    name, attn = f"{block}.1.attn", getattr(network, block)[1].attn
    asked = PatchAttention((2.0, 2.0), (lambda layer: generator(3, layer)) if moves else None)
    image, text = normal((1, 48, 32), 0).double(), normal((1, TEXT, 32), 1).double()
    found, window = called(network, attn, image, text, asked)[0], window_size(GRID, asked.scale)
    with torch.no_grad():
        rows = oracle.rows(attn, image[0], text[0]) if attn.added_kv_proj_dim else None
        rows = rows or oracle.rows(attn, torch.cat([text, image], dim=1)[0], None)
        expected = torch.zeros(TEXT + 48, 32, dtype=torch.float64)
        for tall, wide in itertools.product(*asked.axes(name, GRID)):
            spans = ((tall.first, tall.stop, wide.first, wide.stop), (tall.key, tall.key + 4, wide.key, wide.key + 3))
            assert window == (4, 3)
            queries, keys = (
                [(TEXT + 6 * y + x, (y - tall.key, x - wide.key)) for y in range(a, b) for x in range(c, d)]
                for a, b, c, d in spans
            )
            words = [(number, None) for number in range(TEXT)]
            expected[[number for number, _ in queries]] = oracle.attended(rows, queries, words + keys, **TURNS)
        if attn.added_kv_proj_dim:
            expected = torch.cat([attn.to_add_out(expected[:TEXT]), attn.to_out[0](expected[TEXT:])])
    torch.testing.assert_close(found[TEXT:], expected[TEXT:], atol=1e-6, rtol=1e-6)  # the network's table is float32
    plain = called(network, attn, image, text, None)[0]
    torch.testing.assert_close(found[:TEXT], plain[:TEXT], atol=1e-6, rtol=1e-6)
    assert not torch.allclose(found[TEXT:], plain[TEXT:], atol=1e-3)


def test_one_window_is_the_networks_own_attention_and_chunks_change_nothing() -> None:
    network = double()
    attn, image, text = network.transformer_blocks[0].attn, normal((2, 48, 32), 0).double(), normal((2, TEXT, 32), 1)
    text = text.double()
    plain = called(network, attn, image, text, None)
    assert torch.equal(called(network, attn, image, text, PatchAttention((1.0, 1.0))), plain)
    whole, parts = (called(network, attn, image, text, PatchAttention((2.0, 1.5), None, n)) for n in (None, 2))
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(whole[1:], called(network, attn, image[1:], text[1:], PatchAttention((2.0, 1.5))))


@pytest.mark.parametrize("family", ["flux2", "zimage"])
def test_the_far_border_is_not_seen_from_the_near_one(family: str) -> None:
    """In one layer: another column at the right changes nothing at the left, and nothing is left behind."""
    network = copy.deepcopy({"flux2": flux2_network, "zimage": zimage_network}[family]())
    backbone: Any = backbone_of(network)
    blocks = {"flux2": ["single_transformer_blocks.0.attn"], "zimage": ["layers.0.attention"]}[family]
    name, attn = next((n, each) for n, each in backbone.attentions() if n in blocks)
    others = 5 if family == "flux2" else 16 + 32
    first = others if family == "flux2" else 0
    tokens = normal((1, 48 + others, 32), 0)
    changed = tokens.clone()
    changed[:, first : first + 48].unflatten(1, GRID)[:, :, 5] += 1.0
    if family == "flux2":
        ids = torch.cat([torch.zeros(others, 4), torch.nn.functional.pad(image_ids(GRID, torch.device("cpu")), (0, 1))])
        turns: dict[str, Any] = {"image_rotary_emb": network.pos_embed(ids)}
    else:
        ids = torch.cat([image_ids(GRID, torch.device("cpu")), torch.zeros(others, 3)]).long()
        turns = {"freqs_cis": network.rope_embedder(ids)[None]}
    before = snapshot(network)
    with torch.no_grad():
        with patched(network, [backbone.in_patches(PatchAttention((2.0, 2.0)), (16, 12))]):
            found = [attn(x, **turns)[:, first : first + 48].unflatten(1, GRID) for x in (tokens, changed)]
        plain = attn(tokens, **turns)[:, first : first + 48].unflatten(1, GRID)
    assert is_same(before, snapshot(network)), name
    torch.testing.assert_close(found[0][:, :, :3], found[1][:, :, :3])
    assert not torch.allclose(found[0][:, :, 4], found[1][:, :, 4], atol=1e-3)
    assert not torch.allclose(found[0], plain, atol=1e-3)


@pytest.mark.parametrize("kind", ["in windows", "in tiles"])
def test_at_the_training_size_the_processor_that_was_there_gets_all_that_is_given(kind: str) -> None:
    heard: dict[str, Any] = {}

    def inner(attn: Any, hidden_states: torch.Tensor, **given: Any) -> torch.Tensor:
        heard.update(given)
        return hidden_states

    asked = JointPatches(PatchAttention((1.0, 1.0)))
    tiles = Tiles(GRID, GRID, Rectified())
    processor: Any = {
        "in windows": JointAttention(inner, "attn", GRID, None, asked),
        "in tiles": RectifiedAttention(inner, "attn", tiles, lambda places: (tokens, tokens)),
    }[kind]
    tokens = torch.zeros(1, GRID[0] * GRID[1], 8)
    names = ("encoder_hidden_states", "encoder_hidden_states_mask", "attention_mask", "image_rotary_emb")
    given = {name: torch.tensor(number) for number, name in enumerate(names)}
    assert processor(None, tokens, **given) is tokens
    assert heard == given
    heard.clear()
    processor(None, tokens)
    assert heard == {}
