"""The families of transformers that can be rendered with, one file each. To add one: its file and its line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.models.flow.chroma import CHROMA
from stages.models.flow.flux import FLUX
from stages.models.flow.flux2 import KLEIN
from stages.models.flow.zimage import Z_IMAGE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stages.models.flow.base import FlowFamily

FLOW_FAMILIES: Mapping[str, FlowFamily] = {family.pipeline: family for family in (FLUX, CHROMA, KLEIN, Z_IMAGE)}
"""By the class of pipeline that a folder names."""
