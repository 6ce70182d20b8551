"""Methods on transformers: what every one promises on a FLUX in miniature, and the formulas of those for it alone."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch

from freescale import Conditioning, Denoiser, Level, Schedule, Step, make_schedule, normal
from freescale.backbones import backbone_of
from freescale.backbones.flux import image_ids
from freescale.enlarge import enlarge_latents
from freescale.flow_levels import FLOW_CLASS
from freescale.frequency import butterworth_mask, fourier_filter
from freescale.guidance import scaled_guidance
from freescale.methods import METHODS, CineScale, CineScale2026, Direct, FreeScale, HiFlow, IMax, Method
from freescale.methods.hiflow import LAG
from freescale.moment import Moment
from freescale.rectified_attention import IMAGE, Places, Rectified, Tiles, rectified_positions, spans
from freescale.unet_patches import patched
from freescale.wavelets import haar_low
from stages.models.card import values_for
from stages.models.flow.base import METHODS as USUAL
from tests.oracles import joint_fusion as oracle
from tests.toys import (
    flux2_network,
    flux_network,
    is_same,
    points,
    qwen_network,
    render,
    run_from,
    snapshot,
    zimage_network,
)

SCHEDULER = {"_class_name": FLOW_CLASS, "sigma_grid": "steps", "use_dynamic_shifting": True}
BASE, SIZE, NEXT = (64, 48), (128, 96), (256, 192)  # pixels: 4 x 3 tokens, 8 x 6, and more above
TEXT, STEPS = 3, 4
NAMES = [name for name, kind in METHODS.items() if "flow" in kind.backbones]
CASCADES = [name for name in NAMES if name not in ("direct", "enlarge")]
NEW = ("cinescale", "cinescale_2026", "hiflow", "imax")
TRIED = (*NEW, "swift")  # by default; the others are tested elsewhere or are alike
AS_IT_IS: dict[str, Any] = {"stagger": False, "positions": "none", "temperature": "off"}


def method_of(name: str, **changes: Any) -> Method:
    """The method as a transformer has it where a spec says nothing."""
    return METHODS[name](**values_for(name, USUAL) | changes)


def denoiser() -> Denoiser:
    embeds, negative = normal((1, TEXT, 24), 1), normal((1, TEXT, 24), 2)
    pooled = ({"pooled_projections": normal((1, 20), side)} for side in (3, 4))
    return Denoiser(flux_network(), Conditioning(embeds, negative, *pooled), 3.0)


def level_at(index: int, size: tuple[int, int] = SIZE) -> Level:
    """A level of three, of which each follows the one below."""
    if index == 0:
        return Level(0, BASE, BASE, grows=True)
    cells = size[0] // 8, size[1] // 8
    given = {"reference": normal((1, 4, *cells), 5), "noise": normal((1, 4, *cells), 6)}
    below = normal((1, STEPS, 4, BASE[0] // 8, BASE[1] // 8), 7)
    return Level(index, size, BASE, **given, trajectory=below, sizes=(BASE, SIZE, NEXT))


def walk_of(method: Method, level: int, steps: int = STEPS) -> Schedule:
    return method.walk(make_schedule(SCHEDULER, steps, tokens=48), level, (BASE, SIZE, NEXT))


def whole_of(method: Method, level: Level, held: Denoiser) -> list[Step]:
    walk = walk_of(method, level.index)
    first = 0 if level.is_base else method.restart_step(walk)
    start = method.start((1, 4, *level.latent_hw), Moment(level, first, walk, 7))
    return run_from(held, method, level, walk, Step(first - 1, start))


@pytest.mark.parametrize("name", points(CASCADES, kept=lambda name: name in TRIED))
def test_level_zero_is_direct(name: str) -> None:
    """But for the steps that a method leaves out, to the bit; with FreeU's fields off there is nothing else."""
    method = method_of(name)
    method.check_backbone("flow")
    walk = walk_of(method, 0)
    found = render(denoiser(), method, level_at(0), walk)
    assert torch.equal(found, render(denoiser(), Direct(), Level(0, BASE, BASE), walk))


@pytest.mark.parametrize("name", points(CASCADES, kept=lambda name: name in TRIED))
def test_at_the_training_size_the_prediction_is_the_models(name: str) -> None:
    method, held, latents = method_of(name), denoiser(), normal((1, 4, 8, 6), 1)
    walk = walk_of(method, 1)
    moment = Moment(level_at(1, BASE), 1, walk, 7)
    with torch.no_grad():
        with patched(held.network, method.patches(moment)):
            found = method.predict(held, latents, moment)
        assert torch.equal(found, held(latents, 1, walk))


