"""The weight files of a model's parts, checked by their headers alone: which are loaded, and what is in them.

Libraries load a part whatever its file lacks, and fill the gap with random numbers. So every tensor that the class has
must be there with its shape and with floating-point numbers, and no other one. A part that was found right is
remembered in the home by its configuration and the headers of its files, so that a second look imports no library.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stages.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stages.models.cache_file import CacheFile

VERSION = 1  # of what is checked
DIFFUSERS, TRANSFORMERS = "diffusion_pytorch_model", "model"  # names of weight files, without their ending
LISTED = 3  # names of tensors in an error
QWEN_TEXT = "model.language_model."  # before the names of the side for text of a Qwen2.5-VL
UNUSED = ("lm_head.weight",)  # of a text encoder that can also write text
STATISTICS = ("running_mean", "running_var")  # what a network has learnt in tables; others it makes by itself
DERIVED = ("position_ids",)  # integers that old files hold, and that the class makes by itself
RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # of a VAE's attention, once
VERIFIED = frozenset(
    {
        "03ec6a9599c0c51001c4e406eae6f709ca145ef68dd635d45fa408b389d4ff82",
        "65eb9d2f0343497c739763bb37bd319a217ee6f2b47054412ce8c2018d7ccf78",
        "6a552901b17dfa0172ed1fd096598220f90b4cc25c1affe22f8e97034bf292e7",
        "9a89369abce857f27ef129325c986b10be6145690af2ec408538c693aed683f4",
        "a07e08ddc85f034fc8570a9e22859eaa75ccd9f19e56447f708479483dd7798c",
        "b5aecef7b76596934a6d1c683796146e26ab9e9b2ffe260da0c4a8abfe479c2b",
        "eb2b320110128e18270b8dcbbf58f274dcbdf1b9ffad17f77589f7ad6142249a",
        "ebb5b9adba10376e12484791782d9fed1b1f718f4c33231a4aafaeb5013bcc72",
        "fcfe4820429e1c0a89b8c012b97b9b22fc156a34937b180d96720d23357b8163",
    }
)
"""The `content_key` of each part of the embedded models, so that a new home checks them without a library."""
PICKLED = (".bin", ".ckpt", ".pt", ".pth")


class Header(NamedTuple):
    """The shape and the kind of numbers of one tensor in a file, such as `F16` or `I64`."""

    shape: tuple[int, ...]
    dtype: str


class Wanted(NamedTuple):
    """The shapes of a class's tensors by name: those that a file must have, and those that a folder may leave out."""

    parameters: Mapping[str, tuple[int, ...]]
    buffers: Mapping[str, tuple[int, ...]]
    tables: Mapping[str, tuple[int, ...]]  # buffers that are no second name of a parameter


