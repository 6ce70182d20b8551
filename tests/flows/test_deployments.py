"""`prefect.yaml`: every deployment names a flow, and the server's own check of its parameters passes."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import validate

DEPLOYMENTS = yaml.safe_load((Path(__file__).parents[2] / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda d: str(d["name"]))
def test_parameters_are_what_the_flow_takes(deployment: dict[str, Any]) -> None:
    module, _, name = deployment["entrypoint"].rpartition(".")
    flow = getattr(importlib.import_module(module), name)
    parameters = deployment.get("parameters", {})
    schema = parameter_schema(flow).model_dump_for_openapi()
    validate(parameters, schema, raise_on_error=True, ignore_required=True)
    flow.validate_parameters(parameters)


def test_short_forms_pass_the_servers_check() -> None:
    from flows.deployments.compare import compare

    schema = parameter_schema(compare).model_dump_for_openapi()
    short = {"methods": ["freescale/no-fusion", {"name": "direct", "label": "plain"}], "sizes": ["512x512", [64, 64]]}
    validate({"spec": short}, schema, raise_on_error=True, ignore_required=True)
    spec = compare.validate_parameters({"spec": short})["spec"]
    assert [entry.label for entry in spec.methods] == ["freescale/no-fusion", "plain"]
    assert spec.sizes == ((512, 512), (64, 64))


@pytest.mark.parametrize(
    "preset",
    [
        "lightning-4,swift",
        ["swift", "lightning-4"],
        *(pytest.param(one, marks=pytest.mark.thorough) for one in ("swift", "reference", None)),
    ],
)
def test_presets_pass_the_servers_check(preset: Any) -> None:
    from flows.deployments.render import render

    given = {"spec": {"prompt": "x", "preset": preset}}
    validate(given, parameter_schema(render).model_dump_for_openapi(), raise_on_error=True, ignore_required=True)
    spec = render.validate_parameters(given)["spec"]
    assert spec.method.name == ("swift" if "swift" in str(preset) else "freescale")
