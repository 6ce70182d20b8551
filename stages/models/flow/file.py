"""A transformer in a single file, as people have FLUX.1, with the rest of its pipeline beside it.

A diffusers folder of the same model gives the configurations, the tokenizers and the noise levels. Text encoders and
VAE come from the files that the spec names, else from the transformer's own file where it holds them, else from the
folder. Every one of them is a network that is checked and hashed as it is anywhere else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import SpecError
from stages.models.cache_file import CacheFile
from stages.models.files.fingerprints import header_hashes, network_hashes
from stages.models.files.header import read_header
from stages.models.files.model import file_named
from stages.models.files.places import ELSEWHERE, Location, text_place, vae_place
from stages.models.files.record import NetworkFile
from stages.models.files.strict import check_networks
from stages.models.files.transformers import READ, transformer_of
from stages.models.flow.folder import SCHEDULER, check_weights, described, part_of, text_tokens, words_files
from stages.models.hashes import Hashes, with_decided

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from stages.models.card import MethodValues
    from stages.models.files.record import FileHeader
    from stages.models.flow.base import FlowFamily
    from stages.models.info import ModelInfo
    from stages.models.weights import Part
    from stages.spec import ModelSpec

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "")
FIRST = {"flux": "double_blocks.0.img_attn.qkv.weight", "diffusers": "transformer_blocks.0.attn.to_q.weight"}
EMBEDDERS = ("img_in.weight", "x_embedder.weight")
OTHER_INPUTS = {384: "FLUX.1 Fill, an inpainting model", 128: "FLUX.1 Canny or Depth, which reads a picture"}
T5_PREFIXES = ("text_encoders.t5xxl.transformer.", "transformer.", "")
T5_FIRST = "encoder.block.0.layer.0.SelfAttention.q.weight"
BESIDE = {"vae": ELSEWHERE["vae"], "text_encoder": ("text_encoders.clip_l.",), "t5": ("text_encoders.t5xxl.",)}
"""What the names of a part begin with in the file of a transformer."""
OPTIONS = {"vae": "--vae FILE gives one of the same family", "text": "--text-encoders gives it"}


@dataclass(frozen=True)
class _Files:
    """Where the networks of a model in files lie, and the parts of it that are in folders."""

    networks: Mapping[str, NetworkFile]
    headers: Mapping[Path, FileHeader]
    own: Mapping[str, Part]

    @property
    def bytes(self) -> int:
        """Of all files with weights."""
        files = [*self.headers, *(path for part in self.own.values() for path in part.files[1:])]
        return sum(path.stat().st_size for path in files)


def flow_file_info(
    family: FlowFamily,
    spec: ModelSpec,
    path: Path,
    root: Path,
    home: Path,
    values: Callable[[Mapping[str, Any], MethodValues], MethodValues],
    *,
    has_weights: bool,
) -> ModelInfo:
    """Return what a transformer in the file `path` is, with a folder `root` of its family.

    Raises `SpecError` for files and folders that do not belong together, or lack a part.
    """
    texts = None if spec.text_encoders is None else Path(spec.text_encoders).expanduser()
    folders = {name: _folder(root, kind.folder, name, texts) for name, kind in family.parts.items()}
    parts = {name: part_of(folders[name], kind, has_weights=False) for name, kind in family.parts.items()}
    info = described(family, spec, root, parts, values)
    files = _found(family, spec, path, parts, home, has_weights=has_weights)
    known = CacheFile(home / "cache" / "weights.json")
    used = {
        where: {name: each for name, each in files.networks.items() if each.path == where} for where in files.headers
    }
    for where, networks in used.items():
        check_networks(files.headers[where], networks.values(), _elsewhere(networks), known)
    known.save()
    if has_weights:
        check_weights(root, family, parts, files.own.values(), home)
    hashes, made = Hashes(home), dict[str, str]()
    for where, networks in used.items():
        header = files.headers[where]
        made |= network_hashes(header, networks, hashes) if has_weights else header_hashes(header, networks)
    made |= {name: hashes.files(part.folder, part.files) for name, part in files.own.items()}
    return replace(
        info,
        folder=path,
        networks=files.networks,
        folders={name: str(part.folder) for name, part in files.own.items()},
        weight_bytes=files.bytes,
        fingerprints=_fingerprints(root, family, made, hashes),
    )


def _folder(root: Path, name: str, part: str, texts: Path | None) -> Path:
    """Return the folder of a part: of a text encoder, in the diffusers folder that is given for them if it is one."""
    if texts is not None and part not in ("unet", "vae") and (texts / name / "config.json").is_file():
        return texts / name
    return root / name


def _found(
    family: FlowFamily, spec: ModelSpec, path: Path, parts: Mapping[str, Part], home: Path, *, has_weights: bool
) -> _Files:
    """Return the network of each part in the files that a spec names; the parts that none of them holds are folders."""
    checkpoint = read_header(path, is_whole=has_weights)
    vae = [] if spec.vae is None else [read_header(file_named("vae", spec.vae, home), is_whole=has_weights)]
    texts = [read_header(each, is_whole=has_weights) for each in _text_files(spec, parts, home)]
    networks = {"unet": _transformer(checkpoint, parts["unet"])}
    for name, part in parts.items():
        given = {"unet": [], "vae": vae}.get(name, texts)
        is_given = spec.text_encoders is not None and part.folder.parent == Path(spec.text_encoders).expanduser()
        if name == "unet" or is_given:
            continue
        if (found := _network(given, part) or _network([checkpoint], part)) is not None:
            networks[name] = found
    headers = {each.path: each for each in (checkpoint, *vae, *texts)}
    used = {network.path for network in networks.values()}
    for option, files in (("vae", vae), ("text_encoders", texts)):
        if files and used.isdisjoint(each.path for each in files):
            others = {name: part.kind for name, part in parts.items() if name != "unet"}
            needed = " or ".join(kind for name, kind in others.items() if (name == "vae") == (option == "vae"))
            raise SpecError(f"{option}: {getattr(spec, option)!r} holds no {needed} as {path.name} needs it")
    own = {name: replace(part, has_weights=has_weights) for name, part in parts.items() if name not in networks}
    for name, part in own.items():
        if has_weights and not any(part.folder.glob(f"{part.stem}*.safetensors")):
            which, option = ("VAE", "vae") if name == "vae" else (part.kind, "text")
            raise SpecError(f"model: {path} has no {which}, and {part.folder} has no weights; {OPTIONS[option]}")
    return _Files(networks, {each: headers[each] for each in headers if each in used}, own)


def _text_files(spec: ModelSpec, parts: Mapping[str, Part], home: Path) -> list[Path]:
    """Return the files that text encoders are looked for in; none for a diffusers folder, which has its own names."""
    if spec.text_encoders is None:
        return []
    folder = Path(spec.text_encoders).expanduser()
    if not folder.is_dir():
        return [file_named("text_encoder", spec.text_encoders, home)]
    if any(part.folder.parent == folder for part in parts.values()):
        return []
    if not (found := sorted(folder.glob("*.safetensors"))):
        raise SpecError(f"text_encoders: {folder} has no .safetensors file, and is no diffusers folder")
    return found


def _transformer(header: FileHeader, part: Part) -> NetworkFile:
    """Return the transformer in a file. Raises `SpecError` for a file of another family, by its name."""
    kind = transformer_of(header.tensors)
    if kind is None or kind.network != part.kind:
        is_read = kind is not None and kind.network is not None
        says = "holds no transformer" if kind is None else f"is {kind.name}" if is_read else kind.says()
        works = f"; a file of {READ} works" if kind is None else ""
        works = f", and {part.folder} is of a {part.kind}; a folder of the same model works" if is_read else works
        raise SpecError(f"model: {header.path} {says}{works}")
    width = next((each.shape[-1] for n, each in header.tensors.items() if n.endswith(EMBEDDERS) and each.shape), 0)
    if width in OTHER_INPUTS and width != part.config.get("in_channels"):
        raise SpecError(f"model: {header.path} is {OTHER_INPUTS[width]}; FLUX.1 [dev], [schnell] or Krea works")
    for layout, first in FIRST.items():
        for prefix in PREFIXES if layout == "flux" else ("", "transformer.", *PREFIXES[:2]):
            if prefix + first in header.tensors:
                return NetworkFile(header.path, part.kind, layout, prefix, part.config)  # type: ignore[arg-type]
    names = " and ".join(FIRST.values())
    raise SpecError(f"model: {header.path} is {kind.name} with none of {names}; download it again")


def _network(headers: Iterable[FileHeader], part: Part) -> NetworkFile | None:
    """Return the text encoder or VAE of a part in files. Raises `SpecError` where two files hold one."""
    found = [(header, location) for header in headers if (location := _location(header, part)) is not None]
    if len(found) > 1:
        both = " and ".join(header.path.name for header, _ in found[:2])
        raise SpecError(
            f"text_encoders: {found[0][0].path.parent} has {both}, which are both a {part.kind}; a folder with one of "
            "them works"
        )
    for header, location in found:
        return NetworkFile(header.path, part.kind, location.layout, location.prefix, part.config)
    return None


def _location(header: FileHeader, part: Part) -> Location | None:
    if part.kind == "AutoencoderKL":
        return vae_place(header)
    if part.kind == "CLIPTextModel":
        return text_place(header, "text_encoder", int(part.config.get("hidden_size", 512)))
    if part.kind == "T5EncoderModel":
        return next((Location(each, "diffusers") for each in T5_PREFIXES if each + T5_FIRST in header.tensors), None)
    return None


def _elsewhere(networks: Mapping[str, NetworkFile]) -> tuple[str, ...]:
    """What the names of tensors begin with that a file has and that are not taken from it."""
    if "unet" not in networks:
        return ()
    return tuple(prefix for part, prefixes in BESIDE.items() if part not in networks for prefix in prefixes)


def _fingerprints(root: Path, family: FlowFamily, made: Mapping[str, str], hashes: Hashes) -> dict[str, str]:
    words = hashes.files(root, words_files(root, family))
    texts = ";".join(f"{name}={each}" for name, each in sorted(made.items()) if name not in ("unet", "vae"))
    return {
        "text": with_decided(texts, {"words": words, "tokens": text_tokens(root, family)}),
        "unet": with_decided(made["unet"], {"scheduler": hashes.files(root, [root / SCHEDULER])}),
        "vae": made["vae"],
    }
