"""A model folder of VideoCrafter2 that holds configurations alone: enough for the planner, which reads no weights."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from stages.models.convert_videocrafter2 import INDEX, SCHEDULER, Architecture
from stages.models.videocrafter import empty_networks

if TYPE_CHECKING:
    from pathlib import Path


def write_videocrafter2(folder: Path) -> Path:
    """Write the folder; return it."""
    standard = Architecture()
    parts = empty_networks(standard.unet, standard.vae, standard.text)
    files: dict[str, Any] = {f"{part}/config.json": _config(network) for part, network in parts.items()}
    files |= {"scheduler/scheduler_config.json": SCHEDULER, "freescale.json": standard.card, "model_index.json": INDEX}
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return folder


def _config(network: Any) -> dict[str, Any]:
    """As the network's own `save_pretrained` has it, transformers' or diffusers'."""
    config = network.config
    if hasattr(config, "to_dict"):
        return dict(config.to_dict())
    return {"_class_name": type(network).__name__, **config}
