"""What a person is told of the adapters of a render: their names, weights and trigger words, and remarks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.adapters.metadata import metadata_of, trigger_words
from stages.errors import SpecError
from stages.models.library import find
from stages.prompts.syntax import split_networks

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from flows.rendering.job import Job

LISTED = 3  # names in a remark
KEPT_BITS = {"bfloat16": 8, "float8_e4m3fn": 4}  # of a number, with its leading one


def planned_adapters(job: Job) -> list[dict[str, Any]]:
    """The adapters that a render merges, in order: file, kind, weights, hashes and trigger words."""
    return [
        {
            "file": str(each.file),
            "kind": each.kind,
            "network": each.network,
            "weight": each.weight,
            "text_weight": each.text_weight,
            "blocks": dict(each.blocks),
            "unet_sha256": each.unet,
            "text_sha256": each.text,
            "trigger_words": list(each.trigger_words),
        }
        for each in job.plan.info.adapters
    ]


def recorded_adapters(spec: Mapping[str, Any], home: Path) -> list[dict[str, Any]]:
    """The adapters that the spec of a record names, in order; trigger words of those whose files are there."""
    syntax = spec.get("prompt_syntax") or "plain"
    _, prompted = split_networks(spec["prompt"], syntax)
    loras = spec["model"].get("loras", ())
    named = [
        *((each["file"], each["weight"], each["text_weight"], each.get("network")) for each in loras),
        *((each.name, each.weight, each.text_weight, None) for each in prompted),
    ]
    return [
        {
            "file": file,
            "network": network,
            "weight": weight,
            "text_weight": weight if text_weight is None else text_weight,
            "trigger_words": list(_words(file, home)),
        }
        for file, weight, text_weight, network in named
    ]


def adapter_line(adapter: Mapping[str, Any]) -> str:
    """One adapter in words: `LoRA film-grain 0.6, of the text encoders 0.5; trigger words: film grain`."""
    kind, words = adapter.get("kind", "adapter"), adapter["trigger_words"]
    line = f"{kind} {Path(adapter['file']).stem}: weight {adapter['weight']:g}"
    if adapter.get("network"):
        line += f", in {adapter['network']}"
    if adapter["text_weight"] != adapter["weight"]:
        line += f", of the text encoders {adapter['text_weight']:g}"
    return line + (f"; trigger words: {', '.join(words)}" if words else "")


def adapter_remarks(job: Job) -> Iterator[str]:
    """Yield a sentence for what of an adapter has no effect, and for a dtype that rounds small changes away."""
    adapters = job.plan.info.adapters
    for each in adapters:
        if each.unmatched:
            more = f" and {len(each.unmatched) - LISTED} more" if len(each.unmatched) > LISTED else ""
            listed = ", ".join(each.unmatched[:LISTED]) + more
            yield f"{each.file.name}: {len(each.unmatched)} of its modules are left out, as asked ({listed})"
        if not each.text and each.text_weight != each.weight:
            yield f"{each.file.name} changes no text encoder, so its text weight has no effect"
    if adapters and (dtype := job.spec.model.dtype) in KEPT_BITS:
        bits = KEPT_BITS[dtype]
        yield f"{dtype} keeps {bits} bits of a weight, and rounds small changes by adapters away; float16 keeps 11"


def _words(file: str, home: Path) -> tuple[str, ...]:
    try:
        return trigger_words(metadata_of(find("lora", file, home)))
    except SpecError:
        return ()