@dataclass(frozen=True)
class Part:
    """A folder with one network, of a model or of a motion adapter; `kind` is the name of its class."""

    folder: Path
    kind: str
    config: Mapping[str, Any]
    has_weights: bool = True  # False: a configuration alone will do, to plan with

    @property
    def stem(self) -> str:
        """The name of its weight file, without its ending."""
        return stem_of(self.kind)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that are loaded: the weights, the index of weights in several files, the configuration."""
        has_weights = self.has_weights or any(self.folder.glob("*.safetensors"))
        return (self.folder / "config.json", *(weight_files(self.folder, self.stem) if has_weights else ()))


def stem_of(kind: str) -> str:
    """Return the name of the weight file of a class, without its ending."""
    return TRANSFORMERS if kind.startswith(("CLIP", "T5", "UMT5", "Qwen2", "Qwen3", "Mistral3")) else DIFFUSERS


def weight_files(folder: Path, stem: str) -> tuple[Path, ...]:
    """Return the weight files that the libraries load from a folder, with the index where there are several.

    diffusers takes the index before the single file, transformers the single file before the index. A folder with
    files of one variant alone, such as `model.fp16.safetensors`, gives those. Raises `SpecError` where there is none of
    all these, or a file of the index is missing.
    """
    variant = variant_of(folder, stem)
    named = "" if variant is None else f".{variant}"
    single, index = folder / f"{stem}{named}.safetensors", folder / f"{stem}.safetensors.index{named}.json"
    order = (index, single) if stem == DIFFUSERS else (single, index)
    found = next((path for path in order if path.is_file()), None)
    if found is None:
        raise SpecError(f"model: {folder} has no {single.name}; {_instead(folder, single.name)}")
    if found == single:
        return (single,)
    names = sorted(set(_weight_map(index).values()))
    if outside := [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]:
        raise SpecError(f"model: {index} names {outside[0]!r}; it may name .safetensors files of its folder alone")
    shards = tuple(folder / name for name in names)
    if missing := [path.name for path in shards if not path.is_file()]:
        raise SpecError(f"model: {folder} has no {missing[0]}, which {index.name} names; download it again")
    return (index, *shards)


def variant_of(folder: Path, stem: str) -> str | None:
    """Return the variant, such as `fp16`, that the files of a folder are of; None where it has files without one.

    Raises `SpecError` for a folder with files of several variants and none without.
    """
    if (folder / f"{stem}.safetensors").is_file() or (folder / f"{stem}.safetensors.index.json").is_file():
        return None
    patterns = (rf"{stem}\.(\w+)\.safetensors", rf"{stem}\.safetensors\.index\.(\w+)\.json")
    names = [each.name for each in folder.glob(f"{stem}.*")]
    found = sorted({match[1] for name in names for pattern in patterns if (match := re.fullmatch(pattern, name))})
    if len(found) > 1:
        raise SpecError(
            f"model: {folder} has {stem} in the variants {' and '.join(found)}; keep the files of one of them"
        )
    return found[0] if found else None


def _instead(folder: Path, name: str) -> str:
    """What to do in a folder without its weight file, by what is there."""
    there = sorted(path.name for path in folder.glob("*")) if folder.is_dir() else []
    if variants := [each for each in there if each.endswith(".safetensors")]:
        return f"rename {variants[0]} to it, or save the model without a variant"
    if pickled := [each for each in there if each.endswith(PICKLED)]:
        return f"{pickled[0]} would have to be run to be read; save the model with safe_serialization=True"
    return "the download is incomplete" if there else "the folder is empty or missing; download it again"


def _weight_map(index: Path) -> dict[str, str]:
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {str(tensor): str(name) for tensor, name in names.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise SpecError(f"model: {index} is no index of weight files; download it again") from None


def check_part(part: Part, known: CacheFile) -> None:
    """Check the tensors of one part by the headers of its files. Raises `SpecError` that names the tensors.

    `known` remembers the parts that were right.
    """
    files = part.files[1:]
    content = content_key(part, files)
    key = f"{content}:{libraries()}"
    if content in VERIFIED or key in known.entries:
        return
    tensors = {name: each for path in files if path.suffix == ".safetensors" for name, each in headers(path).items()}
    found = {current(name, part.kind, is_split=len(files) > 1): each for name, each in tensors.items()}
    try:
        wanted = wanted_tensors(part.kind, json.dumps(part.config))
    except Exception as error:  # whatever a class says of values that fit each by itself, and not together
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SpecError(
            f"model: {part.folder / 'config.json'} makes no {part.kind} ({reason:.200}); download it again"
        ) from None
    if wrong := misfit(found, wanted):
        raise SpecError(f"model: {files[0]} does not hold the weights of a {part.kind} as configured: {wrong}")
    known.put(key, True)


def content_key(part: Part, files: tuple[Path, ...]) -> str:
    """Return one sha256 of the class, the configuration, and the headers and lengths of the weight files."""
    total = hashlib.sha256(json.dumps([VERSION, part.kind, part.config], sort_keys=True).encode())
    for path in files:
        with path.open("rb") as file:
            length = file.read(8) if path.suffix == ".safetensors" else b""
            total.update(length + file.read(min(int.from_bytes(length, "little"), 2**27) if length else -1))
        total.update(f";{path.name}:{path.stat().st_size};".encode())
    return total.hexdigest()


def headers(path: Path) -> dict[str, Header]:
    """Return what a safetensors file says of its tensors, by name. Raises `SpecError` for a damaged file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            slices = ((name, file.get_slice(name)) for name in file.keys())  # noqa: SIM118 — it is no mapping
            return {name: Header(tuple(each.get_shape()), str(each.get_dtype())) for name, each in slices}
    except (SafetensorError, OSError) as error:
        raise SpecError(f"model: {path} {_damage(path, error)}") from None


