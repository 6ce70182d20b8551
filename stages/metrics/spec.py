"""What a person writes to measure methods: `EvaluationSpec`, as YAML, JSON, flags or Prefect parameters."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from stages.errors import SpecError, sentence
from stages.metrics.grid import GridSpec, Part
from stages.metrics.resize import NAME

SPLIT_FROM = 200  # pictures from which an inception score is taken over ten parts

Metric = Literal[
    "fid", "kid", "is", "fid_c", "kid_c", "clip_score", "objects", "detail", "texture", "seams",
    "fvd", "kvd", "dynamic_degree", "flicker", "aesthetic",
]  # fmt: skip
Network = Literal["shapes", "inception", "shapes-motion", "i3d"]
OF_PICTURES: tuple[Metric, ...] = (
    "fid", "kid", "is", "fid_c", "kid_c", "clip_score", "objects", "detail", "texture", "seams",
)  # fmt: skip
OF_VIDEOS: tuple[Metric, ...] = ("fvd", "kvd", "dynamic_degree", "flicker", "aesthetic", "objects")
COMPARING_VIDEOS: tuple[Metric, ...] = ("fvd", "kvd")
VIDEO_NETWORKS: tuple[Network, ...] = ("shapes-motion", "i3d")


class Reference(Part):
    """What the pictures are compared with; it is never their own smaller versions.

    `base`: other draws of the same prompts at the training size, as FreeScale's tables have it (arXiv 2412.09626,
    section 4). `real`: the pictures of a folder. `truth`, for `shapes`: other scenes, drawn at the target size.
    """

    protocol: Literal["base", "real", "truth"] = "base"
    folder: str | None = Field(None, min_length=1, max_length=4096)
    count: int | None = Field(None, ge=2, le=100_000, description="Of `truth`; none: as many as pictures.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.protocol == "real") != (self.folder is not None):
            raise ValueError(f"folder belongs to protocol 'real' and to no other; the protocol is {self.protocol!r}")
        if self.count is not None and self.protocol != "truth":
            raise ValueError(f"count belongs to protocol 'truth'; {self.protocol!r} has its own number")
        return self


class Crops(Part):
    """Crops of FID_c and KID_c. `side` none: the network's own input size, so that nothing is resized."""

    count: int = Field(10, ge=1, le=1000, description="A picture.")
    side: int | None = Field(None, ge=8, le=4096, description="Pixels; crops of another size are resized.")
    grid: bool = Field(False, description="All whole crops side by side in place of `count` random ones.")


class WeightSpec(Part):
    """Where weights lie when not under the models folder, and the checksum they must have."""

    path: str | None = Field(None, min_length=1, max_length=4096)
    sha256: str | None = Field(None, pattern=r"^[0-9a-fA-F]{64}$")


class EvaluationSpec(GridSpec):
    """Prompts x methods x sizes x seeds, rendered, and measured against a reference."""

    reference: Reference = Reference()
    metrics: tuple[Metric, ...] | None = Field(None, min_length=1, description="None: all that the prompts allow.")
    extractor: Network | None = Field(
        None, description="None: shapes or shapes-motion for captions, else inception or i3d."
    )
    resize: Literal["bilinear", "antialias"] | None = Field(
        None, description="Of frames, for i3d. None: bilinear, without antialiasing, as published."
    )
    weights: dict[Literal["inception", "clip", "i3d", "raft", "aesthetic"], WeightSpec] = Field(default_factory=dict)
    crops: Crops = Crops()
    kid_subsets: int = Field(100, ge=1, le=10_000)
    kid_subset_size: int = Field(1000, ge=2, le=100_000)
    splits: int | None = Field(None, ge=1, le=100, description="Of the inception score; none: 10 from 200 pictures.")
    draws: int = Field(200, ge=10, le=10_000, description="Resamples behind each interval.")
    seed: int = Field(0, ge=0, lt=2**63, description="Of crops, subsets and resamples.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for needs_scenes in {"truth", "objects", "texture"} & {self.reference.protocol, *self.measured}:
            if not self.of_scenes:
                raise ValueError(f"{needs_scenes!r} is known only for prompts 'shapes', captions of scenes")
        return self

    def _once(self) -> dict[str, list[object]]:
        return super()._once() | {"metrics": list(self.measured)}

    def settled(self, model: str, videos: bool) -> Self:
        """Return the spec with what its model decides filled in: of videos, metrics and network. Raises `SpecError`."""
        able, makes, of = (OF_VIDEOS, "videos", "pictures") if videos else (OF_PICTURES, "pictures", "videos")
        for metric in self.metrics or ():
            if metric not in able:
                raise SpecError(f"metrics: {metric!r} is of {of}, and {model} makes {makes}: {', '.join(able)}")
        if self.extractor is not None and (self.extractor in VIDEO_NETWORKS) != videos:
            allowed = ", ".join(VIDEO_NETWORKS) if videos else "shapes, inception"
            raise SpecError(f"extractor: {self.extractor!r} reads {of}, and {model} makes {makes}: {allowed}")
        found = self._of_videos() if videos else self
        if found.resize is not None and found.network != "i3d":
            raise SpecError(f"resize: {found.resize!r} is a choice for i3d; {found.network} has a resize of its own")
        return found

    def _of_videos(self) -> Self:
        if self.reference.protocol == "real":
            raise SpecError("reference.protocol: 'real' is a folder of pictures; videos are held against base or truth")
        metrics: tuple[Metric, ...] = self.metrics or (("fvd", "kvd", "objects") if self.of_scenes else ("flicker",))
        network: Network = self.extractor or ("shapes-motion" if self.of_scenes else "i3d")
        return self.model_copy(update={"metrics": metrics, "extractor": network})

    @property
    def resize_rule(self) -> str:
        """How what the feature network reads is brought to its size."""
        return (self.resize or "bilinear") if self.network == "i3d" else NAME

    @property
    def network(self) -> Network:
        """The feature network, named or by the prompts."""
        return self.extractor or ("shapes" if self.of_scenes else "inception")

    @property
    def measured(self) -> tuple[Metric, ...]:
        """The metrics, named or all that need no further weights."""
        always: tuple[Metric, ...] = ("fid", "kid", "is", "fid_c", "kid_c")
        return self.metrics or (always + (("objects",) if self.of_scenes else ()))

    def parts(self, pictures: int) -> int:
        """Return the number of parts of an inception score over so many pictures."""
        return self.splits or (10 if pictures >= SPLIT_FROM else 1)


def make_evaluation(values: dict[str, Any]) -> EvaluationSpec:
    """Return the spec of checked `values`. Raises `SpecError` with the first complaint in one sentence."""
    try:
        return EvaluationSpec.model_validate(values)
    except ValidationError as error:
        raise SpecError(sentence(error, EvaluationSpec)) from None