@pytest.mark.parametrize("name", points(CASCADES, kept=lambda name: name in TRIED))
def test_a_level_goes_on_from_every_step_and_leaves_nothing_behind(name: str) -> None:
    method, held, level = method_of(name), denoiser(), level_at(1)
    before = snapshot(held.network)
    steps = whole_of(method, level, held)
    assert is_same(before, snapshot(held.network))
    assert steps[-1].latents.isfinite().all()
    for step in steps[:-1]:
        again = run_from(held, method, level, walk_of(method, 1), step)[-1]
        assert torch.equal(again.latents, steps[-1].latents), step.index
        assert again.extra.keys() == steps[-1].extra.keys()
        assert all(torch.equal(again.extra[key], value) for key, value in steps[-1].extra.items())


@pytest.mark.parametrize("name", points(NEW, kept=lambda name: name == "imax"))
def test_a_failure_leaves_nothing_behind(name: str) -> None:
    method, held, level = method_of(name), denoiser(), level_at(1)
    before = snapshot(held.network)

    def fail(*_: Any) -> None:
        raise RuntimeError("inside")

    handle = held.network.single_transformer_blocks[0].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="inside"):
        whole_of(method, level, held)
    handle.remove()
    assert is_same(before, snapshot(held.network))


@pytest.mark.parametrize("name", points(CASCADES, kept=lambda name: name in ("hiflow", "imax")))
def test_what_is_kept_is_there_and_each_field_moves_the_picture(name: str) -> None:
    method, held, level = method_of(name), denoiser(), level_at(1)
    whole = whole_of(method, level, held)
    for step in whole:
        moment = Moment(level, step.index + 1, walk_of(method, 1), 7)
        assert set(method.kept(moment)) == set(step.extra)
    changes: dict[str, list[dict[str, Any]]] = {
        "hiflow": [{"direction": (0.0,)}, {"acceleration": 0.0}, {"stagger": False}, {"positions": "none"}],
        "imax": [{"projection": 0.0}, {"stagger": False}, {"repeat_text": False}, {"temperature": "off"}],
        "cinescale": [{"positions": "none"}],
        "cinescale_2026": [{"tile": 1.0}, {"near": 0.0}, {"whole": False}],
        "swift": [{"structure": 0.0}, {"guidance": 0.0}],
    }
    for change in changes.get(name, []):
        moved = whole_of(method_of(name, **change), level, held)
        assert not torch.equal(moved[-1].latents, whole[-1].latents), change


def test_hiflow_and_imax_without_weights_are_the_plain_cascade() -> None:
    held, level = denoiser(), level_at(1)
    plain = FreeScale(freeu=None, dilate=False, fusion=False, lerp=False, restart=0.0)
    for method in (
        HiFlow(direction=(0.0,), acceleration=0.0, **AS_IT_IS),
        IMax(projection=0.0, repeat_text=False, **AS_IT_IS),
    ):
        walk = walk_of(method, 1)
        assert torch.equal(render(held, method, level, walk), render(held, plain, level, walk)), method.name
    cine = CineScale(restart=0.25, positions="none", temperature="off")
    plain = dataclasses.replace(plain, restart=0.25)
    assert torch.equal(render(held, cine, level, walk_of(cine, 1)), render(held, plain, level, walk_of(plain, 1)))


def test_hiflow_follows_the_level_below() -> None:
    """Direction: with a low-pass that passes all, x0 is the reference at the first step, where the weight is 1."""
    method, level = HiFlow(direction=(1.0,), acceleration=0.0, cut_off=1e9), level_at(1)
    walk = walk_of(method, 1)
    assert len(walk) == 3
    assert walk.sigmas == walk_of(Direct(), 0).sigmas[1:]
    latents, velocity = normal((1, 4, 16, 12), 1), normal((1, 4, 16, 12), 2)
    assert level.trajectory is not None
    for step in (0, 1):
        moment = Moment(level, step, walk, 7)
        found = method.aligned(velocity, latents, moment, level.trajectory)
        wanted = enlarge_latents(level.trajectory[:, step + 1], (16, 12))
        x0, left = latents - moment.sigma * velocity, 1.0 - step / 3
        torch.testing.assert_close(latents - moment.sigma * found, x0 + left * (wanted - x0), atol=1e-5, rtol=1e-5)


