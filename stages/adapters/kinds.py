"""The kinds of adapters: which tensors each is made of, and what it makes of a weight.

A *role* is what a tensor is for within one module of the model, such as `lora_down`. The tensors of one module by their
roles are a *group*. Formulas are those of LyCORIS (arXiv:2309.14859, sections 3 and 4), of DoRA (arXiv:2402.09353,
equation 5) and of GLoRA (arXiv:2306.07967). All is computed in the precision of the tensors that are handed in.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch import Tensor

Group: TypeAlias = "Mapping[str, Tensor]"
_NAMED = r"(?:\.\w+)?"  # PEFT puts the name of an adapter between the name of a tensor and `weight`
ROLES: Mapping[str, str] = {
    "lora_down": rf"[._]lora[._]down\.weight|\.lora_linear_layer\.down\.weight|\.lora_A{_NAMED}\.weight"
    r"|(?<=_lora[12])\.down\.weight",
    "lora_up": rf"[._]lora[._]up\.weight|\.lora_linear_layer\.up\.weight|\.lora_B{_NAMED}\.weight"
    r"|(?<=_lora[12])\.up\.weight",
    "lora_mid": r"\.lora_mid\.weight",
    "lora_bias": rf"\.lora_B{_NAMED}\.bias",
    "alpha": r"\.alpha",
    **{f"hada_{each}": rf"\.hada_{each}" for each in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f"lokr_{each}": rf"\.lokr_{each}" for each in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
    **{f"glora_{each}": rf"\.{each}\.weight" for each in ("a1", "a2", "b1", "b2", "bm")},
    "diff": r"\.diff",
    "diff_b": r"\.diff_b",
    "w_norm": r"\.w_norm",
    "b_norm": r"\.b_norm",
    "dora_scale": r"\.dora_scale",
    "magnitude": rf"\.lora_magnitude_vector{_NAMED}(?:\.weight)?|\.magnitude",
}
"""How the name of a tensor ends, by its role; what is before is the name of a module."""
_ENDING = re.compile("(.+?)(?:" + "|".join(f"(?P<{role}>{ending})" for role, ending in ROLES.items()) + ")")
_FLAT = re.compile(
    r"(?:lora_(?:unet|transformer|te\d?)|lycoris)[._]"
)  # names without dots, which some converters leave in
UNKNOWN: Mapping[str, str] = {
    "IA3": r"\.on_input$|\.ia3_l",
    "OFT or BOFT": r"\.oft_(?:blocks|diag|R)|\.boft_",
    "T-LoRA": r"\.lambda_layer|\.[pq]_layer\.",
    "Control-LoRA": r"^lora_controlnet$",
    "VeRA": r"\.vera_lambda",
    "LoRA of an embedding": r"\.lora_embedding_[AB]",
    "sparse bias": r"\.bias_(?:indices|values|size)$",
    "weights of another shape": r"\.(?:reshape_weight|set_weight)$",
}
"""Kinds that are refused by name, each by an expression that finds one of its tensors."""
_MODULATION = re.compile(r"\.diff_m$")  # of Wan: a table of its own, that is in no layer
_BESIDES = {"alpha", "dora_scale", "magnitude"}  # that a weight of any kind may have
_BIASES = ("diff_b", "b_norm", "lora_bias")


@dataclass(frozen=True)
class Scaling:
    """What the metadata of PEFT say of the scale of one module's change."""

    alpha: float
    by_root: bool = False  # rsLoRA (arXiv:2312.03732): divided by the root of the rank


@dataclass(frozen=True)
class Form:
    """One kind of change of a weight: its name, the roles it needs, and the function that makes it."""

    kind: str
    needs: frozenset[str]
    may: frozenset[str]
    change: Callable[[Tensor, Group], Tensor]
    rank: str | None  # the role whose rows are the rank; None: nothing is scaled


def split_name(name: str) -> tuple[str, str] | None:
    """Return the name of the module and the role of a tensor of a file, or None for an unknown ending.

    `lora_unet_a_attn1.to_k` is `lora_unet_a_attn1_to_k`: the tensors of one module may be spelled in both ways.
    """
    match = _ENDING.fullmatch(_MODULATION.sub(".modulation.diff", name))
    if match is None:
        return None
    module = match[1].replace(".", "_") if _FLAT.match(name) else match[1]
    return module, str(match.lastgroup)


