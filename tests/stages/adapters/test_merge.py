"""Adapters of a spec: what they make of the embedded model's weights, and of its fingerprints."""

from __future__ import annotations

import copy
import pickle
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from freescale import make_schedule
from freescale.guidance import Denoiser
from freescale.methods.freescale import FreeScale
from stages.adapters.applied import adapted, applied
from stages.adapters.merge import merge
from stages.adapters.spec import lora_fields
from stages.errors import SpecError, StageError
from stages.models.describe import describe, networks_of
from stages.models.load import Models
from stages.models.locate import EMBEDDED
from stages.spec import ModelSpec
from tests.adapter_files import PEFT, SHAPES, SHAPES_CONV, SHAPES_TEXT, SHAPES_UNET, edited, lora_file, low_rank
from tests.checkpoints import shapes_original
from tests.toys import level_at, render, video_unet

if TYPE_CHECKING:
    from freescale.guidance import Conditioning
    from stages.adapters.applied import Adapter
    from stages.models.folder import ModelInfo

UNET_MODULE = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
CONV_MODULE = "down_blocks.0.resnets.0.conv1"
TEXT_MODULE = "encoder.layers.1.mlp.fc1"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with three adapters: of both halves, of the UNet alone, of the text encoder alone."""
    home = tmp_path_factory.mktemp("home")
    lora_file(home / "loras" / "both.safetensors", low_rank(SHAPES, alpha=1.0))
    lora_file(home / "loras" / "unet.safetensors", low_rank({SHAPES_UNET: (96, 96)}, seed=1))
    lora_file(home / "loras" / "text.safetensors", low_rank({SHAPES_TEXT: (128, 48)}, seed=2))
    return home


def info_of(home: Path, *loras: Any, **model: Any) -> ModelInfo:
    return describe(ModelSpec(loras=loras, **model), home)


@pytest.fixture(scope="module")
def plain(home: Path) -> Models:
    return Models(info_of(home), "float32", torch.device("cpu"))


def weight(network: nn.Module, module: str) -> Tensor:
    found = network.get_submodule(module).weight
    assert isinstance(found, Tensor)
    return found


def change(path: Path, module: str, scale: float = 1.0) -> Tensor:
    """The change of one weight by a file, in float64."""
    tensors = load_file(path)
    up, down = (tensors[f"{module}.lora_{side}.weight"].double() for side in ("up", "down"))
    return scale * torch.tensordot(up.flatten(1), down, dims=1)


def test_weights_are_the_base_plus_the_sum_of_changes(home: Path, plain: Models) -> None:
    info = info_of(home, {"file": "both", "weight": 0.8, "text_weight": 0.5}, "unet:-0.5")
    models = Models(info, "float32", torch.device("cpu"))
    both, unet = (home / "loras" / f"{name}.safetensors" for name in ("both", "unet"))
    wanted = {
        UNET_MODULE: 0.8 * change(both, SHAPES_UNET, 0.5) - 0.5 * change(unet, SHAPES_UNET),
        CONV_MODULE: 0.8 * change(both, SHAPES_CONV, 0.5),
    }
    for name, parameter in models.unet.named_parameters():
        before = plain.unet.get_parameter(name)
        if (module := name.removesuffix(".weight")) in wanted:
            torch.testing.assert_close(parameter.double(), before.double() + wanted[module], atol=1e-6, rtol=0)
            assert not torch.equal(parameter, before)
        else:
            assert torch.equal(parameter, before), name


def test_text_encoders_get_the_text_weight(home: Path) -> None:
    def encoder(*loras: Any) -> nn.Module:
        found: nn.Module = Models(info_of(home, *loras), "float32", torch.device("cpu")).text_encoder("text_encoder")
        return found

    before, after = encoder(), encoder({"file": "both", "weight": 0.0, "text_weight": 0.5})
    wanted = weight(before, TEXT_MODULE).double() + 0.5 * change(home / "loras/both.safetensors", SHAPES_TEXT, 0.5)
    torch.testing.assert_close(weight(after, TEXT_MODULE).double(), wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("dtype", "bits"), [("float16", 2**-11), ("bfloat16", 2**-8)])
def test_a_weight_is_cast_once(dtype: str, bits: float, home: Path) -> None:
    """Two changes that cancel out leave the weight as it was, also where each alone would be rounded away."""
    info = info_of(home, "unet:1.5", "unet:-1.5")
    base, models = (Models(each, dtype, torch.device("cpu")) for each in (info_of(home), info))
    before, after = weight(base.unet, UNET_MODULE), weight(models.unet, UNET_MODULE)
    assert before.dtype == after.dtype == getattr(torch, dtype)
    assert (before.float() - after.float()).abs().max() <= bits * before.float().abs().max()


@pytest.mark.thorough
def test_blocks_have_weights_of_their_own(home: Path, plain: Models) -> None:
    both = home / "loras" / "both.safetensors"
    for blocks, shares in {
        (("IN", 0.5),): {UNET_MODULE: 0.5, CONV_MODULE: 0.5},
        (("IN", 0.5), ("IN04", 2.0)): {UNET_MODULE: 2.0, CONV_MODULE: 0.5},
        (("in4", 0.0), ("MID", 3.0)): {UNET_MODULE: 0.0, CONV_MODULE: 1.0},
        (("BASE", 0.5), ("OUT", 3.0)): {UNET_MODULE: 1.0, CONV_MODULE: 1.0},
    }.items():
        info = info_of(home, {"file": "both", "blocks": dict(blocks)})
        unet = copy.deepcopy(plain.unet)
        merge("unet", unet, info.adapters)
        for module, name in ((UNET_MODULE, SHAPES_UNET), (CONV_MODULE, SHAPES_CONV)):
            wanted = weight(plain.unet, module).double() + shares[module] * change(both, name, 0.5)
            torch.testing.assert_close(weight(unet, module).double(), wanted, atol=1e-6, rtol=0)


def test_magnitudes_spelled_with_dots_belong_to_their_module(home: Path, plain: Models, tmp_path: Path) -> None:
    tensors = low_rank({SHAPES_UNET: (96, 96)})
    magnitude = torch.full((96,), 0.5)
    dotted = SHAPES_UNET.replace("attn2_to_k", "attn2.to_k")
    path = lora_file(tmp_path / "a.safetensors", tensors | {f"{dotted}.lora_magnitude_vector": magnitude})
    unet = copy.deepcopy(plain.unet)
    merge("unet", unet, info_of(home, str(path)).adapters)
    torch.testing.assert_close(weight(unet, UNET_MODULE).norm(dim=1), magnitude)


def test_an_embedding_of_tokens_is_changed_like_a_matrix(home: Path, tmp_path: Path) -> None:
    name = "text_encoders.clip_l.transformer.text_model.embeddings.token_embedding"
    path = lora_file(tmp_path / "a.safetensors", low_rank({name: (170, 48)}))
    rows = {
        loras: Models(info_of(home, *loras), "float32", torch.device("cpu"))
        .text_encoder("text_encoder")
        .get_input_embeddings()
        .weight
        for loras in ((), (str(path),))
    }
    wanted = rows[()].double() + change(path, name)
    torch.testing.assert_close(rows[str(path),].double(), wanted, atol=1e-6, rtol=0)


def prints(home: Path, *loras: Any) -> dict[str, str]:
    return dict(info_of(home, *loras).fingerprints)


def test_fingerprints_change_with_what_changes_the_part_alone(home: Path) -> None:
    base = prints(home)
    assert prints(home, "both")["vae"] == base["vae"]
    assert prints(home, "unet")["text"] == base["text"], "prompts stay encoded"
    assert prints(home, "unet")["unet"] != base["unet"]
    assert prints(home, "text")["unet"] == base["unet"]
    assert prints(home, "text")["text"] != base["text"]
    text_alone = prints(home, {"file": "both", "weight": 0, "text_weight": 1})
    assert text_alone["unet"] == base["unet"]
    assert text_alone["text"] == prints(home, "both")["text"], "the text half and its weight alone"


def test_order_weights_and_blocks_are_in_the_fingerprint(home: Path) -> None:
    every = [
        prints(home, *loras)["unet"]
        for loras in (
            (),
            ("both",),
            ("both:0.5",),
            ("unet",),
            ("both", "unet"),
            ("unet", "both"),
            ("unet", "unet"),
            ({"file": "both", "blocks": {"IN04": 0.5}},),
            ({"file": "both", "blocks": {"IN05": 0.5}},),
        )
    ]
    assert len(set(every)) == len(every)


def test_a_weight_of_0_and_a_block_of_1_are_as_if_they_were_not_there(home: Path) -> None:
    assert info_of(home, "both:0").adapters == ()
    assert prints(home, "both:0") == prints(home)
    assert prints(home, "both:0", "unet") == prints(home, "unet")
    assert prints(home, {"file": "both", "blocks": {"MID": 1}}) == prints(home, "both")
    with pytest.raises(SpecError, match="'bth' is not a file"):
        info_of(home, "bth:0")


def test_neither_name_nor_path_nor_metadata_are_in_the_fingerprint(home: Path, tmp_path: Path) -> None:
    other = lora_file(tmp_path / "x.safetensors", low_rank(SHAPES, alpha=1.0), {"modelspec.trigger_phrase": "grain"})
    info = info_of(home, str(other))
    assert dict(info.fingerprints) == prints(home, "both")
    assert info.adapters[0].trigger_words == ("grain",)


def test_a_second_look_builds_no_network(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = prints(home, "both")
    monkeypatch.setattr("stages.models.networks.empty_network", lambda *_: pytest.fail("a network was built"))
    assert prints(home, "both") == before


def test_an_adapter_is_merged_once(home: Path, plain: Models) -> None:
    adapters = info_of(home, "both").adapters
    unet = copy.deepcopy(plain.unet)
    merge("unet", unet, adapters)
    after = {name: parameter.clone() for name, parameter in unet.named_parameters()}
    with pytest.raises(StageError, match="has its adapters already"):
        merge("unet", unet, adapters)
    assert all(torch.equal(parameter, after[name]) for name, parameter in unet.named_parameters())


def test_a_file_that_has_changed_since_the_plan_is_refused(home: Path, plain: Models, tmp_path: Path) -> None:
    path = lora_file(tmp_path / "a.safetensors")
    adapters = info_of(home, str(path)).adapters
    edited(path, lambda tensors: tensors[f"{SHAPES_UNET}.lora_up.weight"].add_(1))
    with pytest.raises(StageError, match="has changed since the render was planned"):
        merge("unet", copy.deepcopy(plain.unet), adapters)


@pytest.mark.parametrize(("value", "dtype"), [(float("nan"), torch.float32), (1e6, torch.float16)])
def test_a_weight_that_is_no_longer_finite_is_refused(
    value: float, dtype: torch.dtype, home: Path, plain: Models, tmp_path: Path
) -> None:
    path = lora_file(tmp_path / "a.safetensors")
    edited(path, lambda tensors: tensors[f"{SHAPES_UNET}.lora_up.weight"].fill_(value))
    with pytest.raises(StageError, match=r"a.safetensors made down_blocks.*attn2.to_k infinite"):
        merge("unet", copy.deepcopy(plain.unet).to(dtype), info_of(home, str(path)).adapters)


def test_the_scales_of_peft_are_applied(home: Path, plain: Models, tmp_path: Path) -> None:
    tensors = low_rank({f"unet.{UNET_MODULE}": (96, 96)}, rank=4, names=PEFT)
    path = lora_file(
        tmp_path / "a.safetensors",
        tensors,
        {"lora_adapter_metadata": '{"unet.r": 4, "unet.lora_alpha": 6, "unet.use_rslora": true}'},
    )
    unet = copy.deepcopy(plain.unet)
    merge("unet", unet, info_of(home, str(path)).adapters)
    up, down = (tensors[f"unet.{UNET_MODULE}.lora_{side}.weight"].double() for side in ("B", "A"))
    wanted = weight(plain.unet, UNET_MODULE).double() + 3.0 * up @ down
    torch.testing.assert_close(weight(unet, UNET_MODULE).double(), wanted, atol=1e-5, rtol=0)


@pytest.mark.thorough
def test_a_checkpoint_in_one_file_gets_what_a_folder_gets(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "shapes-original.safetensors"
    save_file(shapes_original(), file)
    folder, single = (
        Models(describe(ModelSpec(loras=("both:0.8",), **model), home), "float32", torch.device("cpu"))
        for model in ({}, {"name": str(file), "config": str(EMBEDDED)})
    )
    wanted = dict(folder.unet.named_parameters())
    assert all(torch.equal(parameter, wanted[name]) for name, parameter in single.unet.named_parameters())
    assert all(torch.equal(tensor, shapes_original()[name]) for name, tensor in load_file(file).items())


@pytest.mark.parametrize("kind", ["animatediff", "animatediff-sdxl"])
def test_a_video_unet_of_animatediff_takes_adapters_of_its_layers(kind: str, tmp_path: Path) -> None:
    unet = copy.deepcopy(video_unet(kind))
    spatial = next(
        name for name, _ in unet.named_modules() if name.endswith("attn1.to_q") and "motion_modules" not in name
    )
    moving = next(name for name, _ in unet.named_modules() if name.endswith("attn1.to_q") and "motion_modules" in name)
    names = {module: f"unet.{module.replace('.to_q', '.processor.to_q')}" for module in (spatial, moving)}
    before = {module: weight(unet, module).clone() for module in names}
    shapes = {name: tuple(before[module].shape) for module, name in names.items()}
    path = lora_file(tmp_path / "a.safetensors", low_rank(shapes))
    networks = {"unet": ("UNetMotionModel", dict(unet.config))}
    merge("unet", unet, applied(ModelSpec(loras=(str(path),)).loras, tmp_path, "moving", networks))
    for module, name in names.items():
        wanted = before[module].double() + change(path, name)
        torch.testing.assert_close(weight(unet, module).double(), wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("unet_class", ["VideoCrafterUNet", "UNet3DConditionModel"])
def test_a_video_unet_takes_no_adapter(unet_class: str, home: Path) -> None:
    networks = networks_of(info_of(home))
    spec = ModelSpec(loras=("both",))
    with pytest.raises(SpecError, match=f"has the video UNet {unet_class}.*AnimateDiff models take those"):
        applied(spec.loras, home, "clip", {**networks, "unet": (unet_class, {})})


@pytest.mark.parametrize(
    ("blocks", "says"),
    [({"IN99": 1}, "'IN99' is not in the model 'shapes'; it has BASE, IN00, IN01"), ({"UP1": 1}, "'UP1' is no block")],
)
def test_a_block_that_is_none_is_told_with_those_that_are(blocks: dict[str, int], says: str, home: Path) -> None:
    with pytest.raises(ValueError, match=says):
        info_of(home, {"file": "both", "blocks": blocks})


@pytest.mark.parametrize(
    ("written", "fields"),
    [
        ("a", {"file": "a"}),
        ("a.safetensors:0.8", {"file": "a.safetensors", "weight": 0.8}),
        ("a:0.8:0.5", {"file": "a", "weight": 0.8, "text_weight": 0.5}),
        ("a:-1:.5", {"file": "a", "weight": -1.0, "text_weight": 0.5}),
        (r"C:\loras\a.safetensors", {"file": r"C:\loras\a.safetensors"}),
        (r"C:\loras\a.safetensors:0.8", {"file": r"C:\loras\a.safetensors", "weight": 0.8}),
        ("/x:y/a.safetensors:0.8:1", {"file": "/x:y/a.safetensors", "weight": 0.8, "text_weight": 1.0}),
        ("a:many", {"file": "a:many"}),
        ("a:1:2:3", {"file": "a:1", "weight": 2.0, "text_weight": 3.0}),
        ({"file": "a", "weight": 2}, {"file": "a", "weight": 2}),
        (7, 7),
    ],
)
def test_an_adapter_in_one_word(written: Any, fields: Any) -> None:
    assert lora_fields(written) == fields


def test_a_file_whose_name_ends_in_a_number_is_that_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("style:2").touch()
    assert lora_fields("style:2") == {"file": "style:2"}
    assert lora_fields("style:2:0.5") == {"file": "style:2", "weight": 0.5}


def test_a_default_is_left_out_of_what_is_stored() -> None:
    assert ModelSpec().model_dump(exclude_defaults=True) == {}
    assert hash(ModelSpec(loras=({"file": "a", "blocks": {"MID": 1}},))) == hash(
        ModelSpec(loras=({"file": "a", "blocks": {"mid": 1}},))
    )


class _Beside:
    """Adds the change of a layer to its output, as a LoRA is trained, in place of changing its weight."""

    def __init__(self, change: Tensor) -> None:
        self.change = change

    def __call__(self, layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if isinstance(layer, nn.Conv2d):
            return output + F.conv2d(inputs[0], self.change, None, layer.stride, layer.padding, layer.dilation)
        return output + F.linear(inputs[0], self.change)


def beside(unet: nn.Module, changes: dict[str, Tensor], stack: ExitStack) -> None:
    for name, each in changes.items():
        handle = unet.get_submodule(name).register_forward_hook(_Beside(each))
        stack.callback(handle.remove)


@pytest.fixture
def adapter(sdxl_unet: Any, tmp_path: Path) -> tuple[Adapter, dict[str, Tensor]]:
    """A LoRA of self-attention and of a convolution that FreeScale dilates, and its changes by module."""
    shapes = {
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": (32, 32),
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0": (32, 32),
        "mid_block.resnets.0.conv1": (64, 64, 3, 3),
    }
    tensors = low_rank({f"unet.{name}": shape for name, shape in shapes.items()}, names=PEFT)
    path = lora_file(tmp_path / "a.safetensors", tensors)
    networks = {"unet": ("UNet2DConditionModel", dict(sdxl_unet.config))}
    (found,) = applied(ModelSpec(loras=(f"{path}:0.5",)).loras, tmp_path, "toy", networks)
    changes = {
        name: 0.5
        * torch.tensordot(
            tensors[f"unet.{name}.lora_B.weight"].flatten(1), tensors[f"unet.{name}.lora_A.weight"], dims=1
        )
        for name in shapes
    }
    return found, changes


@pytest.mark.thorough
def test_dilation_and_windows_on_a_merged_unet_are_those_of_the_base_with_the_change_beside(
    sdxl_unet: Any,
    adapter: tuple[Adapter, dict[str, Tensor]],
    conditioning: Conditioning,
    scheduler_config: dict[str, Any],
) -> None:
    method, level, schedule = FreeScale(), level_at(1), make_schedule(scheduler_config, 4)
    merged = copy.deepcopy(sdxl_unet)
    merge("unet", merged, [adapter[0]])
    plain = render(Denoiser(sdxl_unet, conditioning, 4.0), method, level, schedule)
    found = render(Denoiser(merged, conditioning, 4.0), method, level, schedule)
    with ExitStack() as stack:
        beside(sdxl_unet, adapter[1], stack)
        wanted = render(Denoiser(sdxl_unet, conditioning, 4.0), method, level, schedule)
    assert (found - plain).abs().max() > 0.05, "the adapter changes the picture"
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=0)


def test_a_worker_is_told_of_adapters_as_they_are(home: Path) -> None:
    adapters = info_of(home, {"file": "both", "blocks": {"MID": 0.5}}).adapters
    assert pickle.loads(pickle.dumps(adapters)) == adapters


def test_the_parts_without_adapters_keep_their_fingerprints() -> None:
    assert adapted({"unet": "u", "text": "t", "vae": "v"}, ()) == {"unet": "u", "text": "t", "vae": "v"}
