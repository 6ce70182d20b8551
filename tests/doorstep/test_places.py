"""Folders that are none, homes that cannot be, `~`, the hub's cache, time zones, and remarks on prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.models.folder import EMBEDDED
from tests.doorstep.harness import Case, File, check, table

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

SMALL = "--size 128x128 --steps 2 --method direct"
FILE = {"f": "a red disc\n"}
SPEC = "prompt: a red disc\nwidth: 128\nheight: 128\nsteps: 2\nmethod: {name: direct}\n"


def model(path: Path) -> None:
    """Link the embedded model to a path."""
    path.symlink_to(EMBEDDED, target_is_directory=True)


@table(
    Case("a-file", "runs", env={"FREESCALE_HOME": "f"}, files=FILE, says=("FREESCALE_HOME: 'f' is not a folder",)),
    Case("in-a-file", "models", env={"FREESCALE_HOME": "f/a/b"}, files=FILE, says=("f' is not a folder",)),
    Case("option-is-a-file", f"render x {SMALL} --home f", files=FILE, says=("home: 'f' is not a folder",)),
    Case("plan-in-a-file", f"plan x {SMALL} --home f/g", files=FILE, says=("f' is not a folder",)),
    Case("pause-in-a-file", "pause --home f", files=FILE, says=("home: 'f' is not a folder",)),
    Case("prune-in-a-file", "prune --home f", files=FILE, says=("home: 'f' is not a folder",)),
    Case("doctor-in-a-file", "doctor --home f", files=FILE, says=("home: 'f' is not a folder",)),
    Case(
        "not-to-be-made",
        f"render x {SMALL} --home /proc/x",
        says=("home: '/proc/x' cannot be written to", "name another"),
    ),
    Case("not-to-be-paused", "pause --home /proc/x", says=("home: '/proc/x' cannot be written to",)),
    Case("of-nobody", "runs", env={"FREESCALE_HOME": "~nobody99/x"}, says=("'~nobody99/x' names no user",)),
    Case("option-of-nobody", "runs --home=~nobody99/x", says=("'~nobody99/x' names no user",)),
    Case("right-tilde", "pause", env={"FREESCALE_HOME": "~/h", "HOME": "{folder}"}, code=0, makes=("h/paused",)),
    Case("right-option-tilde", "pause --home=~/h", env={"HOME": "{folder}"}, code=0, makes=("h/paused",)),
    Case("right-new", "pause --home a/b/c", code=0, makes=("a/b/c/paused",)),
    Case("right-empty-is-unset", "runs", env={"FREESCALE_HOME": "", "XDG_DATA_HOME": "{folder}"}, code=0),
)
def test_homes(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, tmp_path, monkeypatch)


@table(
    Case("jobs", "batch nowhere", says=("jobs: nowhere does not exist",)),
    Case(
        "batch-out", "batch j.txt --size 128x128 --out f", files={**FILE, "j.txt": "x\n"}, says=("out: 'f' is not a",)
    ),
    Case(
        "batch-out-in-a-file", "batch j.txt --size 128x128 --out f/g", files={**FILE, "j.txt": "x\n"}, says=("f' is",)
    ),
    Case("compare-out", "compare --size 128x128 --out f", files=FILE, says=("out: 'f' is not a folder",)),
    Case("compare-out-in-a-file", "compare --size 128x128 --out f/g", files=FILE, says=("f' is not a folder",)),
    Case("evaluate-out", "evaluate --size 128x128 --count 2 --out f/g", files=FILE, says=("f' is not a folder",)),
    Case("reference", "evaluate --reference nowhere", says=("reference.folder: 'nowhere' is not a folder",)),
    Case("reference-is-a-file", "evaluate --reference f", files=FILE, says=("reference.folder: 'f' is not a folder",)),
    Case("readings", "evaluate --count 2 --readings d", files={"d/x": ""}, says=("readings: 'd' is a folder",)),
    Case("prompts", "compare --prompts nowhere", says=("prompts: nowhere does not exist",)),
    Case("prompts-is-a-folder", "compare --prompts d", files={"d/x": ""}, says=("d cannot be read: is a directory",)),
    Case("spec-is-a-folder", "compare d", files={"d/x": ""}, says=("is a folder",)),
    Case("input-root", f"plan x {SMALL} --input-root nowhere", says=("input_root: 'nowhere' is not a folder",)),
    Case("input-root-is-a-file", f"plan x {SMALL} --input-root f", files=FILE, says=("input_root: 'f' is not a",)),
    Case("study", "study make nowhere --out o", says=("nowhere/comparison.json does not exist", "freescale compare")),
    Case("study-of-a-file", "study make f --out o", files=FILE, says=("cannot be read: not a directory",)),
    Case("tally", "study tally nowhere f", files=FILE, says=("key: nowhere cannot be read: no such file",)),
    Case("tally-of-a-folder", "study tally d d", files={"d/x": ""}, says=("key: d cannot be read: is a directory",)),
    Case("convert", "convert inception nowhere", says=("file: 'nowhere' is not a file",)),
    Case("tokenizer", "convert videocrafter2 f o --tokenizer nowhere", files=FILE, says=("'nowhere' does not exist",)),
)
def test_folders(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, tmp_path, monkeypatch)


HOME = {"HOME": "{folder}"}


@table(
    Case("spec", "plan '~/s.yaml'", env=HOME, files={"s.yaml": SPEC}, code=0, says=("a-red-disc-0",)),
    Case("missing-spec", "plan '~/none.yaml'", env=HOME, says=("none.yaml' does not exist",), silent_on=("~",)),
    Case("jobs", "batch '~/none.txt'", env=HOME, says=("none.txt does not exist",), silent_on=("~",)),
    Case("model", f"plan x {SMALL} --model '~/m'", env=HOME, files={"m": model}, code=0, says=("base_denoise",)),
    Case("model-of-nobody", "plan x --model '~nobody99/m'", says=("model: '~nobody99/m' is not on disk",)),
    Case("image-of-nobody", "plan x --image '~nobody99/a.png'", says=("~nobody99/a.png' names no user",)),
    Case("image", "plan x --image '~/a.png'", env=HOME, says=("a.png' is not a file",), silent_on=("~",)),
    Case("mask", "plan x --mask '~/a.png:2'", env=HOME, says=("a.png' is not a file",), silent_on=("~",)),
    Case("prompts", "compare --prompts '~/p.txt'", env=HOME, says=("p.txt does not exist",), silent_on=("~",)),
    Case("reference", "evaluate --reference '~/r'", env=HOME, says=("/r' is not a folder",), silent_on=("~",)),
    Case("out", "compare --size 128x128 --out '~/f'", env=HOME, files=FILE, says=("f' is not a folder",)),
)
def test_the_home_folder_of_the_user(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, tmp_path, monkeypatch)


def hub(folder: str) -> dict[str, File]:
    """A hub's cache in `folder` with one model, of which `main` and `v1` are commits."""
    root = f"{folder}/models--some--shapes"
    return {f"{root}/refs/main": "abc", f"{root}/refs/v1": "abc", f"{root}/snapshots/abc": model}


