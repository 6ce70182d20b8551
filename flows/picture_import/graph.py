"""The graph of nodes that ComfyUI leaves in a picture: nodes by their ids, each with values and links to other nodes.

`prompt` is the graph as it ran. `workflow` is the graph as it was drawn, where values stand in the order of the
widgets; it is read only where the first is missing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from stages.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_NODES = 10_000
OFF = (2, 4)  # modes of a drawn node that is muted or bypassed
WIDGETS: Mapping[str, tuple[str, ...]] = {  # of drawn nodes, in their order; `_` is one that is not kept
    "KSampler": ("seed", "_", "steps", "cfg", "sampler_name", "scheduler", "denoise"),
    "KSamplerAdvanced": (
        *("add_noise", "noise_seed", "_", "steps", "cfg", "sampler_name", "scheduler"),
        *("start_at_step", "end_at_step", "return_with_leftover_noise"),
    ),
    "CheckpointLoaderSimple": ("ckpt_name",),
    "UNETLoader": ("unet_name", "weight_dtype"),
    "VAELoader": ("vae_name",),
    "LoraLoader": ("lora_name", "strength_model", "strength_clip"),
    "LoraLoaderModelOnly": ("lora_name", "strength_model"),
    "CLIPSetLastLayer": ("stop_at_clip_layer",),
    "CLIPTextEncode": ("text",),
    "CLIPTextEncodeSDXL": (
        *("width", "height", "crop_w", "crop_h", "target_width", "target_height", "text_g", "text_l"),
    ),
    "EmptyLatentImage": ("width", "height", "batch_size"),
    "LatentUpscale": ("upscale_method", "width", "height", "crop"),
    "LatentUpscaleBy": ("upscale_method", "scale_by"),
    "PrimitiveNode": ("value", "_"),
    "ModelSamplingDiscrete": ("sampling", "zsnr"),
    "RescaleCFG": ("multiplier",),
}


class Link(NamedTuple):
    """What an input is connected to: a node, and which of its outputs."""

    node: str
    slot: int


@dataclass(frozen=True)
class Node:
    """One node: its class, and its inputs by name, which are values or links."""

    id: str
    kind: str
    inputs: Mapping[str, Any]

    def value(self, *names: str) -> Any:
        """The first of these inputs that is there and no link; None where none is."""
        found = (self.inputs.get(name) for name in names)
        return next((value for value in found if value is not None and not isinstance(value, Link)), None)


class Graph:
    """Nodes by id."""

    def __init__(self, nodes: Mapping[str, Node]) -> None:
        self.nodes = nodes

    def linked(self, node: Node, name: str) -> Node | None:
        """The node that an input is connected to; None for a value and for a node that is not there."""
        link = node.inputs.get(name)
        return self.nodes.get(link.node) if isinstance(link, Link) else None

    def value(self, node: Node, *names: str) -> Any:
        """The value of the first of these inputs, found also through a link to a node that gives one value."""
        seen = set[str]()
        here: Node | None = node
        while here is not None and here.id not in seen:
            seen.add(here.id)
            if (found := here.value(*names)) is not None:
                return found
            linked = (self.linked(here, name) for name in names)
            here = next((each for each in linked if each is not None), None)
            names = (*names, *GIVING)
        return None

    def chain(self, node: Node, *names: str) -> Iterator[Node]:
        """Yield the nodes upstream of a node by the first of these inputs that is linked, the nearest first."""
        seen = {node.id}
        here = node
        while (found := self._next(here, names)) is not None and found.id not in seen:
            seen.add(found.id)
            yield found
            here = found

    def _next(self, node: Node, names: tuple[str, ...]) -> Node | None:
        return next((each for name in names if (each := self.linked(node, name)) is not None), None)


GIVING = ("value", "text", "string", "Text", "String", "text1", "int", "float", "seed", "prompt", "positive")
"""Inputs in which nodes that give one value hold it."""


def read_graph(texts: Mapping[str, str]) -> Graph:
    """Return the graph of the texts `prompt` or `workflow`. Raises `SpecError` for one that cannot be read."""
    reason = "it is not JSON"
    for key, read in (("prompt", _ran), ("workflow", _drawn)):
        if key not in texts:
            continue
        try:
            nodes = read(json.loads(texts[key]))
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
            reason = f"it is not JSON of nodes ({type(error).__name__})"
            continue
        if 0 < len(nodes) <= MAX_NODES:
            return Graph(nodes)
        reason = f"it has {len(nodes)} nodes"
    raise SpecError(f"picture: its graph of ComfyUI cannot be read: {reason}")


def _ran(values: Any) -> dict[str, Node]:
    """The nodes of `prompt`: {"3": {"class_type": "KSampler", "inputs": {"model": ["4", 0], "steps": 20}}}."""
    nodes = {}
    for name, each in values.items():
        inputs = {str(key): _input(value) for key, value in each.get("inputs", {}).items()}
        nodes[str(name)] = Node(str(name), str(each["class_type"]), inputs)
    return nodes


def _input(value: Any) -> Any:
    is_link = isinstance(value, list) and len(value) == 2 and isinstance(value[0], str | int) and type(value[1]) is int
    return Link(str(value[0]), value[1]) if is_link else value


def _drawn(values: Any) -> dict[str, Node]:
    """The nodes of `workflow`, whose links are in a list of their own; nodes that are switched off are left out."""
    links = {each[0]: Link(str(each[1]), int(each[2])) for each in values.get("links", ()) if isinstance(each, list)}
    nodes = {}
    for each in values["nodes"]:
        if each.get("mode") in OFF:
            continue
        given = each.get("widgets_values") or ()
        kind = str(each["type"])
        names = WIDGETS.get(kind, ())
        inputs = dict(given) if isinstance(given, dict) else dict(zip(names, given, strict=False))
        for one in each.get("inputs") or ():
            if one.get("link") in links:
                inputs[str(one["name"])] = links[one["link"]]
        nodes[str(each["id"])] = Node(str(each["id"]), kind, inputs)
    return nodes
