"""Noise levels of flow matching (arXiv:2209.03003): latents are x = (1 - sigma) x0 + sigma n, with sigma from 1 to 0.

The levels are even ones, shifted towards noise: sigma' = sigma / (sigma + (1 - sigma) / s). A model has one shift s
(`shift`), or one that depends on how many tokens a picture has (`use_dynamic_shifting`). The second kind is a line
that was fitted up to `max_image_seq_len` tokens. Far beyond, it leaves all of the picture to the last step: at 4096 x
4096 pixels of FLUX.1 the last of 28 levels is 0.9997. `ShiftRule` says what holds there.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from freescale.noise_levels import SIGMAS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FLOW_CLASS = "FlowMatchEulerDiscreteScheduler"

ShiftRule: TypeAlias = Literal["stock", "cap", "sqrt"] | float
"""The shift above the trained number of tokens: the model's line (`stock`), its end (`cap`), its end times the square
root of the growth (`sqrt`: arXiv:2403.03206, equation 23), or a number: the shift itself, whatever the tokens."""

ShiftRules: TypeAlias = ShiftRule | tuple[ShiftRule, ...]
"""A rule for all levels of a cascade, or one a level, of which the last holds for all above."""

RULES = ("stock", "cap", "sqrt")

FLOW_HONOURED: dict[str, tuple[Any, ...]] = {
    "use_dynamic_shifting": (False, True),
    "time_shift_type": ("exponential", "linear"),
    "invert_sigmas": (False,),
    "stochastic_sampling": (False,),
    **{f"use_{kind}_sigmas": (False, True, None) for kind in SIGMAS},
    "sigma_grid": ("training", "steps", "unipc"),
    "shift_line": ("empirical",),
}
"""The values of a flow model's scheduler that are read as they are meant. `sigma_grid`, a field of ours, says which
even levels are shifted: from 1 to the last level of training, or to 1 / N, as the pipelines of some models ask, or
those of UniPC, which would come to the last level of training one step later.
`shift_line`, another one, says that a shift by size is FLUX.2's, which depends on the number of steps as well."""


def rule_at(rules: ShiftRules, level: int) -> ShiftRule:
    """Return the rule of a level."""
    return rules[min(level, len(rules) - 1)] if isinstance(rules, tuple) else rules


def flow_sigmas(
    config: Mapping[str, Any], steps: int, tokens: int | None = None, rule: ShiftRule = "stock"
) -> list[float]:
    """Return the noise level before each of `steps` steps, falling from 1, of a `FlowMatchEulerDiscreteScheduler`.

    `tokens` is the number of image tokens, needed where the shift depends on it. Raises `ValueError` for what is not
    known, and where the shift leaves levels that do not fall.
    """
    _check(config, rule)
    shift = _log_shift(config, steps, tokens, rule)
    dynamic = config.get("use_dynamic_shifting", False)
    total = int(config.get("num_train_timesteps", 1000))
    grid = config.get("sigma_grid", "steps" if dynamic else "training")
    if grid == "steps":
        last = 1.0 / steps
    elif grid == "unipc":
        last = 1.0 - (steps - 1) / steps * (1.0 - 1.0 / total)
    else:  # the scheduler shifts the end of its training levels when it is made, and again for the steps
        last = 1.0 / total if dynamic else _shifted(1.0 / total, shift)
    even = (1.0 - i / max(steps - 1, 1) * (1.0 - last) for i in range(steps))
    sigmas = [_shifted(sigma, shift) for sigma in even]
    if grid == "unipc":
        sigmas[0] = min(sigmas[0], 1.0 - 1e-6)  # as its scheduler has it, for a logarithm
    if (terminal := config.get("shift_terminal")) and sigmas[-1] < 1.0:
        stretch = (1.0 - float(terminal)) / (1.0 - sigmas[-1])
        sigmas = [1.0 - (1.0 - sigma) * stretch for sigma in sigmas]
    if kind := next((kind for kind in SIGMAS if config.get(f"use_{kind}_sigmas")), None):
        sigmas = SIGMAS[kind](sigmas[-1], sigmas[0], steps)
    if not all(before > after for before, after in itertools.pairwise(sigmas)):
        raise ValueError(
            f"shift_rule is {rule!r} at {tokens} tokens, where noise levels do not fall, allowed: cap, sqrt"
        )
    return sigmas


