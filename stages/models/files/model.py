"""A model whose networks come from single files: a checkpoint, and a VAE or text encoders from elsewhere."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import SpecError
from stages.models.cache_file import CacheFile
from stages.models.fields import TEXT_CLASSES
from stages.models.files.fingerprints import header_hashes, network_hashes
from stages.models.files.header import read_header
from stages.models.files.places import ELSEWHERE, Location, has_unet, text_place, unet_place, vae_place
from stages.models.files.probe import probe, text_part, vae_part
from stages.models.files.record import FileHeader, FileInfo, NetworkFile
from stages.models.files.strict import check_networks
from stages.models.hashes import Hashes
from stages.models.library import find as find_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from stages.models.linked_folders import FileKind
    from stages.models.weights import Part
    from stages.spec import ModelSpec

    Find = Callable[[FileHeader, str], NetworkFile | None]

PART_OF = {"unet": "unet", "vae": "vae", "text_encoder": "text", "text_encoder_2": "text"}


@dataclass(frozen=True)
class Networks:
    """The networks of a model in files, by part, with a hash of each."""

    parts: Mapping[str, NetworkFile]
    hashes: Mapping[str, str]
    bytes: int  # of all files

    def text_hash(self) -> str:
        """Return the hashes of the text encoders as one line."""
        return ";".join(f"{part}={found}" for part, found in self.hashes.items() if part in TEXT_CLASSES)


@dataclass(frozen=True)
class Sources:
    """The files that a spec names: the checkpoint, and where the VAE and the text encoders come from."""

    checkpoint: FileHeader
    vae: FileHeader
    texts: tuple[FileHeader, ...]

    def of(self, part: str) -> tuple[FileHeader, ...]:
        """Return the files in which a part is looked for."""
        return {"unet": (self.checkpoint,), "vae": (self.vae,), "text": self.texts}[PART_OF[part]]

    @property
    def headers(self) -> dict[Path, FileHeader]:
        """All files by path."""
        return {each.path: each for each in (self.checkpoint, self.vae, *self.texts)}


def read_sources(spec: ModelSpec, path: Path, home: Path, *, is_whole: bool = True) -> Sources:
    """Return the headers of the files of a model. Raises `SpecError`."""
    checkpoint = read_header(path, is_whole=is_whole)
    vae = checkpoint if spec.vae is None else read_header(file_named("vae", spec.vae, home), is_whole=is_whole)
    texts: tuple[FileHeader, ...] = (checkpoint,)
    if spec.text_encoders is not None:
        texts = tuple(read_header(file, is_whole=is_whole) for file in _text_files(spec.text_encoders, home))
    return Sources(checkpoint, vae, texts)


def _text_files(given: str, home: Path) -> list[Path]:
    """Return the files that text encoders are looked for in: one, those of a folder, or those of a diffusers folder."""
    folder = Path(given).expanduser()
    if not folder.is_dir():
        return [file_named("text_encoder", given, home)]
    own = [folder / part for part in TEXT_CLASSES if (folder / part).is_dir()]
    found = [min(files, key=_plainness) for each in own if (files := list(each.glob("*.safetensors")))]
    return found or sorted(folder.glob("*.safetensors"))


def _plainness(file: Path) -> tuple[int, str]:
    """Return what puts `model.safetensors` before `model.fp16.safetensors`."""
    return len(file.name), file.name


def file_named(kind: FileKind, given: str, home: Path) -> Path:
    """Return a file by its path, or by its name in the home or a linked folder. Raises `SpecError`."""
    if Path(given).expanduser().is_dir():
        raise SpecError(f"{kind}: {given!r} is a folder; the .safetensors file in it works")
    return find_file(kind, given, home).resolve()


def family_networks(spec: ModelSpec, path: Path, home: Path, *, has_weights: bool) -> tuple[FileInfo, Networks]:
    """Return what a checkpoint is, and all networks of its family. Raises `SpecError` for one that is missing."""
    sources = read_sources(spec, path, home, is_whole=has_weights)
    info = probe(sources.checkpoint)
    family = info.of_family

    def find(header: FileHeader, part: str) -> NetworkFile | None:
        if part == "unet":
            return info.parts["unet"]
        return vae_part(header, family) if part == "vae" else text_part(header, family, part)

    return info, _networks(sources, (*family.texts, "unet", "vae"), find, home, has_weights=has_weights)


def configured_networks(
    spec: ModelSpec, path: Path, home: Path, parts: Mapping[str, Part], *, has_weights: bool
) -> Networks:
    """Return the networks of a checkpoint that have these configurations, by part. Raises `SpecError`."""
    sources = read_sources(spec, path, home, is_whole=has_weights)

    def find(header: FileHeader, part: str) -> NetworkFile | None:
        given = parts[part]
        location: Location | None
        if part == "unet":
            location = unet_place(header)
        elif part == "vae":
            location = vae_place(header)
        else:
            location = text_place(header, part, int(given.config.get("hidden_size", 512)))
        return location and NetworkFile(header.path, given.kind, location.layout, location.prefix, given.config)

    return _networks(sources, sorted(parts, key=lambda part: part != "unet"), find, home, has_weights=has_weights)


def vae_network(spec: ModelSpec, config: Mapping[str, Any], home: Path, *, has_weights: bool) -> Networks:
    """Return the VAE that a spec names for a model in a folder, whose own VAE has this configuration."""
    header = read_header(file_named("vae", str(spec.vae), home), is_whole=has_weights)

    def find(header: FileHeader, part: str) -> NetworkFile | None:
        location = vae_place(header)
        return location and NetworkFile(header.path, "AutoencoderKL", location.layout, location.prefix, config)

    return _networks(Sources(header, header, ()), ("vae",), find, home, has_weights=has_weights)


def _networks(sources: Sources, names: Iterable[str], find: Find, home: Path, *, has_weights: bool) -> Networks:
    parts = {part: _found(sources, part, find) for part in names}
    _check_latents(parts)
    known, hashes, made = CacheFile(home / "cache" / "weights.json"), Hashes(home), dict[str, str]()
    own = {path: {part: each for part, each in parts.items() if each.path == path} for path in sources.headers}
    used = {path: (header, own[path]) for path, header in sources.headers.items() if own[path]}
    for header, networks in used.values():
        check_networks(header, networks.values(), _elsewhere(header, networks), known)
    known.save()
    for header, networks in used.values():  # which reads the files whole, so that all checks come first
        made |= network_hashes(header, networks, hashes) if has_weights else header_hashes(header, networks)
    return Networks(parts, {part: made[part] for part in parts}, sum(path.stat().st_size for path in sources.headers))


def _check_latents(parts: Mapping[str, NetworkFile]) -> None:
    """Check that UNet and VAE have latents of equally many channels. Raises `SpecError`."""
    if "unet" not in parts:
        return
    unet, vae = (parts[p].config.get(n, 4) for p, n in (("unet", "in_channels"), ("vae", "latent_channels")))
    if unet != vae:
        raise SpecError(
            f"vae: {parts['vae'].path} has latents of {vae} channels, and the UNet takes {unet}; a VAE of the same "
            "family works"
        )


def _elsewhere(header: FileHeader, own: Mapping[str, NetworkFile]) -> tuple[str, ...]:
    """What the names of tensors begin with that a file has and that are not taken from it."""
    if "unet" not in own:
        return ("",) if has_unet(header) else ()
    taken = {PART_OF[part] for part in own}
    return tuple(prefix for part, prefixes in ELSEWHERE.items() if part not in taken for prefix in prefixes)


def _found(sources: Sources, part: str, find: Find) -> NetworkFile:
    for header in sources.of(part):
        if (network := find(header, part)) is not None:
            return network
    files = ", ".join(str(header.path) for header in sources.of(part))
    if part == "vae":
        raise SpecError(f"model: {files} has no VAE; --vae FILE gives one of the same family")
    which = {"text_encoder": "text encoder", "text_encoder_2": "second text encoder"}[part]
    raise SpecError(
        f"model: {files or 'the folder of text encoders'} has no {which} for it; --text-encoders gives them: a "
        "checkpoint of the same family, a diffusers folder, or a folder with the .safetensors file of each"
    )


def configurations(networks: Networks) -> dict[str, str]:
    """Return the configuration of each network as JSON, by part."""
    return {part: json.dumps(network.config) for part, network in networks.parts.items()}