def test_hiflow_has_the_acceleration_of_the_reference() -> None:
    method, level, kept = HiFlow(direction=(0.0,), acceleration=0.5), level_at(1), dict[str, torch.Tensor]()
    walk, below = walk_of(method, 1), level.trajectory
    assert below is not None
    latents = [normal((1, 4, 16, 12), 1), normal((1, 4, 16, 12), 2)]
    velocities = [normal((1, 4, 16, 12), 3), normal((1, 4, 16, 12), 4)]
    found, references = [], []
    for step in (0, 1):
        moment = Moment(level, step, walk, 7, extra=kept)
        found.append(method.aligned(velocities[step], latents[step], moment, below))
        references.append((latents[step] - enlarge_latents(below[:, step + 1], (16, 12))) / walk.sigmas[step])
    assert torch.equal(found[0], velocities[0])
    wanted = (found[0] + references[1] - references[0] - velocities[1]) * (0.5 * (1 - 1 / 3)) + velocities[1]
    torch.testing.assert_close(found[1], wanted)
    torch.testing.assert_close(kept[LAG], wanted - references[1])


def test_imax_draws_the_means_of_cells_to_the_guide() -> None:
    method, level, held = IMax(repeat_text=False, **AS_IT_IS), level_at(1), denoiser()
    walk, latents = walk_of(method, 1), normal((1, 4, 16, 12), 1)
    assert level.reference is not None
    with torch.no_grad():
        own, found = held(latents, 0, walk), method.predict(held, latents, Moment(level, 0, walk, 7))
    to_guide = (latents - level.reference) / walk.sigmas[0]
    torch.testing.assert_close(haar_low(found), haar_low(to_guide))
    torch.testing.assert_close(found - haar_low(found), own - haar_low(own))
    weights = [method.weight_at(Moment(level, step, walk, 7)) for step in range(len(walk))]
    assert weights[0] == 1.0
    assert sorted(weights, reverse=True) == weights
    assert torch.equal(method.start((1, 4, 16, 12), Moment(level, 0, walk, 7)), level.noise), "from noise alone"


def test_the_low_bands() -> None:
    x = normal((1, 2, 5, 6), 0).double()
    low = haar_low(x)
    torch.testing.assert_close(
        low[..., 2:4, 4:6].flatten(2), x[..., 2:4, 4:6].mean((-2, -1))[..., None].expand(1, 2, 4)
    )
    torch.testing.assert_close(low[..., 4, :2], x[..., 4, :2].mean(-1, keepdim=True).expand(1, 2, 2))
    torch.testing.assert_close(haar_low(low), low)
    mask = butterworth_mask((8, 10), 0.5, 4, torch.float64, x.device)
    assert mask[0, 0] == 1.0
    assert mask[2, 0] == pytest.approx(0.5), "half of it passes at the cut-off: 2 of 4 rows"
    torch.testing.assert_close(fourier_filter(torch.ones(1, 1, 8, 10).double(), mask), torch.ones(1, 1, 8, 10).double())


@pytest.mark.parametrize("whole", [True, False])
def test_no_key_is_farther_than_in_training(whole: bool) -> None:
    """Of all tiles of some axes: in order, the near ones where they were, all where the axis is not longer."""
    for last, most, tile, near in (
        (20, 7, 3, 2),
        (9, 7, 8, 2),
        (31, 5, 2, 0),
        (12, 11, 4, 11),
        (7, 7, 3, 1),
        (5, 7, 3, 1),
    ):
        for first, end in spans(last + 1, tile):
            found = rectified_positions((first, end), last, most, near, whole=whole)
            assert found.shape == (last + 1,)
            assert (found.diff() >= 0).all()
            for query in range(first, end + 1):
                assert (found - query).abs().max() <= most
            budget = most - (end - first)
            kept = slice(max(first - min(near, budget), 0), min(end + min(near, budget), last) + 1)
            assert torch.equal(found[kept], torch.arange(last + 1).double()[kept])
            if most >= last:
                assert torch.equal(found, torch.arange(last + 1).double())
    assert [end - first + 1 for first, end in spans(10, 4)] == [4, 4, 2]


def test_shares_of_the_published_training_grid_are_the_published_tiles() -> None:
    """18 x 32 tokens, and 9 x 16 that stay, of 45 x 80."""
    asked = Rectified()
    assert [round(asked.tile * side) for side in (45, 80)] == [18, 32]
    assert [round(asked.near * side) for side in (45, 80)] == [9, 16]
    first = rectified_positions((18, 35), 89, 44, 9)  # the second tile of rows at twice the size
    assert (first[0], first[9], first[44], first[-1]) == (0.0, 9.0, 44.0, 62.0)


def heads_of(network: Any) -> tuple[Any, list[torch.Tensor], Any]:
    """Attention, and its heads (tokens, heads, size) of 8 x 6 image tokens after the text, not rotated."""
    from freescale.joint_attention import joint_heads

    attn = network.transformer_blocks[0].attn
    with torch.no_grad():
        heads = joint_heads(attn, normal((1, 48, 32), 0).double(), normal((1, TEXT, 32), 1).double())
    return attn, [x[0] for x in heads], heads


