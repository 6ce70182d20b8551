"""A file of an adapter by its header: its modules, its kind, the models it was made for; and its fingerprint.

No tensor is read but for the fingerprint, which is of the contents: the name, the kind of numbers, the shape and the
bytes of every tensor. A file has one for its half of the UNet and one for its half of the text encoders, so that an
adapter without the latter leaves prompts encoded.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stages.adapters.kinds import rank_of, refused_kind, split_name
from stages.adapters.metadata import PEFT, family_said, metadata_of, trigger_words
from stages.adapters.spellings import is_of_text
from stages.errors import SpecError
from stages.models.weights import PICKLED, headers

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from stages.models.hashes import Hashes
    from stages.models.weights import Header

BUNDLED = "bundle_emb."  # before the names of a textual inversion in the same file
WIDTHS: Mapping[int, str] = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "SDXL"}
"""Families by the width of a row of text, which `attn2.to_k` takes."""
NO_ADAPTERS: Mapping[str, tuple[str, ...]] = {
    "a checkpoint; give it as the model": ("model.diffusion_model.", "first_stage_model.", "conditioner."),
    "a textual inversion; give it as an embedding": ("emb_params", "clip_l", "clip_g", "string_to_param"),
    "an IP-Adapter, which is no LoRA": ("image_proj.", "ip_adapter."),
    "a ControlNet, which is no LoRA": ("control_model.", "controlnet_", "input_hint_block."),
}
"""What a file without one tensor of an adapter may be, by the beginnings of its names."""


@dataclass(frozen=True)
class AdapterFile:
    """The header of one file, sorted: modules as the file writes them, each with the tensors of its roles."""

    path: Path
    tensors: Mapping[str, Header]
    metadata: Mapping[str, str]
    groups: Mapping[str, Mapping[str, str]]  # module -> role -> name of the tensor
    unknown: tuple[str, ...]  # tensors whose ending is no role's
    bundled: tuple[str, ...]  # names of textual inversions in it

    def shapes(self, module: str) -> dict[str, tuple[int, ...]]:
        """Return the shapes of a module's tensors by their roles."""
        return {role: self.tensors[name].shape for role, name in self.groups[module].items()}

    def __str__(self) -> str:
        """The name of the file, as errors say it."""
        return repr(self.path.name)


@dataclass(frozen=True)
class Contents:
    """sha256 of a file's contents. `data`: its bytes after the header, as A1111 counts; then of each half, or empty."""

    data: str
    unet: str
    text: str


HALVES = ("data", "unet", "text")


@dataclass(frozen=True)
class AdapterRecord:
    """What a listing says of an adapter."""

    path: Path
    kind: str  # LoRA, LoCon, LoHa, LoKr, GLoRA, full difference; several with `+`
    family: str | None  # of models it was made for, by its shapes, else by its metadata
    rank: int | None  # the largest of its modules
    hash: str  # sha256 of the bytes after the header, of which A1111 writes 12 digits into its pictures
    trigger_words: tuple[str, ...] = ()
    bundled: tuple[str, ...] = field(default=())


def read_adapter(path: Path) -> AdapterFile:
    """Return a file sorted by modules, by its header alone. Raises `SpecError` for what is no adapter we read."""
    if path.suffix.lower() in PICKLED:
        raise SpecError(f"lora: {str(path)!r} is pickled and would have to be run to be read; a .safetensors works")
    try:
        tensors = headers(path)
    except SpecError as error:
        raise SpecError(str(error).replace("model:", "lora:", 1)) from None
    groups: dict[str, dict[str, str]] = {}
    unknown, bundled = list[str](), set[str]()
    for name in tensors:
        if name.startswith(BUNDLED):
            bundled.add(name.split(".")[1])
        elif (found := split_name(name)) is None:
            unknown.append(name)
        elif found[1] in (roles := groups.setdefault(found[0], {})):
            raise SpecError(f"lora: {str(path)!r} has {roles[found[1]]} and {name}, which mean one thing")
        else:
            roles[found[1]] = name
    if (kind := refused_kind(tensors)) is not None:
        raise SpecError(f"lora: {str(path)!r} is of the kind {kind}, which is not read; {READ} are")
    if not groups:
        raise SpecError(f"lora: {str(path)!r} {_no_adapter(tensors)}")
    _check_numbers(path, groups, tensors)
    return AdapterFile(path, tensors, _metadata(path), groups, tuple(unknown), tuple(sorted(bundled)))


READ = "LoRA, LoCon, LoHa, LoKr, DoRA, GLoRA and full differences"


def describe_adapter(path: Path, hashes: Hashes | None = None) -> AdapterRecord:
    """Return what a listing says of an adapter; `hashes` remembers its own. Raises `SpecError` for what is none."""
    file = read_adapter(path)
    ranks = [rank for module in file.groups if (rank := rank_of_module(file, module)) is not None]
    return AdapterRecord(
        path=path,
        kind=kind_of(file),
        family=family_by_shapes(file) or family_said(file.metadata),
        rank=max(ranks, default=None),
        hash=contents(file, hashes).data,
        trigger_words=trigger_words(file.metadata),
        bundled=file.bundled,
    )


