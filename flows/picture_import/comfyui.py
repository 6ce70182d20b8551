"""What a graph of ComfyUI says of a picture, read from the sampler upstream.

Nodes are told by their inputs: one with `steps`, `cfg` and `sampler_name` samples, one with `lora_name` merges a LoRA,
whatever its class is called. What stands between and does more than pass on is named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flows.picture_import.graph import read_graph
from flows.picture_import.recipe import NamedFile, Recipe, number
from stages.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from flows.picture_import.graph import Graph, Node

MOST = 64  # samplers and outputs of a graph that are looked at
PASSED_ON = ("Reroute", "Reroute (rgthree)", "PrimitiveNode", "SetNode", "GetNode", "Note", "MarkdownNote")
CODING = ("VAEDecode", "VAEEncode")
MODEL_INPUTS = ("model", "MODEL", "*", "", "any", "guider", "value")
LATENTS = ("latent_image", "latent", "samples", "LATENT", "pixels", "image", "images", "*", "", "any")
TEXTS = ("conditioning", "conditioning_1", "conditioning_to", "positive", "*", "", "any", "value")
SIZES = ("width", "height", "crop_w", "crop_h", "target_width", "target_height")  # that SDXL is told
TEXT_NETWORK = ("clip", "CLIP", "*", "", "any")


def read_nodes(texts: Mapping[str, str], picture: tuple[int, int] | None) -> Recipe:
    """Return what the graph of a picture of this (height, width) says. Raises `SpecError` for one without a sampler."""
    graph = read_graph(texts)
    samplers = [node for node in graph.nodes.values() if _samples(node)][:MOST]
    if not samplers:
        kinds = ", ".join(sorted({node.kind for node in graph.nodes.values()})[:6])
        raise SpecError(
            f"picture: its graph of ComfyUI has no sampler that is known, such as KSampler (it has {kinds})"
        )
    recipe = Recipe("ComfyUI")
    first, later, between = _first(graph, samplers)
    _prompts(graph, first, recipe)
    _sampling(graph, first, recipe)
    _model(graph, first, recipe)
    _size(graph, first, later, picture, recipe)
    model = next((file.name for file in recipe.files if file.kind == "model"), None)
    for node in later:
        said = {key: graph.value(node, key) for key in ("steps", "cfg", "sampler_name", "scheduler", "denoise")}
        said["model"] = next(
            (n for n in map(_loaded, graph.chain(node, *MODEL_INPUTS)) if n not in (None, model)), None
        )
        recipe.left(f"a later sampler, {node.kind}", {key: value for key, value in said.items() if value is not None})
    for node in between:
        recipe.left(f"picture changed by {node.kind}", _values(node))
    return recipe


def _samples(node: Node) -> bool:
    """Whether a node takes steps: it has its own settings, or gets them from others (`SamplerCustom`)."""
    names = node.inputs.keys()
    return {"steps", "cfg", "sampler_name"} <= names or {"sampler", "sigmas", "latent_image"} <= names


def _first(graph: Graph, samplers: list[Node]) -> tuple[Node, list[Node], list[Node]]:
    """The sampler that begins with an empty picture, and those that go on from it, up to the picture that is saved.

    Then the nodes after the first one that change the picture without sampling.
    """
    ids = {node.id for node in samplers}
    outputs = [node for node in graph.nodes.values() if node.kind.startswith(("Save", "Preview", "Image Save"))][:MOST]
    lines = [[each.id for each in graph.chain(node, *LATENTS)] for node in outputs]
    lines = [line for line in lines if ids.intersection(line)]
    lines = lines or [[node.id, *(each.id for each in graph.chain(node, *LATENTS))] for node in samplers]
    line = max(lines, key=lambda each: len(ids.intersection(each)))
    sampling = [each for each in line if each in ids]
    after = [graph.nodes[each] for each in line[: line.index(sampling[-1])] if each not in ids]
    between = [node for node in after if node.kind not in PASSED_ON and not node.kind.startswith(CODING)]
    return graph.nodes[sampling[-1]], [graph.nodes[each] for each in reversed(sampling[:-1])], between


def _prompts(graph: Graph, sampler: Node, recipe: Recipe) -> None:
    guider = graph.linked(sampler, "guider") or sampler
    texts = []
    for name in ("positive", "negative"):
        node = graph.linked(guider, name) or (graph.linked(guider, "conditioning") if name == "positive" else None)
        texts.append(_text(graph, node, name, recipe) if node is not None else str(guider.value(name) or ""))
    recipe.prompts(texts[0], texts[1], "comfy")
    for word in " ".join(texts).replace(",", " ").split():
        mark, _, rest = word.strip("()").partition(":")
        if mark == "embedding" and rest:
            recipe.files.append(NamedFile("embedding", rest.partition(":")[0]))


def _text(graph: Graph, node: Node, side: str, recipe: Recipe) -> str:
    """The text of a node that encodes one, found upstream through nodes that change conditionings.

    `side`, positive or negative, is the input of loaders that encode both.
    """
    for each in (node, *graph.chain(node, *TEXTS)):
        found = [_string(graph, each, name) for name in ("text", "text_g", "text_l", "prompt")]
        found += [value] if isinstance(value := each.value(side), str) else []
        said = list(dict.fromkeys(text for text in found if text is not None))
        if said:
            if len(said) > 1:
                recipe.left(f"a second text of {each.kind}", said[1])
            if sizes := {key: value for key in SIZES if (value := number(each.value(key))) is not None}:
                recipe.left(f"sizes of {each.kind}", sizes)
            return said[0]
        if each.kind == "ConditioningZeroOut":
            return ""
        if each.kind not in PASSED_ON:
            others = {k: v for k, v in each.inputs.items() if k not in TEXTS and each.value(k) is not None}
            recipe.left(f"conditioning by {each.kind}", others)
    return ""


def _string(graph: Graph, node: Node, name: str) -> str | None:
    found = graph.value(node, name) if name in node.inputs else None
    return found if isinstance(found, str) else None


def _sampling(graph: Graph, node: Node, recipe: Recipe) -> None:
    """Steps, guidance, seed and solver, also where they are nodes of their own."""
    holders = [node, *(found for key in ("noise", "guider", "sampler", "sigmas") if (found := graph.linked(node, key)))]

    def value(*names: str) -> Any:
        found = (graph.value(each, *names) for each in holders if set(names) & each.inputs.keys())
        return next((one for one in found if one is not None), None)

    recipe.number("steps", value("steps"), "steps", whole=True)
    recipe.number("guidance_scale", value("cfg"), "cfg")
    recipe.seed(value("seed", "noise_seed"), "seed")
    schedule = value("scheduler") or next(
        (n.kind.removesuffix("Scheduler") for n in holders[1:] if "sigma_max" in n.inputs), ""
    )
    if name := value("sampler_name"):
        recipe.sampler(f"{name} {schedule}".strip(), "sampler")
    denoise = number(value("denoise"))
    if denoise is not None and denoise != 1:
        recipe.left("denoise", value("denoise"))
    for name, usual in (("start_at_step", 0), ("end_at_step", 10_000), ("add_noise", "enable")):
        found = value(name)
        is_usual = found in (None, usual, True) or (
            name == "end_at_step" and (number(found) or 0) >= recipe.fields.get("steps", 0)
        )
        if not is_usual:
            recipe.left(name, found)


def _model(graph: Graph, sampler: Node, recipe: Recipe) -> None:
    """The checkpoint with its LoRAs in the order in which they are merged, the VAE, and the text encoders."""
    start = graph.linked(sampler, "guider") or sampler
    loras: list[NamedFile] = []
    for node in graph.chain(start, *MODEL_INPUTS):
        merged = _loras(graph, node)
        loras += reversed(merged)
        if name := _loaded(node):
            recipe.files.append(NamedFile("model", name))
            if (dtype := node.value("weight_dtype")) not in (None, "default"):
                recipe.left("weight_dtype", dtype)
            break
        if merged:
            continue
        if node.kind == "ModelSamplingDiscrete":
            if (said := node.value("sampling")) in ("v_prediction", "eps"):
                recipe.model["prediction"] = "epsilon" if said == "eps" else said
                recipe.model |= {"ztsnr": "on"} if node.value("zsnr") is True else {}
            else:
                recipe.left(f"{node.kind}: sampling", said)
        elif node.kind == "RescaleCFG":
            recipe.number("guidance_rescale", node.value("multiplier"), "RescaleCFG")
        elif node.kind not in PASSED_ON and not _samples(node):
            recipe.left(f"model changed by {node.kind}", _values(node))
    recipe.files += [file for file in reversed(loras) if file.weight or file.text_weight]
    _text_networks(graph, start, recipe)
    if (vae := _vae(graph, sampler)) is not None:
        recipe.files.append(NamedFile("vae", vae))


def _loaded(node: Node) -> str | None:
    """The file of a model that a node loads."""
    name = node.value("ckpt_name", "unet_name")
    return name if isinstance(name, str) else None


def _loras(graph: Graph, node: Node) -> list[NamedFile]:
    """The LoRAs of a node in their order: of Load LoRA, and of the list of rgthree's Power Lora Loader."""
    has_text = "clip" in node.inputs or "ckpt_name" in node.inputs
    if (name := _string(graph, node, "lora_name")) not in (None, "None"):
        unet = graph.value(node, "strength_model", "lora_model_strength")
        return [_lora(str(name), unet, graph.value(node, "strength_clip", "lora_clip_strength"), has_text)]
    rows = [value for value in node.inputs.values() if isinstance(value, dict) and "lora" in value]
    shown = [
        row for row in rows if row.get("on") is not False and isinstance(row["lora"], str) and row["lora"] != "None"
    ]
    return [_lora(row["lora"], row.get("strength"), row.get("strengthTwo"), has_text) for row in shown]


