"""What a UNet predicts (noise, v or the picture), whether it knows zero terminal SNR, and how that is known.

The first source that says it decides: the spec, the model's card, its scheduler's configuration, or of a checkpoint in
one file its header (`stages/models/predicted.py`). Where none does, a probe asks the UNet itself
(`stages/models/probe.py`), and its answer is remembered in the home.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stages.models.cache_file import CacheFile
from stages.models.hashes import with_decided
from stages.models.predicted import Prediction, detected

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from stages.models.folder import ModelInfo
    from stages.models.predicted import Header, PredictionType
    from stages.spec import ModelSpec

NOISE_SHARE = 0.5  # of a probe's answer, from which it is the noise


def decided(info: ModelInfo, spec: ModelSpec, home: Path, header: Header | None = None) -> ModelInfo:
    """Return the model with what its UNet predicts in its scheduler's configuration and, if not as there, in its key.

    `header` is that of a checkpoint in one file, and None for a folder, whose scheduler says it.
    """
    said = _said(info) if header is None else _remembered(detected(header), info, home)
    found = said
    if (kind := _asked("prediction", spec.prediction, info.said)) is not None:
        found = replace(found, type=kind, why=_who(spec.prediction), is_sure=True, remark=_contradiction(said, kind))
    if (ztsnr := _asked("ztsnr", spec.ztsnr, info.said)) is not None:
        found = replace(found, ztsnr=ztsnr == "on")
    changes: dict[str, Any] = {}
    if found.type != info.scheduler.get("prediction_type", "epsilon"):
        changes["prediction_type"] = found.type
    if found.ztsnr != bool(info.scheduler.get("rescale_betas_zero_snr")):
        changes["rescale_betas_zero_snr"] = found.ztsnr
        if found.ztsnr:  # of the spacings it alone begins at the last timestep and ends before the first
            changes["timestep_spacing"] = "trailing"
    info = replace(info, prediction=replace(found, unet=info.fingerprints["unet"]))
    if not changes:
        return info
    unet = with_decided(info.fingerprints["unet"], changes)
    scheduler = {**info.scheduler, **changes}
    return replace(info, scheduler=scheduler, fingerprints={**info.fingerprints, "unet": unet})


def _said(info: ModelInfo) -> Prediction:
    """Return what a folder's scheduler says."""
    config = info.scheduler
    zero = bool(config.get("rescale_betas_zero_snr"))
    return Prediction(config.get("prediction_type", "epsilon"), zero, "its scheduler_config.json")


def _asked(name: str, in_spec: str, card: Mapping[str, Any]) -> Any:
    """Return what the spec, or else the card, says; None for `auto`."""
    found = card.get(name, "auto") if in_spec == "auto" else in_spec
    return None if found == "auto" else found


def _who(in_spec: str) -> str:
    return "its card" if in_spec == "auto" else "the spec"


def _contradiction(said: Prediction, kind: PredictionType) -> str | None:
    """Return a remark where a model says that it predicts something else than was asked for."""
    if not said.is_sure or said.type == kind:
        return None
    return f"prediction is {kind}, and the model says {said.type} ({said.why}); {kind} is taken"


def _answers(home: Path) -> CacheFile:
    return CacheFile(home / "cache" / "predictions.json")


def _remembered(found: Prediction, info: ModelInfo, home: Path) -> Prediction:
    """Return what a probe answered for this UNet, where nothing else says it and there was one."""
    answer = None if found.is_sure else _answers(home).entries.get(info.fingerprints["unet"])
    if not isinstance(answer, int | float):
        return found
    kind: PredictionType = "epsilon" if answer > NOISE_SHARE else "v_prediction"
    remark = None
    if kind != "epsilon":
        remark = (
            f"the file does not say what it predicts; by the probe, in which {answer:.2f} of the noise came back, it "
            "is v; --prediction epsilon or sample decides otherwise"
        )
    return replace(found, type=kind, why=f"the probe, {answer:.4f}", is_sure=True, remark=remark)


def remember(home: Path, unet: str, answer: float) -> None:
    """Keep the answer of a probe for a UNet, by its fingerprint."""
    known = _answers(home)
    known.put(unet, answer)
    known.save()
