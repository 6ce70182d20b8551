"""What each kind of adapter makes of a weight, against sums written out in float64."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from stages.adapters.kinds import (
    Scaling,
    changed_bias,
    changed_weight,
    form_of,
    rank_of,
    refused_kind,
    split_name,
)

OUT, IN, RANK = 6, 4, 2
WEIGHTS = {"linear": (OUT, IN), "1x1": (OUT, IN, 1, 1), "3x3": (OUT, IN, 3, 3)}
TOLERANCE = 2e-6  # of float32, over sums of a dozen products of about 1


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + math.prod(shape)))


def group(kind: str, taps: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """The tensors of one module of each kind, with the shapes that their trainers write."""
    ones = (1,) * len(taps)
    shapes: dict[str, dict[str, tuple[int, ...]]] = {
        "lora": {"lora_down": (RANK, IN, *taps), "lora_up": (OUT, RANK, *ones)},
        "tucker": {"lora_down": (RANK, IN, *ones), "lora_up": (OUT, RANK, *ones), "lora_mid": (RANK, RANK, *taps)},
        "loha": {f"hada_w{n}_{x}": s for n in (1, 2) for x, s in {"a": (OUT, RANK), "b": (RANK, flat(taps))}.items()},
        "loha tucker": {
            f"hada_{x}": s
            for n in (1, 2)
            for x, s in {f"w{n}_a": (RANK, OUT), f"w{n}_b": (RANK, IN), f"t{n}": (RANK, RANK, *taps)}.items()
        },
        "lokr full": {"lokr_w1": (2, 2), "lokr_w2": (OUT // 2, IN // 2, *taps)},
        "lokr half": {"lokr_w1": (2, 2), "lokr_w2_a": (3, RANK), "lokr_w2_b": (RANK, flat(taps) // 2)},
        "lokr other half": {"lokr_w1_a": (2, RANK), "lokr_w1_b": (RANK, 2), "lokr_w2": (3, 2, *taps)},
        "lokr halves": {
            "lokr_w1_a": (2, RANK),
            "lokr_w1_b": (RANK, 2),
            "lokr_w2_a": (3, RANK),
            "lokr_w2_b": (RANK, flat(taps) // 2),
        },
        "lokr tucker": {
            "lokr_w1": (2, 2),
            "lokr_w2_a": (RANK, 3),
            "lokr_w2_b": (RANK, 2),
            "lokr_t2": (RANK, RANK, *taps),
        },
        "glora": {
            "glora_a1": (IN, RANK, *ones),
            "glora_a2": (RANK, IN, *ones),
            "glora_b1": (OUT, RANK, *ones),
            "glora_b2": (RANK, IN, *taps),
        },
        "glora tucker": {
            "glora_a1": (IN, RANK, *ones),
            "glora_a2": (RANK, IN, *ones),
            "glora_b1": (OUT, RANK, *ones),
            "glora_b2": (RANK, IN, *ones),
            "glora_bm": (RANK, RANK, *taps),
        },
        "diff": {"diff": (OUT, IN, *taps)},
        "norms": {"w_norm": (OUT, IN, *taps)},
    }
    return {role: drawn(*shape, seed=index) for index, (role, shape) in enumerate(shapes[kind].items())}


def flat(taps: tuple[int, ...]) -> int:
    return IN * math.prod(taps)


KINDS = ("lora", "tucker", "loha", "loha tucker", "lokr full", "lokr half", "lokr other half", "lokr halves")
KINDS += ("lokr tucker", "glora", "glora tucker", "diff", "norms")
UNSCALED = ("lokr full", "diff", "norms")


def sums(kind: str, weight: np.ndarray, t: dict[str, np.ndarray]) -> np.ndarray:
    """The change of a weight, entry by entry, as the papers write it."""
    taps = weight.shape[2:]
    change = np.zeros(weight.shape)
    ranks = range(RANK)

    def at(array: np.ndarray, row: int, column: int, k: tuple[int, ...], inner: int) -> Any:
        """An entry of a factor (rows, columns, taps) that may be written flat, its columns and taps in one."""
        if not k or array.ndim == 2 + len(k):
            return array[(row, column, *k)]
        target = 0
        for index, side in zip(k, taps, strict=True):
            target = target * side + index
        return array.reshape(array.shape[0], inner, -1)[row, column, target]

    def low(a: str, b: str, row: int, column: int, k: tuple[int, ...], inner: int) -> Any:
        return sum(t[a][row, r] * at(t[b], r, column, k, inner) for r in ranks)

    def core(c: str, a: str, b: str, row: int, column: int, k: tuple[int, ...]) -> Any:
        return sum(t[c][(p, q, *k)] * t[a][p, row] * t[b][q, column] for p in ranks for q in ranks)

    def conv(up: str, down: str, o: int, i: int, k: tuple[int, ...]) -> Any:
        ups = t[up].reshape(OUT, RANK)
        return sum(ups[o, r] * at(t[down], r, i, k, IN) for r in ranks)

    def conv_mid(up: str, mid: str, down: str, o: int, i: int, k: tuple[int, ...]) -> Any:
        ups, downs = t[up].reshape(OUT, RANK), t[down].reshape(RANK, IN)
        return sum(ups[o, p] * t[mid][(p, q, *k)] * downs[q, i] for p in ranks for q in ranks)

    for o, i, *rest in itertools.product(*map(range, weight.shape)):
        k = tuple(rest)
        outer, inner = divmod(o, 3), divmod(i, 2)  # of the two factors of a Kronecker product
        first = (
            t["lokr_w1"][outer[0], inner[0]]
            if "lokr_w1" in t
            else low("lokr_w1_a", "lokr_w1_b", outer[0], inner[0], (), 2)
            if "lokr_w1_a" in t
            else 0
        )
        match kind:
            case "lora":
                value = conv("lora_up", "lora_down", o, i, k)
            case "tucker":
                value = conv_mid("lora_up", "lora_mid", "lora_down", o, i, k)
            case "loha":
                value = low("hada_w1_a", "hada_w1_b", o, i, k, IN) * low("hada_w2_a", "hada_w2_b", o, i, k, IN)
            case "loha tucker":
                value = core("hada_t1", "hada_w1_a", "hada_w1_b", o, i, k) * core(
                    "hada_t2", "hada_w2_a", "hada_w2_b", o, i, k
                )
            case "lokr full" | "lokr other half":
                value = first * t["lokr_w2"][(outer[1], inner[1], *k)]
            case "lokr half" | "lokr halves":
                value = first * low("lokr_w2_a", "lokr_w2_b", outer[1], inner[1], k, 2)
            case "lokr tucker":
                value = first * core("lokr_t2", "lokr_w2_a", "lokr_w2_b", outer[1], inner[1], k)
            case "glora" | "glora tucker":
                a1, a2 = t["glora_a1"].reshape(IN, RANK), t["glora_a2"].reshape(RANK, IN)
                value = sum(weight[(o, j, *k)] * a1[j, r] * a2[r, i] for j in range(IN) for r in ranks)
                if kind == "glora":
                    value += conv("glora_b1", "glora_b2", o, i, k)
                else:
                    value += conv_mid("glora_b1", "glora_bm", "glora_b2", o, i, k)
            case _:
                value = next(iter(t.values()))[(o, i, *k)]
        change[(o, i, *k)] = value
    return change


def wide(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {role: tensor.double().numpy() for role, tensor in tensors.items()}


@pytest.mark.parametrize("layer", WEIGHTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_change_is_the_sum_that_its_paper_writes(kind: str, layer: str) -> None:
    weight = drawn(*WEIGHTS[layer], seed=9)
    tensors = group(kind, WEIGHTS[layer][2:])
    change = sums(kind, weight.double().numpy(), wide(tensors))
    scale = 1.0 if kind in UNSCALED else 3.0 / RANK
    found = changed_weight(weight, tensors | {"alpha": torch.tensor(3.0)}, 0.7)
    expected = weight.double().numpy() + 0.7 * scale * change
    np.testing.assert_allclose(found.numpy(), expected, atol=TOLERANCE * max(1.0, abs(change).max()))


@pytest.mark.parametrize("layer", WEIGHTS)
@pytest.mark.parametrize("axis", ["output", "input", "peft"])
@pytest.mark.parametrize("kind", ["lora", "lokr half"])
def test_magnitudes_are_of_the_axis_that_their_shape_says(kind: str, axis: str, layer: str) -> None:
    """DoRA: W' = W + s (m V / |V| - W) with V = W + dW, which is ComfyUI's rule and not that of LyCORIS."""
    weight, taps = drawn(*WEIGHTS[layer], seed=9), WEIGHTS[layer][2:]
    tensors, strength = group(kind, taps), 0.7
    ones = (1,) * len(taps)
    shapes = {"output": (OUT, 1, *ones), "input": (1, IN, *ones), "peft": (1, OUT, *ones) if taps else (OUT,)}
    magnitude = drawn(*shapes[axis], seed=5).abs()
    role = "magnitude" if axis == "peft" else "dora_scale"
    found = changed_weight(weight, tensors | {"alpha": torch.tensor(3.0), role: magnitude}, strength)
    before = weight.double().numpy()
    moved = before + 1.5 * sums(kind, before, wide(tensors))
    expected = np.empty(moved.shape)
    for index in itertools.product(*map(range, moved.shape)):
        target = index[1] if axis == "input" else index[0]
        line = moved[:, target] if axis == "input" else moved[target]
        target = moved[index] * magnitude.double().flatten()[target].item() / math.sqrt((line**2).sum())
        expected[index] = before[index] + strength * (target - before[index])
    np.testing.assert_allclose(found.numpy(), expected, atol=TOLERANCE * max(1.0, abs(expected).max()))


def test_a_square_weight_takes_its_axis_from_the_shape_of_the_magnitudes() -> None:
    weight, none = drawn(4, 4), {"lora_down": torch.zeros(1, 4), "lora_up": torch.zeros(4, 1)}
    by_output = changed_weight(weight, none | {"dora_scale": torch.ones(4, 1)}, 1.0)
    by_input = changed_weight(weight, none | {"dora_scale": torch.ones(1, 4)}, 1.0)
    torch.testing.assert_close(by_output.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(by_input.norm(dim=0), torch.ones(4))


def test_a_row_of_zeros_stays_a_row_of_zeros() -> None:
    none = {"lora_down": torch.zeros(1, 4), "lora_up": torch.zeros(4, 1), "dora_scale": torch.zeros(4, 1)}
    assert torch.equal(changed_weight(torch.zeros(4, 4), none, 1.0), torch.zeros(4, 4))


def test_early_glora_has_its_factors_in_the_other_order() -> None:
    weight, tensors = drawn(OUT, IN, seed=9), group("glora", ())
    old = {f"glora_{a}": tensors[f"glora_{b}"] for a, b in (("a1", "a2"), ("a2", "a1"), ("b1", "b2"), ("b2", "b1"))}
    alpha = {"alpha": torch.tensor(5.0)}
    assert torch.equal(changed_weight(weight, old | alpha, 0.5), changed_weight(weight, tensors | alpha, 0.5))


@pytest.mark.parametrize(
    ("extra", "scaling", "scale"),
    [
        ({}, None, 1.0),
        ({"alpha": torch.tensor(8.0)}, None, 2.0),
        ({"alpha": torch.tensor(8, dtype=torch.int64)}, None, 2.0),
        ({"alpha": torch.tensor([8.0])}, None, 2.0),
        ({"alpha": torch.tensor(0.0)}, None, 0.0),
        ({}, Scaling(8.0), 2.0),
        ({}, Scaling(8.0, by_root=True), 4.0),
        ({"alpha": torch.tensor(8.0)}, Scaling(100.0), 2.0),
    ],
)
def test_the_scale_is_alpha_by_rank(extra: dict[str, torch.Tensor], scaling: Scaling | None, scale: float) -> None:
    tensors = {"lora_down": torch.ones(4, 3), "lora_up": torch.ones(2, 4)}
    found = changed_weight(torch.zeros(2, 3), tensors | extra, 1.0, scaling)
    assert torch.equal(found, torch.full((2, 3), 4.0 * scale))


def test_biases_change_by_differences_and_by_the_bias_of_the_upper_factor() -> None:
    bias, change = drawn(OUT), drawn(OUT, seed=3)
    low = {"lora_down": torch.ones(4, IN), "lora_up": torch.ones(OUT, 4), "alpha": torch.tensor(2.0)}
    torch.testing.assert_close(changed_bias(bias, {"diff_b": change}, 0.5), bias + 0.5 * change)
    torch.testing.assert_close(changed_bias(bias, {"w_norm": change, "b_norm": change}, 0.5), bias + 0.5 * change)
    torch.testing.assert_close(changed_bias(bias, low | {"lora_bias": change}, 0.5), bias + 0.25 * change)
    assert changed_weight(bias, {"diff_b": change}, 1.0) is bias


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lora_unet_a_b.lora_down.weight", ("lora_unet_a_b", "lora_down")),
        ("unet.a.to_q.lora_A.weight", ("unet.a.to_q", "lora_down")),
        ("unet.a.to_q.lora_B.default.weight", ("unet.a.to_q", "lora_up")),
        ("unet.a.processor.to_q_lora.down.weight", ("unet.a.processor.to_q", "lora_down")),
        ("text_encoder.a.lora_linear_layer.up.weight", ("text_encoder.a", "lora_up")),
        ("unet.a.to_k.lora.up.weight", ("unet.a.to_k", "lora_up")),
        ("unet.a.lora_magnitude_vector", ("unet.a", "magnitude")),
        ("unet.a.lora_magnitude_vector.default.weight", ("unet.a", "magnitude")),
        ("unet.a.to_q.magnitude", ("unet.a.to_q", "magnitude")),
        ("lora_unet_a_attn1.to_k.lora_magnitude_vector", ("lora_unet_a_attn1_to_k", "magnitude")),
        ("lora_unet_a_attn1_to_out.0.lora_magnitude_vector", ("lora_unet_a_attn1_to_out_0", "magnitude")),
        ("lora_unet_a.lora_mid.weight", ("lora_unet_a", "lora_mid")),
        ("lora_unet_a.hada_w1_a", ("lora_unet_a", "hada_w1_a")),
        ("lycoris_a.lokr_t2", ("lycoris_a", "lokr_t2")),
        ("lora_unet_a.bm.weight", ("lora_unet_a", "glora_bm")),
        ("lora_unet_a.diff_b", ("lora_unet_a", "diff_b")),
        ("lora_unet_a.dora_scale", ("lora_unet_a", "dora_scale")),
        ("lora_unet_a.alpha", ("lora_unet_a", "alpha")),
        ("a.lora_B.bias", ("a", "lora_bias")),
        ("lora_unet_a.weight", None),
        ("emb_params", None),
    ],
)
def test_the_end_of_a_name_says_the_role(name: str, expected: tuple[str, str] | None) -> None:
    assert split_name(name) == expected


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("lora_unet_a.on_input", "IA3"),
        ("base_model.model.a.ia3_l", "IA3"),
        ("lora_unet_a.oft_blocks", "OFT or BOFT"),
        ("a.oft_R.weight", "OFT or BOFT"),
        ("lora_unet_a.lambda_layer", "T-LoRA"),
        ("lora_unet_a.q_layer.weight", "T-LoRA"),
        ("lora_controlnet", "Control-LoRA"),
        ("a.vera_lambda_b", "VeRA"),
        ("a.lora_embedding_A", "LoRA of an embedding"),
        ("lora_unet_a.bias_indices", "sparse bias"),
        ("a.lora_down.weight", None),
    ],
)
def test_kinds_that_are_not_read_have_names(name: str, kind: str | None) -> None:
    assert refused_kind([name]) == kind


@pytest.mark.parametrize(
    ("roles", "says"),
    [
        ({"lora_down"}, "without lora_up"),
        ({"hada_w1_a", "hada_w1_b", "hada_w2_a"}, "without hada_w2_b"),
        ({"lokr_w1", "lokr_w2_a"}, "without lokr_w2_b"),
        ({"lora_down", "lora_up", "diff"}, "several kinds"),
        ({"alpha"}, "alone"),
        ({"dora_scale", "alpha"}, "alone"),
        ({"diff_b", "dora_scale"}, "alone"),
    ],
)
def test_a_module_with_half_a_kind_is_no_kind(roles: set[str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        form_of(roles)


def test_the_rank_is_that_of_the_lower_factor() -> None:
    assert rank_of({"lora_down": (8, 3), "lora_up": (6, 8)}) == 8
    assert rank_of({"lokr_w1": (2, 2), "lokr_w2_a": (3, 5), "lokr_w2_b": (5, 2)}) == 5
    assert rank_of({"glora_a1": (4, 2), "glora_a2": (2, 4), "glora_b1": (6, 2), "glora_b2": (2, 4)}) == 2
    assert rank_of({"diff": (4, 2)}) is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_of_another_shape_is_an_error(kind: str) -> None:
    with pytest.raises(ValueError, match=r"makes? "):
        changed_weight(torch.zeros(OUT + 1, IN + 1), group(kind, ()), 1.0)