def _lora(name: str, unet: object, text: object, has_text: bool) -> NamedFile:
    """A LoRA with its weights; one for the UNet alone (`LoraLoaderModelOnly`) has the weight 0 for the text."""
    weight = number(unet)
    weight = 1.0 if weight is None else weight
    text_weight = number(text) if has_text else 0.0
    return NamedFile("lora", name, weight=weight, text_weight=None if text_weight in (None, weight) else text_weight)


def _text_networks(graph: Graph, start: Node, recipe: Recipe) -> None:
    """Clip skip, and text encoders that do not come with the checkpoint."""
    node = graph.linked(start, "positive") or graph.linked(start, "conditioning")
    encoders = [] if node is None else [each for each in (node, *graph.chain(node, *TEXTS)) if "clip" in each.inputs]
    for each in graph.chain(encoders[0], *TEXT_NETWORK) if encoders else ():
        if (layer := number(graph.value(each, "stop_at_clip_layer"))) is not None:
            recipe.number("clip_skip", -layer, "stop_at_clip_layer", whole=True, of_model=True)
        for key in ("clip_name", "clip_name1", "clip_name2", "clip_name3"):
            if (name := _string(graph, each, key)) is not None:
                recipe.files.append(NamedFile("text_encoder", name))


def _vae(graph: Graph, sampler: Node) -> str | None:
    """The file of the VAE that decodes the picture, where it is no checkpoint's."""
    for node in graph.nodes.values():
        if "vae" in node.inputs and {"samples", "latent"} & node.inputs.keys():
            loader = next((n for n in graph.chain(node, "vae", "VAE", "*", "") if _string(graph, n, "vae_name")), None)
            if loader is not None:
                return _string(graph, loader, "vae_name")
    return None


