"""Rules of rotary positions: what each keeps, and where they lie between each other."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch

from freescale import Level, make_schedule, normal
from freescale.backbones import backbone_of
from freescale.backbones.flux import image_ids
from freescale.methods import Direct, FreeScale
from freescale.moment import Moment
from freescale.positions import PositionRule, Positions, frequencies, growing_temperature, temperature
from freescale.unet_patches import patched
from tests.toys import flux_network, is_same, snapshot

RULES = get_args(PositionRule)
DIMS, THETA, TRAINED = 56, 10000.0, 64  # rows of FLUX.1
OWN = frequencies("none", DIMS, THETA, 4.0, TRAINED)


@pytest.mark.parametrize("rule", RULES)
def test_at_the_training_size_a_rule_is_the_network_itself(rule: PositionRule) -> None:
    network: Any = flux_network()
    ids = torch.cat([torch.zeros(3, 3), image_ids((5, 4), torch.device("cpu"))])
    expected, before = network.pos_embed(ids), snapshot(network)
    with patched(network, [backbone_of(network).positioned(rule, (10, 8), (10, 8))]):
        found = network.pos_embed(ids)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert is_same(before, snapshot(network))


@pytest.mark.parametrize("scale", [1.5, 2.0, 4.0])
def test_components_lie_where_their_rule_says(scale: float) -> None:
    by = {rule: frequencies(rule, DIMS, THETA, scale, TRAINED) for rule in RULES}
    assert by["none"] == OWN
    assert by["pi"] == [turn / scale for turn in OWN]
    assert by["ntk"][0] == OWN[0]
    assert by["ntk"][-1] == pytest.approx(OWN[-1] / scale)
    for slow, yarn, own in zip(by["pi"], by["yarn"], OWN, strict=True):
        assert slow - 1e-12 <= yarn <= own + 1e-12
    assert by["yarn"][0] == OWN[0], "it turns ten times within the trained extent"
    assert by["yarn"][-1] == pytest.approx(OWN[-1] / scale)
    assert by["hiflow"] == [(10 * THETA) ** (-2 * j / DIMS) for j in range(DIMS // 2)]
    assert by["imax"] == [max(pair) for pair in zip(by["hiflow"], by["pi"], strict=True)]
    assert by["imax"][-1] == by["pi"][-1] > by["hiflow"][-1]
    changed = [j for j, (ultra, own) in enumerate(zip(by["ultra"], OWN, strict=True)) if ultra != own]
    assert changed == [7], "its period of 62.8 tokens is nearest to 64"
    assert 2 * math.pi / by["ultra"][7] == pytest.approx(scale * TRAINED)
    assert by["cinescale"] == [(THETA * (20 if scale <= 1.5 else 25)) ** (-2 * j / DIMS) for j in range(DIMS // 2)]


def test_only_rows_and_columns_turn_otherwise_and_yarn_grows_them() -> None:
    """Each axis by its own scale; the first axis and text keep their places, and text grows with the picture."""
    network: Any = flux_network()
    ids = torch.cat([torch.zeros(2, 3), image_ids((8, 4), torch.device("cpu")) + torch.tensor([3.0, 0, 0])])
    own = network.pos_embed(ids)
    with patched(network, [backbone_of(network).positioned("pi", (16, 8), (8, 8))]):
        cosine, sine = network.pos_embed(ids)
    assert torch.equal(cosine[:, :4], own[0][:, :4])
    assert torch.equal(cosine[:, 10:], own[0][:, 10:]), "columns are as many as in training"
    halved = network.pos_embed(ids * torch.tensor([1.0, 0.5, 1.0]))
    torch.testing.assert_close((cosine, sine), halved)
    with patched(network, [backbone_of(network).positioned("yarn", (16, 8), (8, 8))]):
        grown, _ = network.pos_embed(ids)
    assert grown[0, :4].tolist() == [1.0] * 4
    torch.testing.assert_close(grown[0, 4:10], torch.full((6,), 0.1 * math.log(2) + 1))
    assert Positions("yarn", (8, 4), (4, 4)).magnitude(1) == 1.0


def test_temperature_is_a_scale_of_the_softmax() -> None:
    network: Any = flux_network()
    attn, hidden, context = network.transformer_blocks[0].attn, normal((1, 6, 32), 0), normal((1, 3, 32), 1)
    before = snapshot(network)
    with patched(network, [backbone_of(network).tempered(1.3)]):
        found = attn(hidden, context)
        text_query, query = attn.norm_added_q(normal((1, 3, 2, 16), 2)), attn.norm_q(normal((1, 3, 2, 16), 2))
    assert is_same(before, snapshot(network))
    torch.testing.assert_close(query, 1.3 * attn.norm_q(normal((1, 3, 2, 16), 2)))
    torch.testing.assert_close(text_query, 1.3 * attn.norm_added_q(normal((1, 3, 2, 16), 2)))
    assert not torch.allclose(found[0], attn(hidden, context)[0])
    assert temperature(4 * 4096, 4096) == pytest.approx(math.sqrt(math.log(16384) / math.log(4096)))
    cinescale = [growing_temperature(tokens, 3600) for tokens in (8160, 18360, 32640)]
    assert cinescale == pytest.approx([1.0, 1.0495, 1.0846], abs=1e-4)
    assert temperature(4096, 4096) == temperature(100, 4096) == 1.0


@pytest.mark.parametrize("kind", [Direct, FreeScale])
def test_a_unet_has_none_of_this(kind: Any) -> None:
    for field, value in (("positions", "pi"), ("temperature", "entropy")):
        method = kind(**{field: value})
        with pytest.raises(ValueError, match=rf"{field} is '{value}', allowed: '(none|off)' with unet models"):
            method.check_backbone("unet")
    with pytest.raises(ValueError, match="positions is 'yern', allowed: none, pi, ntk, yarn"):
        kind(positions="yern")
    level = Level(0 if kind is Direct else 1, (128, 128), (64, 64))
    moment = Moment(level, 0, make_schedule({}, 4), 0)
    unet: Any = type("UNet2DConditionModel", (torch.nn.Module,), {})()
    with (
        pytest.raises(ValueError, match="positions is 'pi', allowed: 'none' with a UNet"),
        patched(unet, kind(positions="pi").patches(moment)),
    ):
        pass
