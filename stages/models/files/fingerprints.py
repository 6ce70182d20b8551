"""One fingerprint for each network of a file: of its tensors' names, numbers and shapes, and of nothing else.

So another VAE in the same checkpoint leaves the UNet's results in use, and editing the metadata changes nothing. The
file is read once, from its beginning to its end; what was found is remembered by path, size and times.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from stages.models.files.quantised import scales_of
from stages.models.weights import wanted_tensors

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from stages.models.files.record import FileHeader, NetworkFile
    from stages.models.hashes import Hashes

CHUNK = 2**22  # bytes read at once


def network_hashes(header: FileHeader, networks: Mapping[str, NetworkFile], hashes: Hashes) -> dict[str, str]:
    """Return a sha256 of each network of a file, by part: of the content of its tensors and of its configuration."""
    marks = {part: _mark(network) for part, network in networks.items()}
    found = {part: hashes.known_part(header.path, mark) for part, mark in marks.items()}
    if missing := [part for part, each in found.items() if each is None]:
        names = {part: tensor_names(networks[part], header) for part in missing}
        digests = tensor_digests(header, {name for each in names.values() for name in each})
        made = {part: _together(header, digests, names[part], networks[part].prefix) for part in missing}
        hashes.put_parts(header.path, {marks[part]: each for part, each in made.items()})
        found |= made
    return {part: _with_config(str(each), networks[part]) for part, each in found.items()}


def tensor_names(network: NetworkFile, header: FileHeader) -> list[str]:
    """Return the names in the file of all tensors that decide a network's weights, scales included, sorted."""
    wanted, scales = wanted_names(network), scales_of(header)
    return sorted({*wanted, *(scales[name] for name in wanted if name in scales)} & set(header.tensors))


def wanted_names(network: NetworkFile) -> set[str]:
    """Return the names in the file of the tensors of a network."""
    wanted = wanted_tensors(network.kind, json.dumps(network.config))
    names = (*wanted.parameters, *wanted.tables)
    return {network.stored(name) for name in names if not network.is_identity(name)}


def tensor_digests(header: FileHeader, names: Iterable[str]) -> dict[str, bytes]:
    """Return the sha256 of the bytes of each tensor, read in the order in which they lie in the file."""
    found, buffer = {}, memoryview(bytearray(CHUNK))
    with header.path.open("rb", buffering=0) as file:
        for name in sorted(names, key=lambda name: header.places[name]):
            digest, (at, end) = hashlib.sha256(), header.places[name]
            file.seek(at)
            while at < end and (count := file.readinto(buffer[: min(CHUNK, end - at)])):
                digest.update(buffer[:count])
                at += count
            found[name] = digest.digest()
    return found


def header_hashes(header: FileHeader, networks: Mapping[str, NetworkFile]) -> dict[str, str]:
    """Return what stands in for `network_hashes` where the file is a header alone: no tensor is read."""
    said = json.dumps(sorted(header.tensors.items()))
    return {part: _with_config(hashlib.sha256(said.encode()).hexdigest(), each) for part, each in networks.items()}


def _mark(network: NetworkFile) -> str:
    told = json.dumps([network.kind, network.layout, network.prefix, network.config], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _together(header: FileHeader, digests: Mapping[str, bytes], names: list[str], prefix: str) -> str:
    total = hashlib.sha256()
    for name in names:
        shape, dtype = header.tensors[name]
        total.update(f"{name.removeprefix(prefix)}:{dtype}:{shape}={digests[name].hex()};".encode())
    return total.hexdigest()


def _with_config(content: str, network: NetworkFile) -> str:
    told = json.dumps([network.kind, network.layout, network.config], sort_keys=True)
    return hashlib.sha256(f"{content};{told}".encode()).hexdigest()
