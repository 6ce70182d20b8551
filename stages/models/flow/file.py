"""A transformer in a single file, as people have most of them, with the rest of its pipeline beside it.

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
from stages.models.files.strict import check_networks
from stages.models.flow.base import SECOND
from stages.models.flow.folder import (
    SCHEDULER,
    check_weights,
    described,
    family_in,
    part_of,
    text_tokens,
    with_statistics,
    words_files,
)
from stages.models.flow.places import elsewhere, part_file, transformer_file
from stages.models.hashes import Hashes, with_decided
from stages.models.weights import Part

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from stages.models.card import MethodValues
    from stages.models.files.record import FileHeader, NetworkFile
    from stages.models.flow.base import FlowFamily
    from stages.models.info import ModelInfo
    from stages.spec import ModelSpec

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
    family = family_in(family, root)
    if SECOND in family.parts:
        raise SpecError(f"model.config: {root} has two transformers; they are rendered from that folder, without files")
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
        check_networks(files.headers[where], networks.values(), elsewhere(networks), known)
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
        fingerprints=with_statistics(_fingerprints(root, family, made, hashes), parts),
    )


def with_vae(info: ModelInfo, spec: ModelSpec, home: Path, *, has_weights: bool) -> ModelInfo:
    """Return a model in a folder with the VAE of the file that its spec names, of the class of the folder's.

    Raises `SpecError` for a file that holds none.
    """
    config = info.configs["vae"]
    part = Part(info.folder / "vae", str(config["_class_name"]), config)
    header = read_header(file_named("vae", str(spec.vae), home), is_whole=has_weights)
    if (network := part_file([header], "vae", part)) is None:
        raise SpecError(f"vae: {spec.vae!r} holds no {part.kind} as {spec.name} needs it; leave it out")
    known = CacheFile(home / "cache" / "weights.json")
    check_networks(header, [network], (), known)
    known.save()
    vae = {"vae": network}
    made = network_hashes(header, vae, Hashes(home)) if has_weights else header_hashes(header, vae)
    return replace(
        info,
        networks={**info.networks, **vae},
        weight_bytes=info.weight_bytes + header.path.stat().st_size,
        fingerprints=with_statistics({**info.fingerprints, **made}, {"vae": part}),
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
    networks = {"unet": transformer_file(checkpoint, parts["unet"])}
    for name, part in parts.items():
        given = {"unet": [], "vae": vae}.get(name, texts)
        is_given = spec.text_encoders is not None and part.folder.parent == Path(spec.text_encoders).expanduser()
        if name == "unet" or is_given:
            continue
        if (found := part_file(given, name, part) or part_file([checkpoint], name, part)) is not None:
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


def _fingerprints(root: Path, family: FlowFamily, made: Mapping[str, str], hashes: Hashes) -> dict[str, str]:
    words = hashes.files(root, words_files(root, family))
    texts = ";".join(f"{name}={each}" for name, each in sorted(made.items()) if name not in ("unet", "vae"))
    return {
        "text": with_decided(texts, {"words": words, "tokens": text_tokens(root, family)}),
        "unet": with_decided(made["unet"], {"scheduler": hashes.files(root, [root / SCHEDULER])}),
        "vae": made["vae"],
    }
