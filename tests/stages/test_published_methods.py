"""Renders of the embedded model by published methods, with the sampling they were published with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from flows.home import Home
from flows.rendering.job import prepare
from stages.denoise import BaseDenoise
from stages.errors import SpecError
from stages.models.load import describe
from stages.settings import settled_method
from stages.spec import ModelSpec, make_spec
from tests.homes import session_in

if TYPE_CHECKING:
    from pathlib import Path

    from flows.rendering.session import Result

SMALL: dict[str, Any] = {"prompt": "a green ring on sand", "seed": 5, "width": 192, "height": 128, "steps": 4}
OWN_LAYERS = {
    "name": "scalecrafter",
    "layers": [["mid_block", 1.5], ["up_blocks.0", 2]],
    "ndcfg_layers": [["mid_block", 1]],
    "ndcfg_stop": 0.5,
    "disperse_stop": 0.25,
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def render(home: Path, method: Any, **changes: Any) -> Result:
    session = session_in(home)
    return session.render(prepare(make_spec(SMALL | {"method": method} | changes), session.home))


def sampled(home: Path, method: Any, **changes: Any) -> BaseDenoise:
    plan = prepare(make_spec(SMALL | {"method": method} | changes), Home(home)).plan
    (stage,) = (call.stage for call in plan.calls if isinstance(call.stage, BaseDenoise))
    return stage


@pytest.mark.parametrize(
    ("given", "upsample"), [({"name": "demofusion"}, "latent"), ({"name": "demofusion", "upsample": "rgb"}, "rgb")]
)
def test_a_models_own_values_leave_a_baseline_as_published(
    tmp_path: Path, given: dict[str, Any], upsample: str
) -> None:
    info = describe(ModelSpec(name="shapes-motion"), tmp_path)
    own = info.method_defaults
    assert (own["freescale"]["upsample"], own["*"]["freeu"]) == ("rgb", None)  # else this shows nothing
    (freescale, demofusion, scalecrafter) = (
        settled_method(make_spec(SMALL | {"method": method}).method, info).model_dump()
        for method in ({"name": "freescale"}, given, {"name": "scalecrafter"})
    )
    assert (freescale["upsample"], demofusion["upsample"]) == ("rgb", upsample)
    assert scalecrafter["freeu"] is None  # whose factors go with a model's channels; as published it has some


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("method", "size"),
    [
        pytest.param({"name": "scalecrafter"}, (256, 256), marks=pytest.mark.thorough),  # of 192x128 it enlarges little
        (OWN_LAYERS, (192, 128)),
        pytest.param({"name": "fouriscale"}, (192, 128), marks=pytest.mark.thorough),
        ({"name": "fouriscale", "bucket_rule": "released", "amplify": 2.4}, (192, 128)),
    ],
    ids=str,
)
def test_renders_for_real(home: Path, method: dict[str, Any], size: tuple[int, int]) -> None:
    width, height = size
    result = render(home, method, width=width, height=height)
    assert "export 0" in [o.call.label for o in result.outcomes if not o.reused]
    with Image.open(result.outputs[0]) as picture:
        assert picture.size == size
        assert len(picture.getcolors(2**24) or ()) > 100
    again = render(home, method, width=width, height=height)
    assert all(outcome.reused for outcome in again.outcomes)
    plain = render(home, {"name": "direct"}, width=width, height=height, solver="ddim", eta=1.0)
    assert plain.pixels_sha256 != result.pixels_sha256


@pytest.mark.parametrize("name", ["scalecrafter", "fouriscale"])
def test_sampling_is_the_published_one_unless_the_spec_says_otherwise(tmp_path: Path, name: str) -> None:
    def solver(**changes: Any) -> tuple[str, float]:
        sampling = sampled(tmp_path, {"name": name}, **changes).sampling
        return sampling.solver, sampling.eta

    assert solver() == ("ddim", 1.0)
    assert solver(eta=0.0) == ("ddim", 0.0)
    assert solver(solver="ddim") == ("ddim", 0.0)
    assert solver(solver="euler") == ("euler", 0.0)
    direct = sampled(tmp_path, {"name": "direct"}).sampling
    assert (direct.solver, direct.eta) == ("euler", 0.0)


def test_a_model_is_told_what_was_released(tmp_path: Path) -> None:
    """FouriScale: the bucket that the target grows from, at this model's scale; the others the target."""
    assert sampled(tmp_path, {"name": "fouriscale"}).time_ids == (104, 152)
    assert sampled(tmp_path, {"name": "fouriscale"}, width=320, height=320).time_ids == (128, 128)
    released = {"name": "fouriscale", "bucket_rule": "released"}
    assert sampled(tmp_path, released, width=320, height=320).time_ids == (112, 136)
    for name in ("scalecrafter", "direct"):
        assert sampled(tmp_path, {"name": name}).time_ids == (128, 192)


def test_at_the_training_size_all_is_direct(tmp_path: Path) -> None:
    common = {"width": 128, "height": 128, "solver": "euler", "steps": 2}
    direct = render(tmp_path, {"name": "direct"}, **common)
    for name in ("scalecrafter", "fouriscale"):
        assert render(tmp_path, {"name": name, "freeu": None}, **common).pixels_sha256 == direct.pixels_sha256


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ({"name": "scalecrafter", "dilate_stop": 2}, "dilate_stop is 2.0, allowed: 0 to 1"),
        ({"name": "scalecrafter", "layers": [["mid_block", 0.5]]}, "factors of 1 or more"),
        ({"name": "fouriscale", "weak_divisor": 0.1}, "weak_divisor is 0.1, allowed: 1 or more"),
        ({"name": "fouriscale", "layers": "mid_block"}, "layers"),
        ({"name": "fouriscale", "detail_scale": 1.0}, "detail_scale: unknown field"),
    ],
)
def test_bad_values_are_one_sentence(method: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError, match=says) as error:
        make_spec(SMALL | {"method": method})
    assert "\n" not in str(error.value)
