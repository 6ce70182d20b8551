"""Models as people have them: files cut off, fields that nobody reads, names that lead nowhere."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

from stages.models.folder import EMBEDDED
from tests.doorstep.harness import Case, call, check, prepare, table

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest

PLAN = "plan 'a red disc' --size 128x128 --model {folder}/m"


def copied(path: Path) -> None:
    shutil.copytree(EMBEDDED, path)


def changed(file: str, **fields: Any) -> Callable[[Path], None]:
    """Return what makes the embedded model with these fields of a JSON file changed."""

    def make(path: Path) -> None:
        copied(path)
        config = json.loads((path / file).read_text())
        (path / file).write_text(json.dumps(config | fields))

    return make


def written(file: str, content: bytes | None) -> Callable[[Path], None]:
    """Return what makes the embedded model with other bytes in a file; None: without it."""

    def make(path: Path) -> None:
        copied(path)
        if content is None:
            (path / file).unlink()
        else:
            (path / file).write_bytes(content)

    return make


def without(part: str) -> Callable[[Path], None]:
    """Return what makes the embedded model without one of its folders."""

    def make(path: Path) -> None:
        copied(path)
        shutil.rmtree(path / part)

    return make


def field(name: str, file: str, says: tuple[str, ...], **fields: Any) -> Case:
    return Case(name, PLAN, says=(*says, *fields), files={"m": changed(file, **fields)})


UNET, VAE, TEXT = "unet/config.json", "vae/config.json", "text_encoder/config.json"
SCHEDULER = "scheduler/scheduler_config.json"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@table(
    Case("healthy", PLAN, code=0, files={"m": copied}),
    field("lcm-unet", UNET, ("256", "null"), time_cond_proj_dim=256),
    field("inpainting-unet", UNET, ("9", "4"), in_channels=9),
    field("class-conditioned-unet", UNET, ("10",), num_class_embeds=10),
    field("gated-attention", UNET, ("gated", "default"), attention_type="gated"),
    field("typo-in-the-unet", UNET, ("norm_eps",), norm_epz=1e-5),
    field("text-of-another-width", UNET, ("97", "96"), cross_attention_dim=97),
    field("vae-with-means", VAE, ("null",), latents_mean=[0.0, 0.0, 0.0, 0.0]),
    field("vae-with-a-shift", VAE, ("0.1",), shift_factor=0.1),
    field("tiny-vae", VAE, ("AutoencoderTiny", "AutoencoderKL"), _class_name="AutoencoderTiny"),
    field("another-text-encoder", TEXT, ("t5",), model_type="t5"),
    field("edm", SCHEDULER, ("EDMEulerScheduler", "EulerDiscreteScheduler"), _class_name="EDMEulerScheduler"),
    field("flow", SCHEDULER, ("EulerDiscrete",), _class_name="FlowMatchEulerDiscreteScheduler"),
    field("terminal-snr", SCHEDULER, ("epsilon", "v_prediction"), rescale_betas_zero_snr=True),
    field("two-kinds-of-levels", SCHEDULER, ("both",), use_karras_sigmas=True, use_beta_sigmas=True),
    field("lu-lambdas", SCHEDULER, ("true", "false"), use_lu_lambdas=True),
    field("flow-prediction", SCHEDULER, ("epsilon",), prediction_type="flow_prediction"),
    field("unknown-of-a-scheduler", SCHEDULER, ("unknown",), sigma_data=0.5),
    field("card-with-a-typo", "freescale.json", ("steps",), step=4),
    field("card-with-words", "freescale.json", ("many", "1000"), steps="many"),
    field("card-of-a-bad-method", "freescale.json", ("restart", "7"), method={"freescale": {"restart": 7}}),
)
def test_fields(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"_class_name", "method"}
    says = tuple(text for text in case.says if text not in names)
    check(Case(**{**vars(case), "says": says}), tmp_path, monkeypatch)


@table(
    Case("no-unet", PLAN, says=("unet",), files={"m": without("unet")}),
    Case("no-weights", PLAN, says=("diffusion_pytorch_model",), files={"m": written(WEIGHTS, None)}),
    Case("a-web-page", PLAN, says=("web page",), files={"m": written(WEIGHTS, b"<!DOCTYPE html><html></html>")}),
    Case("a-pointer", PLAN, says=("git-lfs",), files={"m": written(WEIGHTS, b"version https://git-lfs.x/1\noid 1")}),
    Case("an-empty-file", PLAN, says=("empty",), files={"m": written(WEIGHTS, b"")}),
    Case("no-tokenizer", PLAN, says=("tokenizer_2",), files={"m": without("tokenizer_2")}),
    Case("a-broken-config", PLAN, says=("not JSON",), files={"m": written(UNET, b"{")}),
    Case("a-config-in-latin-1", PLAN, says=("UTF-8",), files={"m": written(UNET, b'{"x": "\xe9"}')}),
)
def test_files(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, tmp_path, monkeypatch)


@table(
    Case("an-address", "plan x --model https://huggingface.co/a/b", says=("address", "downloaded")),
    Case("a-pickle", "plan x --model my.ckpt", says=("pickled",), files={"my.ckpt": b"PK"}),
    Case("a-folder-that-is-none", "plan x --model m", says=("model_index.json",), files={"m/a.txt": "x"}),
    Case("a-part", "plan x --model m/unet", says=("a part of a model", "one, m"), files={"m": copied}),
    Case("an-index", "plan x --model m/model_index.json", says=("folder",), files={"m": copied}),
    Case("a-near-name", "plan x --model shape", says=("'shapes'",)),
    Case("a-long-name", f"plan x --model {'a' * 300}", says=("not on disk",)),
    Case("eta-of-euler", "plan x --size 128x128 --solver euler --eta 0.5", says=("0.5", "euler", "ddim")),
)
def test_names(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, tmp_path, monkeypatch)


def lacking(file: str, field: str) -> Callable[[Path], None]:
    """Return what makes the embedded model without a field of a JSON file."""

    def make(path: Path) -> None:
        copied(path)
        config = json.loads((path / file).read_text())
        del config[field]
        (path / file).write_text(json.dumps(config))

    return make


@table(
    Case("null-architectures", PLAN, code=0, files={"m": changed("text_encoder/config.json", architectures=None)}),
    Case("null-of-the-second", PLAN, code=0, files={"m": changed("text_encoder_2/config.json", architectures=None)}),
    Case("no-architectures", PLAN, code=0, files={"m": lacking("text_encoder/config.json", "architectures")}),
    Case("odd-architectures", PLAN, code=0, files={"m": changed("text_encoder/config.json", architectures=5)}),
    Case("no-class-of-the-unet", PLAN, code=0, files={"m": lacking("unet/config.json", "_class_name")}),
    Case("no-class-of-the-vae", PLAN, code=0, files={"m": lacking("vae/config.json", "_class_name")}),
    field("null-width", "text_encoder/config.json", ("whole number",), hidden_size=None),
    field("null-blocks", "unet/config.json", ("a list of",), block_out_channels=None),
    field("text-for-blocks", "vae/config.json", ("a list of",), block_out_channels="128"),
    Case("no-scheduler-class", PLAN, files={"m": lacking(SCHEDULER, "_class_name")}, says=("of the class None",)),
)
def test_nothing_where_a_configuration_says_something(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Notes of a library may be null or missing; what decides a network is refused by name."""
    check(case, tmp_path, monkeypatch)


def test_a_jobs_file_names_the_line_of_what_the_kernel_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = "- {prompt: x, width: 128, height: 128, solver: euler, eta: 0.5}\n"
    prepare(Case("eta-of-euler", "batch jobs.yaml", files={"jobs.yaml": jobs}), tmp_path, monkeypatch)
    said = call(tmp_path, "batch jobs.yaml")
    assert (said.code, said.out) == (2, "")
    assert said.err.splitlines()[0].startswith(
        "freescale: jobs.yaml:1: eta is 0.5 with euler, allowed: 0 to 1 with ddim"
    )
    assert said.err.splitlines()[1:] == ["freescale: jobs: 1 of 1 cannot be rendered"]