def has_whole_timesteps(config: Mapping[str, Any]) -> bool:
    """Return whether the network is told whole timesteps, rounded down, as UniPC's scheduler does."""
    return config.get("sigma_grid") == "unipc"


def _shifted(sigma: float, log_shift: float) -> float:
    """Return s sigma / (1 + (s - 1) sigma), for s = exp(log_shift), which may be too large for a number."""
    return sigma / (sigma + (1.0 - sigma) * math.exp(-log_shift))


def _log_shift(config: Mapping[str, Any], steps: int, tokens: int | None, rule: ShiftRule) -> float:
    """Return the logarithm of the shift for a picture of `tokens`."""
    if not isinstance(rule, str):
        return math.log(rule)
    dynamic, trained = config.get("use_dynamic_shifting", False), int(config.get("max_image_seq_len", 4096))
    if tokens is None:
        if dynamic or rule == "sqrt":
            raise ValueError("tokens is None, allowed: the number of image tokens, where the shift depends on it")
        return math.log(float(config.get("shift", 1.0)))
    log_shift = _line(config, steps, tokens if rule == "stock" else min(tokens, trained), trained)
    return log_shift + (0.5 * math.log(max(tokens / trained, 1.0)) if rule == "sqrt" else 0.0)


def _line(config: Mapping[str, Any], steps: int, tokens: int, trained: int) -> float:
    """Return the logarithm of the model's own shift: mu, a line in the number of tokens, or that of a constant."""
    if not config.get("use_dynamic_shifting", False):
        return math.log(float(config.get("shift", 1.0)))
    base = int(config.get("base_image_seq_len", 256))
    low, high = float(config.get("base_shift", 0.5)), float(config.get("max_shift", 1.15))
    mu = low + (high - low) * (tokens - base) / (trained - base)
    if config.get("shift_line") == "empirical":
        mu = empirical_mu(tokens, steps)
    return mu if config.get("time_shift_type", "exponential") == "exponential" else math.log(mu)


def empirical_mu(tokens: int, steps: int) -> float:
    """Return FLUX.2's mu: lines in the tokens at 10 and at 200 steps, and a line in the steps between them.

    Above 4300 tokens it is that at 200 steps. The numbers are `compute_empirical_mu`'s of the stock pipeline.
    """
    at_10, at_200 = 8.73809524e-05 * tokens + 1.89833333, 0.00016927 * tokens + 0.45666666
    return at_200 if tokens > 4300 else at_200 + (at_200 - at_10) / 190.0 * (steps - 200)


def _check(config: Mapping[str, Any], rule: ShiftRule) -> None:
    """Raise `ValueError` for a setting or a rule that this module would read wrongly."""
    if (name := config.get("_class_name", FLOW_CLASS)) != FLOW_CLASS:
        raise ValueError(f"_class_name is {name!r}, allowed: {FLOW_CLASS!r}")
    for name, allowed in FLOW_HONOURED.items():
        if name in config and config[name] not in allowed:
            raise ValueError(f"{name} is {config[name]!r}, allowed: {', '.join(map(repr, allowed))}")
    for name in ("timestep_spacing", "rescale_betas_zero_snr"):
        if name in config:
            raise ValueError(f"{name} is {config[name]!r} of a flow model, allowed: none")
    if not (rule in RULES if isinstance(rule, str) else rule > 0.0):
        raise ValueError(f"shift_rule is {rule!r}, allowed: {', '.join(RULES)}, or a number above 0")


def signals_at(sigmas: Sequence[float]) -> tuple[float, ...]:
    """Return the share of the picture at each noise level: 1 - sigma."""
    return tuple(1.0 - sigma for sigma in sigmas)
