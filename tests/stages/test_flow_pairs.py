"""Every method with every family of transformers, from a folder to pixels, or refused in the plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from flows.home import Home
from flows.rendering.job import prepare
from freescale.methods import METHODS
from stages.denoise import DenoiseStage
from stages.errors import SpecError
from stages.models.flow import FLOW_FAMILIES
from stages.models.flow.methods import condition
from stages.spec import make_spec
from tests.chroma_folder import chroma_folder
from tests.flux2_folder import dev_folder, klein_folder
from tests.flux_folder import flux_folder
from tests.homes import session_in
from tests.qwen_folder import qwen_folder
from tests.sd3_folder import sd3_folder
from tests.wan_folder import wan_folder
from tests.zimage_folder import zimage_folder

if TYPE_CHECKING:
    from pathlib import Path

FOLDERS: dict[str, Any] = {
    "FluxPipeline": flux_folder,
    "ChromaPipeline": chroma_folder,
    "Flux2KleinPipeline": klein_folder,
    "Flux2Pipeline": dev_folder,
    "StableDiffusion3Pipeline": sd3_folder,
    "QwenImagePipeline": qwen_folder,
    "ZImagePipeline": zimage_folder,
    "WanPipeline": wan_folder,
}
SIDES = {"StableDiffusion3Pipeline": 160}  # pixels, where the table of positions ends; 256 of the others
NAMES = [name for name, kind in METHODS.items() if "flow" in kind.backbones]


@pytest.fixture(scope="module", params=FOLDERS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The class of a pipeline and its folder, in a home."""
    home = tmp_path_factory.mktemp("home")
    FOLDERS[request.param](home / "models" / "toy")
    return request.param, home


def job_of(home: Path, side: int, method: dict[str, Any], **fields: Any) -> Any:
    given = {"prompt": "a red disc", "width": side, "height": side, "steps": 4, "model": {"name": "toy"}}
    return prepare(make_spec(given | {"method": method} | fields), Home(home))


def test_every_family_is_tried() -> None:
    assert set(FOLDERS) == set(FLOW_FAMILIES)


@pytest.mark.thorough
@pytest.mark.parametrize("name", NAMES)
def test_a_pair_is_rendered_or_refused(name: str, made: tuple[str, Path]) -> None:
    pipeline, home = made
    said: dict[str, Any] = {"name": name}
    needed = condition(name, pipeline)
    if needed is None or needed:
        with pytest.raises(
            SpecError, match=r"^method: (positions is|'\w+' needs|'\w+' makes images only).* (work|make)"
        ):
            job_of(home, SIDES.get(pipeline, 256), said)
    if needed is None:
        return
    said |= {"positions": "pi"} if "positions" in needed else {}
    said |= {"repeat_text": False} if "repeat_text" in needed else {}
    job = job_of(home, SIDES.get(pipeline, 256), said)
    session_in(home).render(job)
    assert len([call for call in job.plan.calls if isinstance(call.stage, DenoiseStage)]) >= (
        1 if name in ("direct", "enlarge") else 2
    )
    (shown,) = job.plan.exports[-1].parents.values()
    assert all(torch.as_tensor(array).isfinite().all() for array in Home(home).store.read(shown.key).values())


@pytest.mark.thorough
def test_presets_of_methods_are_rendered(made: tuple[str, Path]) -> None:
    """By patches, from the noise level of the training size; those for few steps are for UNets."""
    pipeline, home = made
    if pipeline == "WanPipeline":
        pytest.skip("they are for pictures")
    for preset in ("swift", "draft"):
        job = job_of(home, SIDES.get(pipeline, 256), {}, preset=preset)
        assert job.spec.method.name == preset
        assert job.spec.method.patches_only is True
        session_in(home).render(job)
    with pytest.raises(SpecError, match="preset: 'lightning-4' says how UNets are sampled, and toy is a transformer"):
        job_of(home, 256, {"name": "freescale"}, preset="lightning-4")
