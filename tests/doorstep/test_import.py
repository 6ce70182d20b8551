"""Pictures from anywhere at the door of `freescale import`, and folders at that of `freescale models`."""

from __future__ import annotations

import json
import struct
import zlib
from typing import TYPE_CHECKING

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.doorstep.harness import Case, call, check, prepare, table

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TEXT = "a red disc\nSteps: 4, Sampler: Euler a, CFG scale: 3, Seed: 7, Size: 128x128, Model: shapes, ENSD: 31337"


def png(**texts: str) -> Callable[[Path], None]:
    """Return what makes a PNG with these texts."""

    def make(path: Path) -> None:
        info = PngInfo()
        for key, text in texts.items():
            info.add_text(key, text)
        Image.new("RGB", (8, 8)).save(path, "PNG", pnginfo=info)

    return make


def cut(count: int, **texts: str) -> Callable[[Path], None]:
    """Return what makes a PNG of which only so many bytes are left."""

    def make(path: Path) -> None:
        png(**texts)(path)
        path.write_bytes(path.read_bytes()[:count])

    return make


def jpeg(path: Path) -> None:
    Image.new("RGB", (8, 8)).save(path, "JPEG")


def long_text(path: Path) -> None:
    data = b"parameters\0" + b"x" * (2**24 + 1)
    head = struct.pack(">I", len(data)) + b"tEXt" + data
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + struct.pack(">I", zlib.crc32(b"tEXt" + data)))


def nodes(**changed: object) -> str:
    return json.dumps({"1": {"class_type": "LoadImage", "inputs": changed}})


SAMPLER = {"steps": 4, "cfg": 3, "sampler_name": "euler", "seed": 1}
DEEP = "[" * 100_000


@table(
    Case("missing", "import a.png", says=("'a.png' cannot be read", "no such file")),
    Case("a-folder", "import .", says=("'.' is a folder",)),
    Case("no-name", "import ''", says=("'' is no name", "standard input")),
    Case("empty", "import a.png", files={"a.png": b""}, says=("no line of parameters",)),
    Case("no-parameters", "import a.png", files={"a.png": png()}, says=("'a.png' has no parameters", "remove them")),
    Case("other-texts", "import a.png", files={"a.png": png(Author="me")}, says=("its texts are Author",)),
    Case("jpeg-without", "import a.jpg", files={"a.jpg": jpeg}, says=("has no parameters",)),
    Case("cut-before-its-text", "import a.png", files={"a.png": cut(40, parameters=TEXT)}, says=("has no parameters",)),
    Case("cut-jpeg", "import a.jpg", files={"a.jpg": b"\xff\xd8\xff\xe0\0"}, says=("'a.jpg'",)),
    Case("a-video", "import a.mp4", files={"a.mp4": b"\0\0\0\x18ftypisom" + b"\0" * 99}, says=("no picture that is",)),
    Case("a-zip", "import a.zip", files={"a.zip": b"PK\x03\x04"}, says=("'a.zip' is no picture",)),
    Case("binary", "import a.bin", files={"a.bin": bytes(range(256))}, says=("no text either",)),
    Case("a-large-file", "import a.bin", files={"a.bin": b"x" * (2**20 + 1)}, says=("too large", "1 MiB")),
    Case("a-long-text", "import a.png", files={"a.png": long_text}, says=("16 MiB",)),
    Case("words", "import a.txt", files={"a.txt": "a red disc"}, says=("no line of parameters", "Steps: 20")),
    Case("no-prompt", "import a.txt", files={"a.txt": TEXT.partition("\n")[2]}, says=("has no prompt",)),
    Case("a-long-prompt", "import a.txt", files={"a.txt": f"{'x' * 5000}\n{TEXT}"}, says=("prompt", "4000")),
    Case("not-json", "import a.png", files={"a.png": png(prompt="{")}, says=("graph of ComfyUI", "JSON")),
    Case("nan", "import a.png", files={"a.png": png(prompt='{"1": NaN}')}, says=("graph of ComfyUI", "JSON")),
    Case("a-list", "import a.png", files={"a.png": png(prompt="[1]")}, says=("graph of ComfyUI", "JSON")),
    Case("deep", "import a.png", files={"a.png": png(prompt=DEEP)}, says=("graph of ComfyUI", "JSON")),
    Case("no-nodes", "import a.png", files={"a.png": png(prompt="{}")}, says=("it has 0 nodes",)),
    Case("no-sampler", "import a.png", files={"a.png": png(prompt=nodes())}, says=("no sampler", "it has LoadImage")),
    Case("no-text", "import a.png", files={"a.png": png(prompt=nodes(**SAMPLER))}, says=("has no prompt",)),
    Case("invoke-not-json", "import a.png", files={"a.png": png(invokeai_metadata="{")}, says=("not JSON",)),
    Case("invoke-list", "import a.png", files={"a.png": png(invokeai_metadata="[]")}, says=("no mapping",)),
    Case("invoke-deep", "import a.png", files={"a.png": png(invokeai_metadata=DEEP)}, says=("not JSON",)),
    Case("invoke-2", "import a.png", files={"a.png": png(**{"sd-metadata": "{}"})}, says=("`image`",)),
    Case("invoke-quote", "import a.png", files={"a.png": png(Dream='"a')}, says=("quote",)),
    Case("invoke-nothing", "import a.png", files={"a.png": png(Dream=" ")}, says=("is empty",)),
    Case("ours-damaged", "import a.png", files={"a.png": png(freescale='{"spec": 3}')}, says=("holds no spec",)),
    Case("ours-without", "import a.png", files={"a.png": png(freescale='{"spec": {}}')}, says=("holds no spec",)),
    Case("swarm", "import a.png", files={"a.png": png(parameters='{"sui_image_params": {}}')}, says=("SwarmUI",)),
    Case("novelai", "import a.png", files={"a.png": png(Software="NovelAI", Comment="{}")}, says=("NovelAI",)),
    Case("out-suffix", "import a.txt --out a.json", files={"a.txt": TEXT}, says=("a.json", "'a.yaml' would work")),
    Case(
        "out-exists", "import a.txt --out a.yaml", files={"a.txt": TEXT, "a.yaml": "x"}, says=("exists", "--overwrite")
    ),
    Case(
        "damaged-links",
        "import a.txt",
        files={"a.txt": f"{TEXT}, VAE: v", "home/linked-folders.json": "{"},
        says=("linked-folders.json", "link the folders again"),
    ),
    Case("link-nothing", "models add none", says=("'none' does not exist",)),
    Case("link-a-file", "models add a.txt", files={"a.txt": "x"}, says=("'a.txt' is a file",)),
    Case("link-the-home", "models add home", files={"home/a": "x"}, says=("home",)),
    Case(
        "link-empty-paths",
        "models add extra_model_paths.yaml",
        files={"extra_model_paths.yaml": "a: {}\n"},
        says=("names no folder of models", "checkpoints"),
    ),
    Case("unlink-nothing", "models remove none", says=("no folder is linked",)),
    Case("another-word", "models list", says=("'list' is not one of add, remove",)),
)
def test_what_is_refused(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, tmp_path, monkeypatch)