def attended(network: Any, heads: Any, trained: tuple[int, int], **changes: Any) -> torch.Tensor:
    at = backbone_of(network).rotary_at  # type: ignore[attr-defined]
    return Tiles((8, 6), trained, Rectified(**changes)).attended(heads, TEXT, at)[0]


def test_tiles_of_a_grid_that_is_not_larger_are_plain_attention() -> None:
    network = copy.deepcopy(flux_network()).double()
    _, rows, heads = heads_of(network)
    found = attended(network, heads, (8, 6))
    places = [(n, None if n < TEXT else divmod(n - TEXT, 6)) for n in range(TEXT + 48)]
    wanted = oracle.attended(rows, places, places, dims=(4, 6, 6), theta=10000.0)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)


def test_a_tile_attends_to_rectified_keys_and_to_text_where_they_begin() -> None:
    network = copy.deepcopy(flux_network()).double()
    _, rows, heads = heads_of(network)
    found = attended(network, heads, (4, 3), tile=0.5, near=0.25)  # tiles of 2 x 2 tokens
    options: dict[str, Any] = {"dims": (4, 6, 6), "theta": 10000.0}
    moved = rectified_positions((4, 5), 7, 3, 1).int().tolist()
    assert moved == [2, 2, 3, 3, 4, 5, 6, 7], "for rows 4 and 5: at most 3 away, and 3 and 6 stay"
    across = rectified_positions((2, 3), 5, 2, 1).int().tolist()
    keys = [(n, (moved[0], across[0])) for n in range(TEXT)]
    keys += [(TEXT + 6 * y + x, (moved[y], across[x])) for y in range(8) for x in range(6)]
    queries = [(TEXT + 6 * y + x, (y, x)) for y in (4, 5) for x in (2, 3)]
    wanted = oracle.attended(rows, queries, keys, **options)
    torch.testing.assert_close(found[[n for n, _ in queries]], wanted, atol=1e-6, rtol=1e-6)
    down, right = (rectified_positions((0, 0), last, most, 1).int().tolist() for last, most in ((7, 3), (5, 2)))
    keys = [(n, None) for n in range(TEXT)]
    keys += [(TEXT + 6 * y + x, (down[y], right[x])) for y in range(8) for x in range(6)]
    wanted = oracle.attended(rows, [(n, None) for n in range(TEXT)], keys, **options)
    torch.testing.assert_close(found[:TEXT], wanted, atol=1e-6, rtol=1e-6)


NETWORKS = {"flux": flux_network, "flux2": flux2_network, "qwen": qwen_network, "zimage": zimage_network}


def of_family(family: str) -> Denoiser:
    width = 16 if family == "zimage" else 24
    return denoiser() if family == "flux" else Denoiser(NETWORKS[family](), Conditioning(normal((1, TEXT, width), 1)))


