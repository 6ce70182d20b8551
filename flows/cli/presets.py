"""`freescale presets`: what a preset of a method decides, costs and loses, and how models for few steps are sampled."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import typer

from flows.cli.options import JsonOption

if TYPE_CHECKING:
    from stages.models.presets import Preset


def presets(as_json: JsonOption = False) -> None:
    """List the presets: the method and values of each by family of models, what it costs, and what it loses."""
    from stages.models.method_presets import FAMILIES, SCALES, TABLE, says_measured
    from stages.models.presets import METHOD_PRESETS, PRESETS

    if as_json:
        of_methods = {name: {"method": METHOD_PRESETS[name], **dataclasses.asdict(one)} for name, one in TABLE.items()}
        of_steps = {name: dataclasses.asdict(one) for name, one in PRESETS.items()}
        typer.echo(json.dumps({"methods": of_methods, "few_steps": of_steps}))
        return
    typer.echo("A method with its values. A model's card comes before them, and what you say before both.")
    for name, preset in TABLE.items():
        typer.echo(f"{name}: {preset.says}. Method {METHOD_PRESETS[name]}")
        typer.echo(f"  {says_measured(name)}")
        for key, family in FAMILIES.items():
            calls = ", ".join(f"{count} at {scale}x" for scale, count in zip(SCALES, preset.calls[key], strict=True))
            typer.echo(f"  {family.says}: {calls} calls of the training size; {_values(preset.values[key])}")
            if preset.values[key]:
                typer.echo(f"    {family.source}, not measured")
        if preset.few_steps:
            typer.echo(f"  a model for few steps: {_values(preset.few_steps)}")
            typer.echo("    proposed, not measured")
    typer.echo("How a model for few steps is sampled. One of them and a method may be joined: lightning-4,swift")
    for name, few in PRESETS.items():
        typer.echo(f"{name}: {_sampled(few)}")


def _values(values: dict[str, Any]) -> str:
    """Values of a method's fields, or that there are none."""
    written = (
        f"{name} {str(value).lower() if isinstance(value, bool) else f'{value:g}'}" for name, value in values.items()
    )
    return ", ".join(written) or "the method's own values"


def _sampled(preset: Preset) -> str:
    """Steps, solver and guidance of a preset for few steps."""
    most = f" (up to {preset.most_steps})" if preset.most_steps not in (None, preset.steps) else ""
    guidance = f"guidance {preset.guidance_scale:g}" if preset.guidance_scale else "no guidance"
    return f"{preset.steps} steps{most}, {preset.solver}, {guidance}"
