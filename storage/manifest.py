"""The records of a store: manifests, step records and run records.

Each is one JSON document in a fixed form with a `checksum` over the rest of it. Since the form is fixed, a
reader compares the whole file, and no flipped bit passes. Records are frozen; `revised` makes a changed copy.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AliasChoices,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    NonNegativeInt,
    StringConstraints,
    ValidationError,
)

from storage.durable import digest
from storage.errors import UnsupportedFormatError

FORMAT_VERSION: Literal[1] = 1
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}"  # of an array or file: one path component
RUN_NAME = r"[a-z0-9][a-z0-9._-]{0,120}"
_COMPONENT = r"[A-Za-z0-9][A-Za-z0-9._-]*"

Key = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
FolderName = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
Name = Annotated[str, StringConstraints(pattern=f"^{NAME}$")]
RelativePath = Annotated[str, StringConstraints(pattern=rf"^{_COMPONENT}(/{_COMPONENT})*$")]
RunName = Annotated[str, StringConstraints(pattern=f"^{RUN_NAME}$")]
RunState = Literal["running", "done", "interrupted", "cancelled", "lost", "failed"]
"""`lost`: the process died without a word. `interrupted`: it was asked to stop, and left a checkpoint."""


class Part(BaseModel):
    """A frozen part of a record; unknown fields and numbers that JSON cannot hold are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def revised(self, **changes: Any) -> Self:
        """Return a copy with `changes`. Raises pydantic's `ValidationError` like a new one."""
        return type(self).model_validate({**dict(self), **changes})


class ArrayRecord(Part):
    """A tensor: `dtype` is torch's, `stored` NumPy's on disk (bfloat16 lies there as bits of a uint16)."""

    path: RelativePath  # of the Zarr array, in the data folder
    shape: tuple[NonNegativeInt, ...]
    dtype: str
    stored: str
    axes: tuple[str, ...]
    chunks: tuple[int, ...]


class FileRecord(Part):
    """A file as it was committed: `size` in bytes, `blake2b` with 32 bytes in hex."""

    size: NonNegativeInt
    blake2b: Key


class Record(Part):
    """A whole document, as it is stored in a file."""

    format_version: Literal[1] = FORMAT_VERSION

    def to_bytes(self) -> bytes:
        """Return the document as the bytes of a file, with its checksum."""
        return seal(self.model_dump(mode="json"))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Return the document in `data`. Raises `ValueError` for a wrong byte, else `UnsupportedFormatError`."""
        document = unseal(data)
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            first = error.errors()[0]
            raise UnsupportedFormatError(
                f"a {cls.__name__} of format {document.get('format_version')!r} is intact, but only format "
                f"{FORMAT_VERSION} is known here: {'.'.join(map(str, first['loc']))}: {first['msg']}."
            ) from error


class Contents(Record):
    """Arrays and files in one data folder; `files` has size and hash of every file in it."""

    arrays: dict[Name, ArrayRecord] = Field(default_factory=dict)
    files: dict[RelativePath, FileRecord] = Field(default_factory=dict)
    data: FolderName
    created: AwareDatetime


class Manifest(Contents):
    """A complete artifact: what was asked for, what it was made from, what is there, how it was made."""

    key: Key
    stage: str
    version: int
    level: NonNegativeInt | None = None
    params: dict[str, JsonValue] = Field(default_factory=dict)
    parents: dict[str, Key] = Field(default_factory=dict)
    device: str | None = None
    libraries: dict[str, str] = Field(default_factory=dict)
    seconds: Annotated[float, Field(ge=0)] | None = None
    resumed_at: tuple[NonNegativeInt, ...] = ()  # steps from which an interrupted stage went on
    peak_memory: NonNegativeInt | None = None  # bytes
    savings: Annotated[tuple[str, ...], Field(validation_alias=AliasChoices("savings", "measures"))] = ()
    """Ways to take less memory that were used, by name; older manifests call them `measures`."""
    counts: dict[str, NonNegativeInt] = Field(default_factory=dict)  # of work done, by name


class StepRecord(Contents):
    """A checkpoint inside a stage: its tensors after `step` and what else the stage needs to go on."""

    key: Key
    step: NonNegativeInt
    meta: dict[str, JsonValue] = Field(default_factory=dict)


class PlannedCall(Part):
    """One stage call of a frozen plan."""

    stage: str
    version: int
    level: NonNegativeInt | None = None
    key: Key
    params: dict[str, JsonValue] = Field(default_factory=dict)
    parents: dict[str, Key] = Field(default_factory=dict)


class Attempt(Part):
    """One time that somebody worked on a run."""

    started: AwareDatetime
    finished: AwareDatetime | None = None
    state: RunState = "running"
    host: str | None = None
    process: int | None = None
    boot: str | None = None  # of the machine: another one says that it was started again since
    reached: str | None = None  # how far the run was when the attempt began
    error: str | None = None
    remarks: tuple[str, ...] = ()  # what went wrong beside the work, such as a terminal that was closed


class RunRecord(Record):
    """A run: the spec a person wrote, the plan frozen from it, and how it went."""

    run: RunName
    spec: dict[str, JsonValue]
    plan: tuple[PlannedCall, ...] = ()
    origin: RunName | None = None  # the run this one was made from by `redo`
    origin_stage: str | None = None
    made_for: str | None = None  # what asked for the run where no person did: `evaluation`
    state: RunState = "running"
    attempts: tuple[Attempt, ...] = ()
    outputs: tuple[str, ...] = ()
    target: str | None = None  # the file that the last picture was first asked for
    error: str | None = None
    created: AwareDatetime


def seal(document: dict[str, Any]) -> bytes:
    """Return `document` as JSON with a checksum of itself, in the only form that `unseal` accepts."""
    return _json({**document, "checksum": digest(_json(document))})


def unseal(data: bytes) -> dict[str, Any]:
    """Return the document in `data`, without its checksum. Raises `ValueError` for what `seal` did not write."""
    document = json.loads(data)
    if not isinstance(document, dict) or not isinstance(document.pop("checksum", None), str):
        raise ValueError("not a document with a checksum")
    if seal(document) != data:
        raise ValueError("the document differs from its checksum")
    return document


def _json(document: dict[str, Any]) -> bytes:
    text = json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()