def refused_kind(names: Iterable[str]) -> str | None:
    """Return the name of a kind that is not read, where one of these tensors is of it."""
    every = list(names)
    return next((kind for kind, sign in UNKNOWN.items() if any(re.search(sign, name) for name in every)), None)


def form_of(roles: Iterable[str]) -> Form | None:
    """Return the kind of a module's tensors, or None where they change its bias alone.

    Raises `ValueError` where roles are missing, or belong to several kinds.
    """
    given = set(roles) - _BESIDES - set(_BIASES)
    if not given:
        if not set(roles) & set(_BIASES) or set(roles) & (_BESIDES - {"alpha"}):
            raise ValueError(f"{_listed(roles)} alone change nothing")
        return None
    for form in FORMS:
        if form.needs <= given <= form.needs | form.may:
            return form
    near = min(FORMS, key=lambda form: (-len(form.needs & given), len(form.needs ^ given)))
    if missing := near.needs - given:
        raise ValueError(f"{_listed(given)} without {_listed(missing)}")
    raise ValueError(f"{_listed(given)} of one module belong to several kinds")


def changed_weight(weight: Tensor, group: Group, strength: float, scaling: Scaling | None = None) -> Tensor:
    """Return the weight with `strength` times the change that a group makes of it.

    `scaling` is for files that give no alpha in tensors. Raises `ValueError` where the change has another shape.
    """
    form = form_of(group)
    if form is None:
        return weight
    scale = scale_of(form, group, scaling)
    try:
        change = _fitted(form.change(weight, group), weight)
    except (RuntimeError, IndexError):  # torch's, of factors that do not go together
        shapes = ", ".join(f"{role} {_shown(tensor)}" for role, tensor in group.items())
        raise ValueError(f"{shapes} do not make a weight {_shown(weight)}") from None
    magnitude = group.get("dora_scale", group.get("magnitude"))
    if magnitude is None:
        return weight.add(change, alpha=strength * scale)
    return weight.lerp(_with_magnitude(weight.add(change, alpha=scale), magnitude, "magnitude" in group), strength)


def changed_bias(bias: Tensor, group: Group, strength: float, scaling: Scaling | None = None) -> Tensor:
    """Return the bias with `strength` times the change that a group makes of it.

    Raises `ValueError` where the change has another shape.
    """
    for role in _BIASES:
        if role in group:
            form = form_of(group)
            scale = scale_of(form, group, scaling) if role == "lora_bias" and form is not None else 1.0
            bias = bias.add(_fitted(group[role], bias), alpha=strength * scale)
    return bias


def changes_bias(roles: Iterable[str]) -> bool:
    """Whether a module with these roles gets another bias."""
    return bool(set(_BIASES) & set(roles))