def _damage(path: Path, error: Exception) -> str:
    """What is wrong with a file that is not read as safetensors, in words."""
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror or error}"
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(2**16)
        length = int.from_bytes(start[:8], "little")
        file.seek(8)
        header = file.read(length) if length < size else b""
    if start.startswith(b"version https://git-lfs"):
        return "is a git-lfs pointer and not the weights; fetch them with `git lfs pull`"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page and not the weights; download the file itself"
    if not size:
        return "is empty; download it again"
    if start[8:9] != b"{":
        return f"is no safetensors file ({size} bytes that begin with {start[:8]!r}); download it again"
    if len(header) < length:
        return f"is cut off: {size} bytes, of which the first {8 + length} are its header; download it again"
    try:
        ends = [int(each["data_offsets"][1]) for name, each in json.loads(header).items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return "has a damaged header; download it again"
    whole = 8 + length + max(ends, default=0)
    if size < whole:
        return f"is cut off: {size} of {whole} bytes; download it again"
    return f"has {size - whole} bytes too many; download it again" if size > whole else f"is damaged: {error}"


@lru_cache(maxsize=32)
def wanted_tensors(kind: str, config: str) -> Wanted:
    """Return the tensors of a class by its configuration as JSON, under the names that its files have today."""
    from stages.models.networks import empty_network

    network = empty_network(kind, json.loads(config))
    parameters = {name: tuple(each.shape) for name, each in network.named_parameters()}
    buffers = {name: tuple(each.shape) for name, each in network.state_dict().items() if name not in parameters}
    tables = {name: tuple(each.shape) for name, each in network.named_buffers() if name in buffers}
    every = (parameters, buffers, tables)
    return Wanted(*({current(name, kind): shape for name, shape in each.items()} for each in every))


def current(name: str, kind: str, *, is_split: bool = False) -> str:
    """Return the name that a tensor of a file gets when the libraries load it into a class.

    `CLIPTextModel` has lost `text_model.` before its names, and Qwen3 has `model.` in a file that can also write text;
    `query` of a VAE's attention is now `to_q`, but is renamed in a single file alone. Qwen2.5-VL has both its sides
    under `model.`, which early files have not; so has Mistral 3.
    """
    if kind == "CLIPTextModel":
        return name.removeprefix("text_model.")
    if kind.startswith("Qwen3"):
        return name.removeprefix("model.")
    if kind.startswith("Qwen2_5_VL"):
        return re.sub(r"^visual\.", "model.visual.", re.sub(r"^model\.(?!language_model|visual)", QWEN_TEXT, name))
    if kind.startswith("Mistral3"):
        inner = name.removeprefix("language_model.") if name.startswith("language_model.lm_head") else name
        inner = re.sub(r"^language_model\.(model\.)?", QWEN_TEXT, inner)
        return re.sub(r"^(vision_tower|multi_modal_projector)\.", r"model.\1.", inner)
    before, _, leaf = name.rpartition(".")
    outer, _, last = before.rpartition(".")
    is_old = kind == "AutoencoderKL" and ".attentions." in name and last in RENAMED and not is_split
    return f"{outer}.{RENAMED[last]}.{leaf}" if is_old else name


def misfit(found: Mapping[str, Header], wanted: Wanted) -> str:
    """What keeps the tensors of files from being those that are wanted, in words; empty where nothing does."""
    shapes = {**wanted.parameters, **wanted.buffers}
    needless = {name for name in found if name.endswith(DERIVED) or (name.endswith(UNUSED) and name not in shapes)}
    given = {name: header for name, header in found.items() if name not in needless}
    needed = (*wanted.parameters, *(name for name in wanted.tables if name.endswith(STATISTICS)))
    kinds = {
        "missing": [name for name in needed if name not in given],
        "of another shape": [
            f"{name} {shown_shape(each.shape)} for {shown_shape(shapes[name])}"
            for name, each in given.items()
            if name in shapes and each.shape != shapes[name]
        ],
        "of another kind": [
            f"{name} {each.dtype} for floating-point numbers"
            for name, each in given.items()
            if name in wanted.parameters and not each.dtype.startswith(("F", "BF"))
        ],
        "unknown": [name for name in given if name not in shapes],
    }
    return "; ".join(listed_tensors(kind, names) for kind, names in kinds.items() if names)


def shown_shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "()"


def listed_tensors(kind: str, names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"{len(names)} {kind} ({', '.join(names[:LISTED])}{more})"


@cache
def libraries() -> str:
    return " ".join(importlib.metadata.version(name) for name in ("diffusers", "transformers"))