PLAN = f"plan x {SMALL} --model some/shapes"
UNSET = dict.fromkeys(("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"))


@table(
    Case("hub-cache", PLAN, env={**UNSET, "HF_HUB_CACHE": "{folder}/c"}, files=hub("c"), code=0, says=("decode",)),
    Case("hf-home", PLAN, env={**UNSET, "HF_HOME": "{folder}/c"}, files=hub("c/hub"), code=0, says=("decode",)),
    Case(
        "xdg",
        PLAN,
        env={**UNSET, "XDG_CACHE_HOME": "{folder}/c"},
        files=hub("c/huggingface/hub"),
        code=0,
        says=("decode",),
    ),
    Case("usual", PLAN, env={**UNSET, **HOME}, files=hub(".cache/huggingface/hub"), code=0, says=("decode",)),
    Case("tilde", PLAN, env={**UNSET, **HOME, "HF_HOME": "~/c"}, files=hub("c/hub"), code=0, says=("decode",)),
    Case(
        "elsewhere", PLAN, env={**UNSET, **HOME, "HF_HOME": "{folder}/d"}, files=hub("c/hub"), says=("d/hub/models--",)
    ),
    Case(
        "a-tag",
        "plan s.yaml",
        env={**UNSET, "HF_HOME": "{folder}/c"},
        files={**hub("c/hub"), "s.yaml": SPEC + "model: {name: some/shapes, revision: v1}\n"},
        code=0,
        says=("decode",),
    ),
    Case(
        "no-such-tag",
        "plan s.yaml",
        env={**UNSET, "HF_HOME": "{folder}/c"},
        files={**hub("c/hub"), "s.yaml": SPEC + "model: {name: some/shapes, revision: v2}\n"},
        says=("snapshots/v2",),
    ),
)
def test_the_cache_of_the_hub(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, tmp_path, monkeypatch)