def rank_of(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Return the rank of a change by the shapes of its tensors; None for a kind without one."""
    form = form_of(shapes)
    return None if form is None or form.rank is None else _rank(form.rank, shapes[form.rank])


def scale_of(form: Form, group: Group, scaling: Scaling | None) -> float:
    """Return what a change is multiplied by: alpha / rank; 1 without an alpha, and for a kind without a rank."""
    if form.rank is None:
        return 1.0
    rank = _rank(form.rank, tuple(group[form.rank].shape))
    if "alpha" in group:
        return float(group["alpha"]) / rank
    return 1.0 if scaling is None else scaling.alpha / (math.sqrt(rank) if scaling.by_root else rank)


def _rank(role: str, shape: tuple[int, ...]) -> int:
    """Its rows. The factors of GLoRA come in two orders, of which the smaller side is the rank."""
    if not shape or 0 in shape:
        raise ValueError(f"{role} is empty")
    return min(shape[:2]) if role.startswith("glora") else shape[0]


def _with_magnitude(moved: Tensor, magnitude: Tensor, by_output: bool) -> Tensor:
    """Return a weight (out, in, …) whose norms are `magnitude`.

    LyCORIS's is (out, 1, …) or (1, in, …): norms over all axes but that one. PEFT's is of the output axis, whatever
    its shape: (out,) of a Linear, (1, out, 1, 1) of a convolution.
    """
    if moved.ndim < 2:
        raise ValueError(f"magnitudes do not go with a weight {_shown(moved)}")
    out, inner = moved.shape[:2]
    is_row = magnitude.ndim > 1 and magnitude.shape[0] == 1 and magnitude.shape[1] == inner and out > 1
    axis = 1 if is_row and not by_output else 0
    if magnitude.numel() != (out, inner)[axis]:
        raise ValueError(f"magnitudes {_shown(magnitude)} do not fit a weight {_shown(moved)}")
    others = [dim for dim in range(moved.ndim) if dim != axis]
    norms: Tensor = torch.linalg.vector_norm(moved, dim=others, keepdim=True).clamp_min(torch.finfo(moved.dtype).tiny)
    return moved * (magnitude.reshape(norms.shape) / norms)


def _fitted(change: Tensor, weight: Tensor) -> Tensor:
    if change.shape[:1] != weight.shape[:1] or change.numel() != weight.numel():
        raise ValueError(f"it makes {_shown(change)} of a weight {_shown(weight)}")
    return change.reshape(weight.shape)


def _low_rank(_: Tensor, group: Group) -> Tensor:
    return _product(group["lora_up"], group["lora_down"], group.get("lora_mid"))


def _product(up: Tensor, down: Tensor, mid: Tensor | None) -> Tensor:
    """The product of two factors; with `mid` a Tucker decomposition over the taps of a convolution."""
    if mid is None:
        return up.flatten(1) @ down.flatten(1)
    return torch.einsum("mn...,im,nj->ij...", mid, up.flatten(1), down.flatten(1))


def _hadamard(_: Tensor, group: Group) -> Tensor:
    first, second = (_factor(group[f"hada_w{n}_a"], group[f"hada_w{n}_b"], group.get(f"hada_t{n}")) for n in (1, 2))
    return first * second


def _factor(a: Tensor, b: Tensor, core: Tensor | None) -> Tensor:
    """`a @ b`; with a Tucker core the two are (rank, out) and (rank, in)."""
    return a @ b.flatten(1) if core is None else torch.einsum("ij...,ip,jr->pr...", core, a, b)


def _kronecker(_: Tensor, group: Group) -> Tensor:
    first, second = (
        group[f"lokr_w{n}"]
        if f"lokr_w{n}" in group
        else _factor(group[f"lokr_w{n}_a"], group[f"lokr_w{n}_b"], group.get(f"lokr_t{n}"))
        for n in (1, 2)
    )
    first = first.reshape((*first.shape, *[1] * (second.ndim - first.ndim)))
    return torch.kron(first.contiguous(), second.contiguous())  # torch views both


def _generalised(weight: Tensor, group: Group) -> Tensor:
    """W a1 a2 + b1 b2, over channels. Early files have the two factors of each product in the other order."""
    a1, a2, b1, b2 = (group[f"glora_{name}"].flatten(1) for name in ("a1", "a2", "b1", "b2"))
    if b1.shape[0] != weight.shape[0]:
        a1, a2, b1, b2 = a2, a1, b2, b1
    own: Tensor = torch.einsum("oi...,ij,jk->ok...", weight, a1, a2)
    return own + _fitted(_product(b1, b2, group.get("glora_bm")), weight)


def _given(_: Tensor, group: Group) -> Tensor:
    return group["diff"] if "diff" in group else group["w_norm"]


def _form(kind: str, change: Callable[[Tensor, Group], Tensor], rank: str | None, needs: str, may: str = "") -> Form:
    return Form(kind, frozenset(needs.split()), frozenset(may.split()), change, rank)


_HADA = "hada_w1_a hada_w1_b hada_w2_a hada_w2_b"
_W1, _W2 = "lokr_w1_a lokr_w1_b", "lokr_w2_a lokr_w2_b"
FORMS = (
    _form("LoRA", _low_rank, "lora_down", "lora_down lora_up", "lora_mid"),
    _form("LoHa", _hadamard, "hada_w1_b", _HADA),
    _form("LoHa", _hadamard, "hada_w1_b", f"{_HADA} hada_t1 hada_t2"),
    _form("LoKr", _kronecker, None, "lokr_w1 lokr_w2"),  # both factors whole: an alpha says nothing
    _form("LoKr", _kronecker, "lokr_w1_b", f"{_W1} lokr_w2"),
    _form("LoKr", _kronecker, "lokr_w2_b", f"lokr_w1 {_W2}", "lokr_t2"),
    _form("LoKr", _kronecker, "lokr_w1_b", f"{_W1} {_W2}", "lokr_t2"),
    _form("GLoRA", _generalised, "glora_a2", "glora_a1 glora_a2 glora_b1 glora_b2", "glora_bm"),
    _form("full difference", _given, None, "diff"),
    _form("full difference", _given, None, "w_norm"),
)


def _listed(roles: Iterable[str]) -> str:
    return ", ".join(sorted(roles))


def _shown(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "()"