@table(
    Case("out", "import a.png --out made/a.yaml", makes=("made/a.yaml",), says=("not carried over: ENSD: 31337",)),
    Case("overwrite", "import a.png --out a.yaml --overwrite", files={"a.yaml": "x"}, makes=("a.yaml",)),
    Case("to-the-terminal", "import a.png", says=('prompt: "a red disc"', "seed: 7", 'name: "shapes"')),
    Case("for-a-script", "import a.png --json", says=('"program": "A1111"', '"ENSD": "31337"')),
    Case("texts-of-a-cut-picture", "import b.png", files={"b.png": cut(-12, parameters=TEXT)}, says=("seed: 7",)),
)
def test_what_is_written(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"a.png": png(parameters=TEXT), **case.files}
    check(Case(**{**vars(case), "files": files, "code": 0}), tmp_path, monkeypatch)


def test_a_script_reads_one_object_and_a_person_the_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(Case("json", "", files={"a.png": png(parameters=TEXT)}), tmp_path, monkeypatch)
    said = call(tmp_path, "import a.png --json --out a.yaml")
    told = json.loads(said.out)
    assert told["spec"] == (tmp_path / "a.yaml").read_text()
    assert [(each["kind"], each["name"]) for each in told["files"]] == [("model", "shapes")]
    assert "found: model shapes is" in said.err
    assert said.err.splitlines()[-1] == "a.yaml: freescale plan a.yaml"


@pytest.mark.parametrize(
    "text",
    [
        "a (red:1.2) disc\nNegative prompt: blurry\nSteps: 4, Sampler: DPM++ 2M Karras, CFG scale: 3, Seed: 7, "
        "Size: 128x128, Model: shapes, Emphasis: No norm, Hires upscale: 2",
        "a red disc\nSteps: 4, Sampler: PLMS, Schedule type: SGM Uniform, CFG scale: 3, Seed: 7, Size: 128x130",
    ],
)
def test_what_is_imported_can_be_planned(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(Case("plan", "", files={"a.png": png(parameters=text)}), tmp_path, monkeypatch)
    assert call(tmp_path, "import a.png --out a.yaml").code == 0
    said = call(tmp_path, "plan a.yaml")
    assert said.code == 0, said.err
    assert "128x128" in said.out