def kind_of(file: AdapterFile) -> str:
    """Return the kinds of an adapter's modules in words: `LoRA`, `LoCon`, `LoHa with magnitudes (DoRA)`."""
    kinds: dict[str, None] = {}
    signs = {"hada_w1_a": "LoHa", "lokr_": "LoKr", "glora_": "GLoRA", "diff": "full difference", "w_norm": "norms"}
    for module in file.groups:
        shapes = file.shapes(module)
        if "lora_down" in shapes:
            kinds["LoCon" if len(shapes["lora_down"]) > 2 and shapes["lora_down"][-1] > 1 else "LoRA"] = None
        for sign, kind in signs.items():
            if any(role.startswith(sign) for role in shapes):
                kinds[kind] = None
        if shapes.keys() & {"dora_scale", "magnitude"}:
            kinds["DoRA"] = None
    return " + ".join(kinds)


def rank_of_module(file: AdapterFile, module: str) -> int | None:
    """Return the rank of one module's change, or None where it has none or is incomplete."""
    try:
        return rank_of(file.shapes(module))
    except ValueError:
        return None


def text_width(file: AdapterFile) -> int | None:
    """Return the width of the rows of text that an adapter's cross-attention takes, by its shapes; None: no telling."""
    for module in file.groups:
        if module.endswith(("attn2_to_k", "attn2.to_k", "attn2.processor.to_k")):
            shapes = file.shapes(module)
            for role in ("lora_down", "hada_w1_b", "glora_a2", "diff"):
                if len(shapes.get(role, ())) > 1:
                    return shapes[role][1]
            sides = [shapes.get(f"lokr_{w}", shapes.get(f"lokr_{w}_b", ())) for w in ("w1", "w2")]
            if all(len(side) > 1 for side in sides):
                return sides[0][1] * sides[1][1]
    return None


def family_by_shapes(file: AdapterFile) -> str | None:
    """Return the family of models that an adapter fits by its shapes and names, or None."""
    from stages.adapters.families import OTHERS, transformer_family  # here, since a plan without adapters needs none

    if any(name.startswith(("lora_te2_", "text_encoder_2.")) for name in file.groups):
        return "SDXL"
    family = transformer_family(file.groups, file.shapes)
    width = text_width(file) if family in (None, OTHERS) else None
    return family if width is None else WIDTHS.get(width)


def contents(file: AdapterFile, hashes: Hashes | None = None) -> Contents:
    """Return the fingerprints of a file; `hashes` remembers them."""
    known = [] if hashes is None else [hashes.known_part(file.path, f"adapter {part}") for part in HALVES]
    if known and None not in known:
        return Contents(*map(str, known))
    found = _read_contents(file)
    if hashes is not None:
        hashes.put_parts(file.path, {f"adapter {part}": getattr(found, part) for part in HALVES})
    return found


def _read_contents(file: AdapterFile) -> Contents:
    """One pass over the bytes of the tensors, in the order of the file."""
    with file.path.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        begins = {name: each["data_offsets"] for name, each in header.items() if name != "__metadata__"}
        total, digests = hashlib.sha256(), dict[str, str]()
        for name, (begin, end) in sorted(begins.items(), key=lambda item: item[1]):
            data = stream.read(end - begin)
            total.update(data)
            digests[name] = hashlib.sha256(data).hexdigest()
    halves = {is_text: [name for name in digests if is_of_text(name) == is_text] for is_text in (False, True)}
    unet, text = (_half(file, digests, names) for _, names in sorted(halves.items()))
    return Contents(total.hexdigest(), unet, text)


def _half(file: AdapterFile, digests: Mapping[str, str], names: Iterable[str]) -> str:
    """One sha256 of the tensors of one half by name, and of PEFT's scales, which decide as well; empty for none."""
    roles = {name for group in file.groups.values() for name in group.values()}
    found = [[name, *file.tensors[name], digests[name]] for name in sorted(names) if name in roles]
    scales = [file.metadata[PEFT]] if PEFT in file.metadata else []
    return hashlib.sha256(json.dumps([found, *scales]).encode()).hexdigest() if found else ""


def _metadata(path: Path) -> dict[str, str]:
    """The metadata of a file; PEFT's from the `adapter_config.json` beside it, where PEFT saved it so."""
    found, beside = metadata_of(path), path.with_name("adapter_config.json")
    if PEFT not in found and path.stem == "adapter_model" and beside.is_file():
        try:
            found[PEFT] = json.dumps(json.loads(beside.read_text(encoding="utf-8")), sort_keys=True)
        except (OSError, ValueError) as error:
            raise SpecError(f"lora: {str(beside)!r} has the scales of {path.name} and is not JSON ({error})") from None
    return found


def _check_numbers(path: Path, groups: Mapping[str, Mapping[str, str]], tensors: Mapping[str, Header]) -> None:
    """Raise `SpecError` for a factor that is no floating-point tensor, and for an alpha that is no single number."""
    for roles in groups.values():
        for role, name in roles.items():
            shape, dtype = tensors[name]
            if role != "alpha" and not dtype.startswith(("F", "BF")):
                raise SpecError(f"lora: {str(path)!r} has {name} as {dtype}; floating-point numbers work")
            if role == "alpha" and any(side != 1 for side in shape):
                raise SpecError(f"lora: {str(path)!r} has {name} of the shape {list(shape)}; it is one number")


def _no_adapter(names: Iterable[str]) -> str:
    """What a file is in which no tensor is of an adapter."""
    every = list(names)
    for what, signs in NO_ADAPTERS.items():
        if any(name.startswith(signs) for name in every):
            return f"is {what}"
    first = f", such as {every[0]}" if every else ""
    return f"holds no adapter: none of its {len(every)} tensors has a name of one{first}"
