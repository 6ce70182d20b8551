"""What stands under a table of pictures: which faults each column was shown to see, and which none can see."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.metrics.validated import shown, validation

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from flows.evaluate.layout import Evaluation
    from stages.metrics.validated import Shown

OF_FEATURES = ("fid", "kid", "is", "fid_c", "kid_c")  # tested with the network of `shapes`
PAGE = "docs/reference/metrics.md"


def judged(evaluation: Evaluation, metric: str) -> Shown | None:
    """Return what a metric was shown to see on pictures as those of an evaluation; None where it was not tested."""
    spec = evaluation.spec
    is_tested = spec.of_scenes and evaluation.kind == "picture"
    return shown(metric) if is_tested and (metric not in OF_FEATURES or spec.network == "shapes") else None


def seen_lines(columns: Mapping[str, Shown | None], model: str) -> Iterator[str]:
    """Yield lines of Markdown for `columns` by name, of pictures by `model`; those that see alike are in one line."""
    tested = {name: seen for name, seen in columns.items() if seen is not None}
    if not tested:
        yield f"No column was tested on true and damaged pictures of this kind ({PAGE})."
        return
    found = validation()
    sizes = " and ".join(found["sizes"])
    yield f"Faults that each column rates worse than the truth, on {found['scenes']} scenes at {sizes} ({PAGE}):"
    yield ""
    for seen in dict.fromkeys(tested.values()):
        names = ", ".join(name for name, other in tested.items() if other == seen)
        better = f"; rates better than the truth: {', '.join(seen.better)}" if seen.better else ""
        yield f"* {seen.mark} {names}: {', '.join(seen.worse) or 'none'}{better}"
    yield ""
    if untested := [name for name, seen in columns.items() if seen is None]:
        yield f"Not tested: {', '.join(untested)}."
    if model == found["world"]:
        yield f"No column can judge on the model {model}: {', '.join(found['cannot_be_judged'])}."
