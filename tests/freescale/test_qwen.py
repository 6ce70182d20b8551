"""Qwen-Image in miniature: scale fusion, positions, prompts of unequal length, the rescale of guidance, refusals."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from freescale import Conditioning, Denoiser, Level, make_schedule, normal
from freescale.backbones.base import Rows
from freescale.backbones.joint import pack
from freescale.backbones.qwen import QwenImage
from freescale.flow_levels import FLOW_CLASS
from freescale.frequency import gaussian_taps
from freescale.methods import FreeScale
from freescale.scale_fusion import Fusion
from freescale.unet_patches import patched
from tests.toys import goes_on, is_same, new_qwen, snapshot

FLOW: dict[str, Any] = {"dilate": False, "channel_blur": False, "freeu": None, "blur_border": "renormalize"}
SCHEDULER = {"_class_name": FLOW_CLASS, "sigma_grid": "steps", "use_dynamic_shifting": True, "shift_terminal": 0.02}
SIZE, BASE = (128, 96), (64, 48)  # pixels: 8 x 6 tokens, and 4 x 3
TEXT = 3


@cache
def network() -> Any:
    """The network with random weights in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return new_qwen().double().eval().requires_grad_(False)


def fusion(**changes: Any) -> Fusion:
    given = {"scale": (2.0, 2.0), "taps": gaussian_taps(3), "channel_blur": False, "blur_border": "renormalize"}
    return Fusion(**(given | changes))


def rotary(grid: tuple[int, int]) -> Any:
    return network().pos_embed([[(1, *grid)]], max_txt_seq_len=TEXT, device=torch.device("cpu"))


def called(image: torch.Tensor, text: torch.Tensor, asked: Fusion | None, grid: tuple[int, int] = (8, 6)) -> Any:
    """One attention module, fused where asked, else as the network has it."""
    changes = [] if asked is None else [QwenImage(network()).fused(asked, (2 * grid[0], 2 * grid[1]))]
    given = {"encoder_hidden_states": text, "image_rotary_emb": rotary(grid)}
    with torch.no_grad(), patched(network(), changes):
        return network().transformer_blocks[1].attn(hidden_states=image, **given)


def test_windows_change_image_rows_alone() -> None:
    image, text = normal((2, 48, 32), 0).double(), normal((2, TEXT, 32), 1).double()
    plain_image, plain_text = called(image, text, None)
    made = {bands: called(image, text, fusion(bands=bands)) for bands in ("fused", "local", "global", "swapped")}
    for _, text_rows in made.values():
        torch.testing.assert_close(text_rows, plain_text, atol=1e-6, rtol=1e-6)  # the network's table is float32
    torch.testing.assert_close(made["global"][0], plain_image, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(made["fused"][0] + made["swapped"][0], made["local"][0] + made["global"][0])
    assert not torch.allclose(made["fused"][0], plain_image, atol=1e-3)
    whole = called(image, text, fusion(scale=(1.0, 1.0)))
    assert torch.equal(whole[0], plain_image)
    assert torch.equal(whole[1], plain_text)


def test_a_window_is_a_picture_of_the_training_size() -> None:
    """The first column is in the first window alone: text stands where it stands in such a picture."""
    image, text = normal((1, 4, 6, 32), 0).double(), normal((1, TEXT, 32), 1).double()
    found = called(image.flatten(1, 2), text, fusion(scale=(1.0, 2.0), bands="local"), (4, 6))[0].unflatten(1, (4, 6))
    alone = called(image[:, :, :3].flatten(1, 2), text, None, (4, 3))[0].unflatten(1, (4, 3))
    torch.testing.assert_close(found[:, :, 0], alone[:, :, 0], atol=1e-6, rtol=1e-6)


def test_positions_are_counted_from_the_middle() -> None:
    """The rule's table at the training size is the network's own; slowed down by 2, whole tokens are half ones."""
    backbone, own = QwenImage(network()), rotary((4, 3))
    with patched(network(), [backbone.positioned("pi", (8, 6), (8, 6))]):
        found = rotary((4, 3))
    torch.testing.assert_close(found, own, atol=1e-6, rtol=0)
    with patched(network(), [backbone.positioned("pi", (16, 16), (8, 8))]):
        image, text = (each.clone() for each in rotary((8, 8)))
    assert torch.equal(text, rotary((8, 8))[1]), "text keeps its places"
    whole = rotary((4, 4))[0].unflatten(0, (4, 4))
    torch.testing.assert_close(image.unflatten(0, (8, 8))[::2, ::2], whole, atol=1e-6, rtol=0)
    with patched(network(), [backbone.positioned("yarn", (16, 12), (8, 6))]):
        grown = rotary((8, 6))
    assert grown[0].abs().max() > 1.05
    torch.testing.assert_close(grown[1].abs()[0], grown[0].abs()[0])


def test_prompts_of_unequal_length_are_not_padded() -> None:
    """In one call of the backbone, as each by itself."""
    latents, embeds = normal((2, 4, 6, 8), 0).double(), normal((2, 5, 24), 1).double()
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    both = QwenImage(network()).run(latents, 500.0, Rows(embeds, {"text_mask": mask}))
    for i, length in enumerate((5, 2)):
        alone = QwenImage(network()).run(latents[i : i + 1], 500.0, Rows(embeds[i : i + 1, :length]))
        torch.testing.assert_close(both[i : i + 1], alone)


def test_guidance_keeps_the_norm_of_the_positive_prediction_at_each_token() -> None:
    negative, positive = normal((2, 4, 6, 8), 0), normal((2, 4, 6, 8), 1)
    held = Denoiser(network(), Conditioning(normal((1, 3, 24), 0), normal((1, 3, 24), 1)), 3.0)
    found = pack(held.combine(negative, positive))
    plain = pack(negative + 3.0 * (positive - negative))
    torch.testing.assert_close(found.norm(dim=-1), pack(positive).norm(dim=-1))
    torch.testing.assert_close(torch.cosine_similarity(found, plain, dim=-1), torch.ones(2, 12))


def test_a_render_goes_on_where_it_was_cut_and_leaves_nothing_behind() -> None:
    embeds, negative = (normal((1, 5, 24), side).double() for side in (1, 2))
    masks = ({"text_mask": torch.arange(5)[None] < length} for length in (5, 2))
    held = Denoiser(network(), Conditioning(embeds, negative, *masks), 3.0)
    method = FreeScale(**FLOW, positions="yarn", temperature="entropy")
    schedule = make_schedule(SCHEDULER, 3, tokens=48, shift_rule=method.shift_rule)
    level = Level(1, SIZE, BASE, reference=normal((1, 4, 16, 12), 5), noise=normal((1, 4, 16, 12), 6))
    before = snapshot(held.network)
    steps = goes_on(held, method, level, schedule)
    assert is_same(before, snapshot(held.network))
    assert steps[-1].latents.isfinite().all()


def test_what_cannot_be_run_is_refused() -> None:
    schedule = make_schedule(SCHEDULER, 3, tokens=48)
    rows = Conditioning(normal((1, TEXT, 24), 1).double())
    with pytest.raises(ValueError, match="latents are 7 x 8 cells, allowed: multiples of 2"):
        Denoiser(network(), rows)(normal((1, 4, 7, 8), 0), 0, schedule)
    with pytest.raises(ValueError, match=r"guidance is 3\.5, allowed: None with this network"):
        QwenImage(network()).run(normal((1, 4, 8, 8), 0), 500.0, Rows(rows.prompt_embeds, guidance=3.5))