JOBS = {"j.txt": "a red disc\n"}


@table(
    Case("time", "batch j.txt --until 6.30", files=JOBS, says=("until: '6.30' is not HH:MM", "06:30")),
    Case("time-pm", "batch j.txt --until 6:30pm", files=JOBS, says=("18:30",)),
    Case("time-24", "batch j.txt --until 24:00", files=JOBS, says=("'24:00'", "00:00")),
    Case("zone", "batch j.txt --until 06:30 --zone Vienna", files=JOBS, says=("zone: 'Vienna'", "Europe/Vienna")),
    Case(
        "zone-case", "batch j.txt --until 06:30 --zone europe/vienna", files=JOBS, says=("write for example Europe/V",)
    ),
    Case("zone-offset", "batch j.txt --until 06:30 --zone UTC+2", files=JOBS, says=("Etc/GMT-2",)),
    Case("zone-alone", "batch j.txt --zone Europe/Vienna", files=JOBS, says=("--until, which is missing",)),
    Case(
        "at-end", "batch j.txt --until 06:30 --at-end yeild", files=JOBS, says=("'yeild' is not one of finish, yield",)
    ),
)
def test_times(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, tmp_path, monkeypatch)


@table(
    Case(
        "cut",
        f"plan 'a red disc and a blue square on a green field' {SMALL}",
        code=0,
        says=("note: the prompt has 1", "reads 14"),
    ),
    Case(
        "weights",
        f"plan '(red:1.2) disc' {SMALL}",
        code=0,
        says=("note: the prompt holds '(red:1.2)', which is no syntax",),
    ),
    Case("lora", f"plan '<lora:a:1>' {SMALL}", code=0, says=("note: the prompt holds '<lora:a:1>'",)),
    Case("break", f"plan 'disc BREAK ring' {SMALL}", code=0, says=("note: the prompt holds 'BREAK'",)),
    Case("alternation", f"plan '[red|blue]' {SMALL}", code=0, says=("note: the prompt holds '[red|blue]'",)),
    Case("blank", f"plan ' ' {SMALL}", code=0, says=("note: the prompt is blank",)),
    Case(
        "negative",
        f"plan disc {SMALL} --negative-prompt '((bad))'",
        code=0,
        says=("note: the negative prompt holds '((bad))'",),
    ),
    Case("no-effect", f"plan disc {SMALL} --negative-prompt b --guidance-scale 1", code=0, says=("has no effect",)),
    Case("right", f"plan 'a red disc' {SMALL}", code=0, silent_on=("note:",)),
    Case("right-brackets", f"plan 'disc (red)' {SMALL}", code=0, silent_on=("note:",)),
)
def test_remarks_on_prompts(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, tmp_path, monkeypatch)