@pytest.mark.parametrize("family", NETWORKS)
def test_tiles_in_a_whole_network_are_plain_attention_at_the_training_size(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 9 x 5 tokens, so that no middle is between two."""
    held, latents, walk, size = of_family(family), normal((1, 4, 18, 10), 0), walk_of(Direct(), 0), (18, 10)
    backbone: Any = backbone_of(held.network)
    before = snapshot(held.network)
    with torch.no_grad():
        plain = held(latents, 1, walk)
        monkeypatch.setattr(Tiles, "is_trained", False)
        with patched(held.network, [backbone.rectified(Rectified(), size, size)]):
            tiled = held(latents, 1, walk)
        with patched(held.network, [backbone.rectified(Rectified(), size, (8, 6))]):
            assert not torch.allclose(held(latents, 1, walk), plain, atol=1e-4)
    torch.testing.assert_close(tiled, plain, atol=1e-5, rtol=1e-5)
    assert is_same(before, snapshot(held.network))


def test_text_of_qwen_image_is_beside_the_grid_that_a_tile_sees() -> None:
    """Beside a picture of 4 x 3 tokens text begins at 2 from its middle, which is 4 and 4 from its origin."""
    backbone: Any = backbone_of(qwen_network())
    given = torch.tensor([5.0, 5.0, 7.0]), torch.tensor([2.0, 2.0, 3.0]), torch.tensor([0.0, 1.0, IMAGE])
    cosines, sines = backbone.rotary_at((4, 3), Places(*given, torch.zeros(3)))
    places = [(2.0, 9.0, 6.0), (3.0, 10.0, 7.0), (0.0, 7.0, 3.0)]
    angles = torch.cat(
        [
            torch.tensor([place[axis] for place in places]).double()[:, None]
            * 10000.0 ** (-torch.arange(0, dims, 2, dtype=torch.float64) / dims)
            for axis, dims in enumerate((4, 6, 6))
        ],
        dim=1,
    ).repeat_interleave(2, dim=1)
    torch.testing.assert_close(cosines.double(), angles.cos(), atol=1e-6, rtol=0)
    torch.testing.assert_close(sines.double(), angles.sin(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", points(["imax", "cinescale_2026"], kept=lambda name: name == "imax"))
def test_flux_2_goes_on_from_every_step(name: str) -> None:
    method, held, level = method_of(name), of_family("flux2"), level_at(1)
    before, steps = snapshot(held.network), whole_of(method, level, held)
    assert is_same(before, snapshot(held.network))
    for step in steps[:-1]:
        assert torch.equal(run_from(held, method, level, walk_of(method, 1), step)[-1].latents, steps[-1].latents)


def test_text_is_repeated_where_training_grids_begin() -> None:
    network, given = flux_network(), dict[str, Any]()
    held = denoiser()
    with patched(network, [backbone_of(network).repeated_text((16, 14), (8, 6))]):  # type: ignore[attr-defined]
        handle = network.register_forward_pre_hook(lambda _m, _a, kwargs: given.update(kwargs), with_kwargs=True)
        with torch.no_grad():
            held(normal((1, 4, 16, 14), 0), 0, walk_of(Direct(), 0))
        handle.remove()
    origins = [(0.0, float(y), float(x)) for y in (0, 4) for x in (0, 3, 6)]
    assert given["txt_ids"].tolist() == [list(origin) for origin in origins for _ in range(TEXT)]
    assert given["encoder_hidden_states"].shape[1] == 6 * TEXT
    assert torch.equal(given["img_ids"], image_ids((8, 7), torch.device("cpu")))


def test_guidance_that_was_distilled_is_scaled_where_it_is_told() -> None:
    held = Denoiser(flux_network(True), dataclasses.replace(denoiser().conditioning, guidance=4.0), 1.0)
    assert [scaled_guidance(held, factor).conditioning.guidance for factor in (1.0, 1.5, 0.0)] == [4.0, 6.0, 1.0]
    assert scaled_guidance(denoiser(), 2.0).conditioning.guidance is None


def test_unets_and_other_transformers_are_refused() -> None:
    for kind in (CineScale, CineScale2026, HiFlow, IMax):
        with pytest.raises(ValueError, match=rf"'{kind.name}' is for flow models, not for unet models"):
            kind().check_backbone("unet")
    for name, change in (("swift", {"dilation": 0.5}), ("enlarge", {"freeu": (1.1, 1.2, 0.6, 0.4)})):
        with pytest.raises(ValueError, match=rf"{next(iter(change))} is .*, allowed: .* with flow models"):
            method_of(name, **change).check_backbone("flow")
    unet: Any = type("UNet2DConditionModel", (torch.nn.Module,), {})()
    other: Any = type("SD3Transformer2DModel", (torch.nn.Module,), {})()
    for method, last in (
        (CineScale2026(), "ZImageT.*, Wan.*"),
        (IMax(positions="none", temperature="off"), "Flux2T[^,]*"),
    ):
        moment = Moment(level_at(1), 0, walk_of(method, 1), 7)
        for network in (unet, other):
            message = f"network is a {type(network).__name__}, allowed: FluxTransf.*, {last}$"
            with pytest.raises(ValueError, match=message), patched(network, method.patches(moment)):
                pass


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (HiFlow, {"restart": (0.6, 0.4)}),
        (HiFlow, {"restart": (1.0,)}),
        (HiFlow, {"restart": ()}),
        (HiFlow, {"direction": (2.0,)}),
        (HiFlow, {"acceleration": -0.1}),
        (HiFlow, {"cut_off": 0.0}),
        (HiFlow, {"guidance": ()}),
        (HiFlow, {"positions": "yern"}),
        (IMax, {"projection": 1.5}),
        (IMax, {"guidance": (-1.0,)}),
        (IMax, {"temperature": "on"}),
        (CineScale, {"growth": 1.0}),
        (CineScale, {"restart": 1.0}),
        (CineScale, {"interpolation": "area"}),
        (CineScale2026, {"tile": 0.0}),
        (CineScale2026, {"near": 1.5}),
    ],
)
def test_values_without_a_meaning_are_refused(kind: Any, values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="allowed"):
        kind(**values)