def _size(graph: Graph, first: Node, later: list[Node], picture: tuple[int, int] | None, recipe: Recipe) -> None:
    """The size of the empty picture that sampling begins with, and that of the picture after later samplers."""
    for node in graph.chain(first, *LATENTS):
        sides = [_side(graph, node, name) for name in ("width", "height")]
        if None not in sides:
            recipe.size(sides[0], sides[1])
            if (number(node.value("batch_size")) or 1) > 1:
                recipe.left("batch_size", node.value("batch_size"))
            break
        if node.kind == "LoadImage":
            recipe.left("a picture that it begins with", node.value("image"))
    if not {"width", "height"} <= recipe.fields.keys() and picture is not None:
        recipe.size(picture[1], picture[0])
    elif picture is not None and picture[1] > recipe.fields["width"]:
        recipe.enlarged(picture[1], picture[0], "a later sampler" if later else "an upscaler")


def _side(graph: Graph, node: Node, name: str) -> Any:
    """The width or height of an empty picture, also of a loader that makes one."""
    found = next((key for key in (f"empty_latent_{name}", name) if key in node.inputs), None)
    return None if found is None else graph.value(node, found)


def _values(node: Node) -> dict[str, Any]:
    return dict(_plain(node))


def _plain(node: Node) -> Iterator[tuple[str, Any]]:
    for key in node.inputs:
        if (value := node.value(key)) is not None:
            yield key, value
