"""What `docs/explanation/determinism.md` promises: some options keep every bit, the others change rounding at most."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from flows.rendering.job import prepare
from freescale import guidance, heads
from freescale.backbones.base import to_rows
from stages.spec import make_spec
from tests.homes import session_in

if TYPE_CHECKING:
    from pathlib import Path

    from flows.rendering.session import Result

SPEC: dict[str, Any] = {"prompt": "a green ring on sand", "seed": 5, "width": 208, "height": 192, "steps": 4}
SPEC["method"] = {"name": "freescale", "restart": 0.5, "dilation": [0.0, 0.9]}  # everything is on in two steps


def render(home: Path, **options: Any) -> Result:
    session = session_in(home, **options)
    return session.render(prepare(make_spec(SPEC), session.home))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return render(tmp_path_factory.mktemp("home"))


@pytest.mark.thorough
def test_windows_and_checkpoints_are_exact_to_the_bit(plain: Result, tmp_path: Path) -> None:
    assert render(tmp_path, window_rows=3, checkpoint_every=0.0).pixels_sha256 == plain.pixels_sha256


@pytest.mark.thorough
def test_text_and_chunks_are_exact_to_the_bit(plain: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompt projected at every step and all windows in one call: without both savings, every bit is equal."""
    monkeypatch.setattr(heads, "CACHE_BYTES", 2**40)
    monkeypatch.setattr(guidance.Denoiser, "_embeds", _afresh)
    monkeypatch.setattr(guidance.Denoiser, "_savings", lambda self: iter(()))
    assert render(tmp_path).pixels_sha256 == plain.pixels_sha256


def _afresh(self: guidance.Denoiser, sides: Any, batch: int) -> Any:
    return torch.cat([to_rows(self._conditioning_of(side)[0], batch) for side in sides])


@pytest.mark.thorough
def test_the_others_are_exact_to_rounding(plain: Result, tmp_path: Path) -> None:
    saved = render(tmp_path, split_guidance=True, feed_forward_tokens=100, phase_convs=True)
    pictures = [np.asarray(Image.open(r.outputs[0])).astype(int) for r in (plain, saved)]
    assert abs(pictures[0] - pictures[1]).max() <= 1
    assert len(np.unique(pictures[0])) > 20
