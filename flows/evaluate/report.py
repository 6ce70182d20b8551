"""An evaluation's numbers as CSV (a number a line), Markdown (a method a line) and JSON (all that is known)."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Any

from flows.evaluate.footnotes import judged, seen_lines
from flows.evaluate.layout import REFERENCE
from flows.home import check_folder
from stages.errors import SpecError
from stages.metrics.score import COMPARED, CROPPED
from stages.metrics.video_readings import VIDEO_WORDS
from storage import whole_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from flows.evaluate.layout import Evaluation
    from flows.evaluate.readings import Cell, Readings
    from stages.metrics.extractors import WeightFile
    from stages.metrics.score import Score

NAMES = {
    "fid": "FID",
    "kid": "KID",
    "is": "IS",
    "fid_c": "FID_c",
    "kid_c": "KID_c",
    "clip_score": "CLIP score",
    "fvd": "FVD",
    "kvd": "KVD",
    "dynamic_degree": "dynamic degree",
    "flicker": "flicker",
    "aesthetic": "aesthetic",
    "objects": "objects",
    "one_object": "one object",
    "attributes": "attributes",
    "motion": "motion kept",
    "right": "right",
    "ground_flicker": "flicker of the ground",
    "detail_2": "detail 2-4 px",
    "detail_4": "detail 4-8 px",
    "detail_8": "detail 8-16 px",
    "sharpness": "sharpness",
    "repetition": "repetition",
    "texture": "texture",
    "period": "period",
    "period_right": "period right",
    "seams": "seams",
}
# Of networks behind a number; others have the feature network, the first.
OWN_NETWORK = {"clip_score": "clip", "aesthetic": "aesthetic", "dynamic_degree": "raft"}
OWN_RESIZE = {"aesthetic": "bicubic", "dynamic_degree": "none"}
SINGLE = ("flicker", "aesthetic", "dynamic_degree", "seams")  # numbers of a picture or video
SHARES = ("one_object", "attributes", "right", "motion", "texture", "period_right", "dynamic_degree")
FILES = ("evaluation.csv", "evaluation.md", "evaluation.json")


def rows(evaluation: Evaluation, cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """One mapping for each number: method, size, metric, value with interval, counts, and how it was taken."""
    return [_row(evaluation, cell, score) for cell in cells for score in cell.scores]


def _row(evaluation: Evaluation, cell: Cell, score: Score) -> dict[str, Any]:
    compared = score.n_reference is not None
    weights = _weights(evaluation, score.metric)
    return {
        "method": cell.method,
        "size": f"{cell.size[1]}x{cell.size[0]}",
        "metric": score.metric,
        "value": score.value,
        "low": score.low,
        "high": score.high,
        "std": score.std,
        "n": score.n,
        "n_reference": score.n_reference,
        "crops": score.rows,
        "crops_reference": score.rows_reference,
        "protocol": evaluation.spec.reference.protocol if compared else None,
        "network": weights.name if weights else None,
        "weights_sha256": weights.sha256 if weights else None,
        "resize": _resize(evaluation, score) if weights else None,
        "fps": evaluation.fps if score.metric == "dynamic_degree" else None,
        "failed": cell.failed,
        "seconds": cell.seconds,
        "unet_samples": cell.unet_samples,
        "seconds_n": cell.timed,
    }


def _weights(evaluation: Evaluation, metric: str) -> WeightFile | None:
    """The weights of the network behind a number; None where no network is used."""
    if metric in OWN_NETWORK:
        return next(file for file in evaluation.weights if file.name == OWN_NETWORK[metric])
    return evaluation.weights[0] if metric in (*COMPARED, "is") else None


def _resize(evaluation: Evaluation, score: Score) -> str:
    """How pictures were resized: `none` for crops of the network's own size; VBench's metrics as published."""
    if score.metric in OWN_RESIZE:
        return OWN_RESIZE[score.metric]
    unsized = score.metric in CROPPED and evaluation.spec.crops.side is None
    return "none" if unsized else evaluation.spec.resize_rule


def as_csv(found: Sequence[dict[str, Any]]) -> str:
    """The rows as CSV with a header; a field is empty where there is no value."""
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(found[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return out.getvalue()


def as_markdown(evaluation: Evaluation, cells: Sequence[Cell]) -> str:
    """A Markdown table, one line for each method and size, values with 95 % intervals, and a line that says how."""
    metrics = [score.metric for score in cells[0].scores]
    found = {metric: judged(evaluation, metric) for metric in metrics}
    measured = [f"{NAMES[metric]} {seen.mark}" if seen else NAMES[metric] for metric, seen in found.items()]
    head = ["method", "size", "n", *measured, f"seconds a {evaluation.kind}", "UNet samples", "failed"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for cell in cells:
        seconds = "" if cell.seconds is None else f"{cell.seconds:.1f}"
        counts = str(max(score.n for score in cell.scores))
        values = [_with_interval(score) for score in cell.scores]
        start = [cell.method, f"{cell.size[1]}x{cell.size[0]}", counts]
        samples = "" if cell.unet_samples is None else f"{cell.unet_samples:.0f}"
        lines.append(f"| {' | '.join([*start, *values, seconds, samples, str(cell.failed)])} |")
    named = {NAMES[metric]: seen for metric, seen in found.items()}
    return "\n".join([*lines, "", _how(evaluation, cells[0]), "", *seen_lines(named, evaluation.spec.model.name), ""])


def _with_interval(score: Score) -> str:
    if score.value is None or score.low is None or score.high is None:
        return "-"
    if score.metric in SHARES:
        return f"{100 * score.value:.0f} % [{100 * score.low:.0f}, {100 * score.high:.0f}]"
    return f"{_short(score.value)} [{_short(score.low)}, {_short(score.high)}]"


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}"


def _how(evaluation: Evaluation, cell: Cell) -> str:
    spec, parts = evaluation.spec, [f"Brackets: 95 % of bootstraps over {evaluation.kind}s."]
    compared = next((s for s in cell.scores if s.n_reference is not None), None)
    if compared is not None:
        what = {
            "base": "pictures of the same prompts with other seeds at the training size",
            "real": f"the pictures of {spec.reference.folder}",
            "truth": "other scenes, drawn at the target size",
        }[spec.reference.protocol]
        parts.append(f"Reference: {what}, n = {compared.n_reference}.")
        weights = evaluation.weights[0]
        parts.append(f"Network: {weights.name} ({weights.sha256[:8]}), resize {spec.resize_rule}.")
    if any(s.metric == "dynamic_degree" for s in cell.scores):
        flow = next(file for file in evaluation.weights if file.name == "raft")
        parts.append(f"Dynamic degree: raft ({flow.sha256[:8]}), videos at {evaluation.fps} frames a second.")
    cropped = next((s for s in cell.scores if s.metric in CROPPED), None)
    if cropped is not None:
        side = spec.crops.side or "the network's own size"
        parts.append(f"Crops of {side}: {cropped.rows} against {cropped.rows_reference}.")
    return " ".join(parts)


def as_json(evaluation: Evaluation, cells: Sequence[Cell], readings: Readings) -> dict[str, Any]:
    """The record of an evaluation: spec, rows, and every picture with its run, seed, verdict and seconds."""
    pictures = []
    for read in readings.read:
        picture = read.picture
        if picture.group == REFERENCE:
            continue
        record = {
            "id": picture.id,
            "method": picture.group,
            "size": f"{picture.size[1]}x{picture.size[0]}",
            "prompt": picture.prompt,
            "seed": picture.seed,
            "run": picture.job.run if picture.job else None,
            "seconds": None if read.cost is None else read.cost.seconds,
            "unet_samples": None if read.cost is None else read.cost.unet_samples,
        }
        if "verdict" in read.tensors:
            names = ("objects", "color_ok", "shape_ok", "background_ok")
            record |= dict(zip(names, read.tensors["verdict"].tolist(), strict=True))
        if "texture" in read.tensors:
            pattern, ok, ratio = read.tensors["texture"].tolist()
            record |= {"texture_ok": int(ok), "period": ratio if pattern and ratio else None}
        if "clip_verdict" in read.tensors:
            record |= dict(zip(VIDEO_WORDS, read.tensors["clip_verdict"].tolist(), strict=True))
        record |= {name: float(read.tensors[name]) for name in SINGLE if name in read.tensors}
        if "pair_scores" in read.tensors:
            record["pair_scores"] = read.tensors["pair_scores"].tolist()
        pictures.append(record)
    return {
        "evaluation": evaluation.name,
        "spec": evaluation.spec.model_dump(mode="json"),
        "rows": rows(evaluation, cells),
        "seen": {
            score.metric: {"verdict": seen.word, "worse": seen.worse, "better": seen.better}
            for score in (cells[0].scores if cells else ())
            if (seen := judged(evaluation, score.metric))
        },
        "failed": {picture.name: why for picture, why in readings.failed.items()},
        "pictures": pictures,
    }


def check_out(folder: Path, evaluation: Evaluation, overwrite: bool) -> None:
    """Raise `SpecError` for a folder that holds another evaluation, unless `overwrite`."""
    check_folder("out", folder)
    taken = [name for name in FILES if (folder / name).exists()]
    if not taken or overwrite:
        return
    try:
        known = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
        ours = isinstance(known, dict) and known.get("evaluation") == evaluation.name
    except (OSError, ValueError):
        ours = False
    if not ours:
        raise SpecError(f"out: {str(folder / taken[0])!r} is of another evaluation; name another folder or overwrite")


def write(folder: Path, evaluation: Evaluation, cells: Sequence[Cell], readings: Readings) -> list[Path]:
    """Write the three files, each whole or not at all, the JSON first; return their paths."""
    record = as_json(evaluation, cells, readings)
    texts = {
        "evaluation.json": json.dumps(record, indent=1) + "\n",
        "evaluation.csv": as_csv(record["rows"]),
        "evaluation.md": as_markdown(evaluation, cells),
    }
    for name, text in texts.items():
        with whole_file(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")
    return [folder / name for name in FILES]
