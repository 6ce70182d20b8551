"""Where the files of a run go: back to the first place, beside the video, and never over another picture."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from flows.cli.app import parser
from flows.home import Home
from flows.rendering.export import first_target, put, target_path
from flows.rendering.job import prepare
from flows.rendering.session import Session
from stages.errors import SpecError
from stages.observer import NullObserver
from stages.spec import RunOptions, make_spec

if TYPE_CHECKING:
    from pathlib import Path

    from flows.rendering.job import Job

SMALL = {"prompt": "a red disc", "width": 64, "height": 64, "steps": 2}


def session_of(home: Home) -> Session:
    home.make()
    return Session(home, RunOptions(device="cpu", threads=1), NullObserver())


def encoded_anew(path: Path, spec: bool = True, changed: bool = False) -> bytes:
    """Write the picture at `path` with other bytes: as an editor would without changes, with the spec or without."""
    with Image.open(path) as picture:
        kept: dict[str, Any] = {}
        if spec and picture.format == "PNG":
            from PIL.PngImagePlugin import PngInfo

            kept["pnginfo"] = PngInfo()
            kept["pnginfo"].add_itxt("freescale", picture.info["freescale"])
        elif spec:
            kept["exif"] = picture.getexif()
        if picture.format == "TIFF" and spec:
            kept = {"tiffinfo": {270: picture.getexif()[270]}}
        if picture.format == "WEBP":
            kept["lossless"] = True
        pixels = picture.convert("RGB")
        if changed:
            pixels.putpixel((3, 3), (1, 2, 3))
        pixels.save(path, picture.format, **kept)
    return path.read_bytes()


def refused(job: Job, out: Path, home: Home) -> bool:
    last = job.plan.exports[-1]
    try:
        target_path(out, job.run, last.stage, last.key, home, False)
    except SpecError as error:
        assert "exists and is not this run's; choose another name or say --overwrite" in str(error)  # noqa: PT017
        return True
    return False


@pytest.mark.parametrize(("format", "suffix"), [("png", ".png"), ("tiff", ".tiff"), ("webp", ".webp")])
def test_a_file_that_holds_this_picture_is_the_result(tmp_path: Path, format: str, suffix: str) -> None:
    home, elsewhere = Home(tmp_path / "home"), Home(tmp_path / "elsewhere")
    session, out = session_of(home), tmp_path / f"here{suffix}"
    job = prepare(make_spec(SMALL | {"format": format}), home)
    made = session.render(job, out).outputs[0]
    other = encoded_anew(made)
    assert not refused(job, out, home)
    assert not refused(job, out, elsewhere)  # where the picture was never made, the spec in the file is asked
    assert session.render(job, out).outputs[0].read_bytes() == other, "the file was written again"
    encoded_anew(made, changed=True)
    assert refused(job, out, home)
    encoded_anew(made, spec=False)
    assert refused(job, out, home)
    assert refused(job, out, elsewhere)


@pytest.mark.parametrize("data", [b"", b"text", b"\x89PNG\r\n\x1a\n"], ids=["empty", "text", "cut off"])
def test_a_file_that_is_no_picture_is_kept(tmp_path: Path, data: bytes) -> None:
    out = tmp_path / "here.png"
    out.write_bytes(data)
    home = Home(tmp_path / "home")
    assert refused(prepare(make_spec(SMALL), home), out, home)


def test_a_picture_with_the_spec_and_other_pixels_is_kept_at_the_end(tmp_path: Path) -> None:
    """In a home that has not made the picture, only the end can tell: the file stays, the picture is in the store."""
    home = Home(tmp_path / "home")
    session, out = session_of(home), tmp_path / "here.png"
    job = prepare(make_spec(SMALL), home)
    kept = encoded_anew(session.render(job, out).outputs[0], changed=True)
    last = job.plan.exports[-1]
    digest = bytes(home.store.read(last.key)["pixels_sha256"].numpy())

    def fetch(name: str) -> Path:
        return home.store.file_path(last.key, name)

    with pytest.raises(SpecError, match="is another picture, so it was kept"):
        put(last, out, fetch, digest, overwrite=False)
    assert out.read_bytes() == kept
    assert put(last, out, fetch, digest, overwrite=True).read_bytes() != kept


@pytest.mark.thorough
def test_resume_writes_where_the_run_first_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home, first, second = Home(tmp_path / "home"), tmp_path / "first" / "a.png", tmp_path / "second.png"
    session = session_of(home)
    job = prepare(make_spec(SMALL), home)
    session.render(job, first)
    session.render(job, second)
    record = home.runs.load(job.run)
    assert first_target(record, home) == first
    assert first_target(record.revised(target=None), home) == second  # a record of an earlier version
    assert first_target(record.revised(target=None, outputs=record.outputs[1:]), home) is None
    first.unlink()
    folder = tmp_path / "working"
    folder.mkdir()
    monkeypatch.chdir(folder)
    parser()(["resume", job.run, "--home", str(home.root), "--threads", "1", "--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["outputs"][0] == str(first)
    assert first.is_file()
    assert list(folder.iterdir()) == []


@pytest.mark.thorough
def test_the_previews_of_a_video_lie_beside_it(tmp_path: Path) -> None:
    home, out = Home(tmp_path / "home"), tmp_path / "out" / "here.zip"
    values = {"prompt": "a red disc", "model": {"name": "shapes-motion"}, "width": 64, "height": 64, "frames": 2}
    job = prepare(make_spec(values | {"steps": 1, "format": "frames"}), home)
    out.parent.mkdir()
    strange = out.with_suffix(".gif")
    strange.write_bytes(b"another's")
    assert refused(job, out, home)
    assert refused(job, out.parent / "here.zip", home)
    strange.unlink()
    session_of(home).render(job, out)
    assert {path.name for path in out.parent.iterdir()} == {"here.zip", "here.gif", "here.webp", "here-strip.png"}
    assert not refused(job, out, home)
    strange.write_bytes(b"another's")
    assert refused(job, out, home)
