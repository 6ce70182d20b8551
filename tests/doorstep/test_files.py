"""Specs and jobs as files: every format and encoding, every line read or named, and what is a file and no prompt."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from flows.batch.jobs_file import read_jobs
from flows.home import Home
from tests.doorstep.harness import Case, call, check, table

if TYPE_CHECKING:
    from pathlib import Path

    from flows.batch.jobs_file import QueuedJob

SMALL = "width: 128\nheight: 128\n"
ONE = "prompt: a red disc\n" + SMALL
LARGER = "prompt: a red disc\nsize: 256x256\n"


def picture(path: Path) -> None:
    """A grey picture of 128x128 pixels."""
    Image.new("L", (128, 128), 128).save(path)


def spec(name: str, text: str | bytes, *says: str, words: str = "", **more: Any) -> Case:
    """A spec file that is refused, or planned with `code=0`; its name has the ending of the file."""
    file = f"spec.{name.rpartition('.')[2]}"
    return Case(name, f"plan {file} {words}", says, files={file: text, **more.pop("files", {})}, **more)


def jobs(name: str, text: str | bytes, *says: str, words: str = "", lines: int = 2, **more: Any) -> Case:
    """A jobs file that is refused; its name has the ending of the file."""
    file = f"jobs.{name.rpartition('.')[2]}"
    files = {file: text, **more.pop("files", {})}
    return Case(name, f"batch {file} {words}", says, files=files, lines=lines, **more)


def given(name: str, words: str, *says: str, **files: Any) -> Case:
    """What stands for a prompt and is none."""
    return Case(name, f"render {words}", says, files=files.get("files", {}))


@table(
    spec("unknown.yaml", ONE + "\n\ncolour: red\n", "spec.yaml:6: colour: unknown field"),
    spec("unknown-json.json", '{"prompt": "x",\n\n "colour": 1}', "spec.json:3: colour: unknown field"),
    spec("unknown-inside.yaml", ONE + "method:\n  name: direct\n  colour: 1\n", "spec.yaml:6: method", "colour"),
    spec("unknown-in-a-list.yaml", ONE + "redo:\n- stage: renoise\n  level: 1\n  sed: 3\n", "spec.yaml:7: redo.0.sed"),
    spec("value.yaml", "prompt: x\nsteps: many\n", "spec.yaml:2: steps", "'many'"),
    spec("size-off-the-grid.yaml", "prompt: x\nsize: 1001x512\n", "spec.yaml:2: width", "1000 and 1008"),
    spec("size-is-no-size.yaml", "prompt: x\nsize: 512\n", "spec.yaml:2: size: '512'", "512x512"),
    spec("two-sizes.yaml", "prompt: x\nsize: 512x512\nwidth: 256\n", "spec.yaml:2: size", "width 256"),
    spec("no-prompt.yaml", SMALL, "spec.yaml:1: prompt"),
    spec("method-in-a-file.yaml", "prompt: x\nmethod: freescal\n", "spec.yaml:2: method", "freescal"),
    spec("model-in-a-file.yaml", "prompt: x\n\nmodel: nowhere\n", "spec.yaml:3: model: 'nowhere'"),
    spec("option-over-a-file.yaml", "prompt: x\nwidth: 64\n", "100", words="--size 100x64", silent_on=("spec.yaml:",)),
    spec("key-twice.yaml", "prompt: x\nseed: 1\nseed: 2\n", "spec.yaml:3", "'seed'", "line 2"),
    spec("key-twice-json.json", '{"prompt": "x",\n"seed": 1,\n"seed": 2}', "spec.json:3", "'seed'", "line 2"),
    spec("key-twice-inside.yaml", ONE + "method: {name: direct, name: freescale}\n", "spec.yaml:4", "'name'"),
    spec("tab.yaml", "prompt: x\nmethod:\n\tname: direct\n", "spec.yaml:3", "indent with spaces"),
    spec("colon.yaml", "prompt: a disc: red\n", "spec.yaml:1", "quote a text"),
    spec("open-quote.yaml", 'prompt: "x\nseed: 3\n', "spec.yaml:", "not closed", "line 1"),
    spec("open-bracket.yaml", "prompt: x\nmethod: {name: direct\nseed: 3\n", "spec.yaml:3", "from line 2"),
    spec("tag.yaml", "prompt: !!python/object:os.system x\n", "spec.yaml:1", "python/object"),
    spec("tag-of-a-number.yaml", "prompt: x\nseed: !!int x\n", "spec.yaml:2", "int"),
    spec("list-as-a-key.yaml", "prompt: x\n? [a]\n: b\n", "spec.yaml:2", "as a key"),
    spec("number-as-a-key.yaml", "prompt: x\n1: 2\n", "spec.yaml:", "1"),
    spec("method-is-a-list.yaml", "prompt: x\nmethod: {name: [direct]}\n", "spec.yaml:2: method", "direct"),
    spec("alias-of-itself.yaml", "prompt: x\nredo: &a [*a]\n", "spec.yaml:2", "alias"),
    Case(
        "prompts-in-cp1252", "compare --prompts p.txt", ("p.txt, line 2", "0xE9", "UTF-8"),
        files={"p.txt": "x\ncaf\xe9\n".encode("cp1252")},
    ),
    spec("two-documents.yaml", ONE + "---\n" + ONE, "spec.yaml:4", "one list"),
    spec("control-character.yaml", "prompt: x\nseed: \x07\n", "spec.yaml:2", "U+0007"),
    spec("comma.json", '{"prompt": "x",}', "spec.json:1", "not JSON"),
    spec("single-quotes.json", "{'prompt': 'x'}", "spec.json:1", "not JSON"),
    spec("two-values.json", '{"prompt": "x"}\n{"prompt": "y"}', "spec.json:2", ".jsonl"),
    spec("deep.json", '{"prompt": ' + "[" * 100_000 + "]" * 100_000 + "}", "spec.json"),
    spec("long-number.json", '{"prompt": "x", "seed": ' + "9" * 5000 + "}", "spec.json", "digits"),
    spec("infinite.json", '{"prompt": "x", "guidance_scale": Infinity}', "spec.json:1: guidance_scale"),
    spec("half-a-pair.json", '{"prompt": "\\ud83d"}', "spec.json:1: prompt"),
    spec("empty.yaml", "", "spec.yaml", "empty"),
    spec("words.yaml", "a red disc\n", "spec.yaml", "mapping of field names"),
    spec("list.yaml", "- a red disc\n", "freescale batch spec.yaml"),
    spec("jobs-in-a-spec.yaml", "jobs: [a red disc]\n", "freescale batch spec.yaml"),
    spec("cp1252.yaml", "prompt: a café\n".encode("cp1252"), "spec.yaml:1", "0xE9", "UTF-8", "café"),
    spec("utf16-unmarked.yaml", "prompt: x\n".encode("utf-16-le"), "spec.yaml:1", "UTF-16"),
    spec("archive.yaml", b"PK\x03\x04 and more", "spec.yaml", "zip archive"),
    spec("picture-named-yaml.yaml", b"\x89PNG\r\n\x1a\n\xff", "spec.yaml:1", "0x89"),
    spec("too-large.yaml", "# " + "x" * 2**20, "spec.yaml", "1 MiB"),
    spec("picture-elsewhere.yaml", ONE + "image: ../x.png\n", "spec.yaml:4: image", "--input-root"),
    spec("mask-elsewhere.yaml", ONE + "regions:\n- {mask: /x.png, detail_scale: 1}\n", "spec.yaml:5", "--input-root"),
    Case(
        "picture-of-the-working-folder", "plan in/spec.yaml", ("in/spec.yaml:4: image", "'../base.png'"),
        files={"in/spec.yaml": ONE + "image: base.png\n", "base.png": picture},
    ),
    Case("spec-not-there", "plan demo.yml", ("'demo.yml' does not exist", "'demo.yaml'"), files={"demo.yaml": ONE}),
    Case("compare-a-key-twice", "compare c.yaml", ("c.yaml:2", "'count'"), files={"c.yaml": "count: 1\ncount: 2\n"}),
    Case("compare-unknown", "compare c.yaml", ("c.yaml:2: colour",), files={"c.yaml": "count: 1\ncolour: x\n"}),
    Case("compare-a-table", "compare c.csv", ("c.csv", ".yaml"), files={"c.csv": "prompt\nx\n"}),
    Case(
        "evaluate-value", "evaluate e.yaml --plan", ("e.yaml:3: crops.count",),
        files={"e.yaml": "prompts: shapes\ncrops:\n  count: 0\n"},
    ),
    Case(
        "prompts-beside-the-file", "compare in/c.yaml", ("in/prompts.txt does not exist",),
        files={"in/c.yaml": "prompts: prompts.txt\n", "prompts.txt": "x\n"},
    ),
)  # fmt: skip
def test_a_spec_that_is_wrong(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, tmp_path, monkeypatch)


@table(
    given("spec-in-capitals-not-there", "SPEC.YAML", "'SPEC.YAML' does not exist"),
    given("jobs-csv", "jobs.csv", "freescale batch jobs.csv", files={"jobs.csv": "prompt\nx\n"}),
    given("jobs-not-there", "tonight.JSONL", "freescale batch tonight.JSONL", "does not exist"),
    given("jobs-txt", "prompts.txt", "freescale batch prompts.txt"),
    given("picture", "base.png", "--image base.png", files={"base.png": picture}),
    given("picture-in-capitals", "'my base.JPG'", "is a picture"),
    given("weights", "sdxl.safetensors", "--model"),
    given("table-of-excel", "jobs.xlsx", "'jobs.xlsx' does not exist"),
    given("typo", "demo.ymal", "'demo.ymal' does not exist", ".yaml"),
    given("path", "examples/demo", "'examples/demo'", files={"examples/demo": "x"}),
    given("path-of-nothing", "./demo", "'./demo' does not exist"),
    given("home-path", "~/demo", "'~/demo'"),
    given("windows-path", "'C:\\\\pictures\\\\x'", "does not exist"),
    given("folder", "jobs", "'jobs' is a folder", files={"jobs/a.yaml": ONE}),
    given("file-without-an-ending", "notes", "'notes' is a file", files={"notes": "x"}),
    given("address", "https://example.com/x.png", "https://example.com/x.png"),
    given("spec-with-blanks-not-there", "'my demo.yaml'", "'my demo.yaml' does not exist"),
)
def test_a_file_is_no_prompt(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, tmp_path, monkeypatch)


@table(
    Case("capitals", "plan SPEC.YAML", ("128x128",), 0, {"SPEC.YAML": ONE}),
    Case("words-with-dots", "plan 'a disc. St. John, v2.0' --size 128x128", ("128x128",), 0),
    Case("slashes-in-words", "plan 'day / night' --size 128x128", ("128x128",), 0),
    Case("bom.json", "plan s.json", ("128x128",), 0, {"s.json": b'\xef\xbb\xbf{"prompt":\t"x",\t"size": "128x128"}'}),
    Case("utf16", "plan s.yaml", ("128x128",), 0, {"s.yaml": ONE.encode("utf-16")}),
    Case("crlf", "plan s.yaml", ("128x128",), 0, {"s.yaml": ONE.replace("\n", "\r\n")}),
    Case("fields-of-a-job", "plan s.yaml", ("192x128", "red-disc-7-"), 0, {
        "s.yaml": "prompt: red disc\nsize: 192x128\nmodel: shapes\nmethod: direct\nname: disc\npriority: 3\nseed: 007\n"
    }),
    Case("picture-beside-the-file", "plan in/s.yaml", ("128x128",), 0, {
        "in/s.yaml": LARGER + "image: base.png\n", "in/base.png": picture
    }),
    Case("picture-elsewhere-allowed", "plan in/s.yaml --input-root .", ("128x128",), 0, {
        "in/s.yaml": LARGER + "image: ../base.png\n", "base.png": picture
    }),
    Case("mask-typed", "plan in/s.yaml --mask m.png:1", ("128x128",), 0, {"in/s.yaml": ONE, "m.png": picture}),
    Case("random-seed", "plan x --size 128x128 --seed -1", ("note: the seed -1 is ",), 0),
    Case("random-seed-in-a-file", "plan s.yaml", ("note: the seed -1 is ",), 0, {"s.yaml": ONE + "seed: -1\n"}),
)  # fmt: skip
def test_a_spec_is_planned(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, tmp_path, monkeypatch)


@table(
    jobs("text-after-a-quote.csv", 'prompt,seed\na,1\n"b"x,2\nc,bad\n', "jobs.csv:3", "csv:4: seed", "2 of 3", lines=3),
    jobs("open-quote.csv", 'prompt,seed\na,1\n"b,2\nc,bad\n', "jobs.csv:3", "never closed", "csv:4: seed", lines=3),
    jobs("quote-in-a-text.csv", 'prompt,seed\n"12" tall",1\nc,bad\n', "jobs.csv:2", "as two", "jobs.csv:3", lines=3),
    jobs("rest-of-a-broken-row.csv", 'prompt,seed\n"a\nb"x,3\n', "jobs.csv:2", "jobs.csv:3", "row before", lines=3),
    jobs("line-of-a-long-row.csv", 'prompt,seed\n"a\nb",1\n"c\nd",bad\n', "jobs.csv:4: seed"),
    jobs("cell-too-many.csv", "prompt,seed\nx, y,2\n", "jobs.csv:2: more cells than the 2 columns"),
    jobs("column-twice.csv", "prompt,seed,Seed\nx,1,2\n", "jobs.csv:1", "'seed' is there twice"),
    jobs("column-without-a-name.csv", "prompt,\nx,1\n", "jobs.csv:2", "column 2"),
    jobs("no-prompt.csv", "text,seed\nx,1\n", "jobs.csv:1", "`prompt`", "text, seed"),
    jobs("unknown-column.csv", "prompt,colour\nx,red\n", "jobs.csv:2: colour: unknown field"),
    jobs("empty.csv", "", "jobs.csv", "empty"),
    jobs("cp1252.csv", "prompt,seed\nx,1\ncafé,2\n".encode("cp1252"), "jobs.csv:3", "0xE9", "café,2"),
    jobs("spreadsheet.csv", b"PK\x03\x04\x14\x00", "jobs.csv", "spreadsheet"),
    jobs("decimal-comma.csv", "prompt;method.detail_scale\nx;0,5\n", "jobs.csv:2: method", "detail_scale", "0,5"),
    jobs("priority.csv", "prompt,priority\nx,high\n", "jobs.csv:2: priority: 'high'"),
    jobs("bracket.csv", 'prompt,cascade\nx,"[[1,2]"\n', "jobs.csv:2: cascade"),
    jobs("method-and-its-number.csv", "prompt,method,method.detail_scale\nx,[1],2\n", "jobs.csv:2: method"),
    jobs("jobs-twice.yaml", "jobs: [x]\ngrid: {prompt: [y]}\njobs: [z]\n", "jobs.yaml:3", "'jobs'", "line 1"),
    jobs("field-twice.yaml", "- {prompt: x, seed: 1, seed: 2}\n", "jobs.yaml:1", "'seed'"),
    jobs("field-twice.jsonl", '{"prompt": "x"}\n{"prompt": "x", "seed": 1, "seed": 2}\n', "jobs.jsonl:2", "'seed'"),
    jobs("line-of-a-field.yaml", "- prompt: x\n  seed: 1\n  steps: many\n- y\n", "jobs.yaml:3: steps"),
    jobs("line-of-a-default.yaml", "defaults:\n  seed: 1\n  steps: many\njobs: [y]\n", "jobs.yaml:3: steps"),
    jobs("line-in-a-grid.yaml", "grid:\n  prompt: [x]\n  steps: [many]\n", "jobs.yaml:3: steps"),
    jobs("line-in.json", '[{"prompt": "x"},\n {"prompt": "y",\n  "steps": "many"}]', "jobs.json:3: steps"),
    jobs("defaults-alone.yaml", "defaults: {seed: 1}\n", "jobs.yaml", "add `jobs` or `grid`"),
    jobs("empty-grid.yaml", "defaults: {prompt: x}\ngrid: {}\n", "jobs.yaml:2", "`grid`"),
    jobs("comparison.yaml", "methods: [direct]\n", "jobs.yaml", "methods"),
    jobs("second-name.yaml", "- {prompt: x, name: a}\n- {prompt: x, name: b}\n", "jobs.yaml:2: name: 'b'", "'a'"),
    jobs("two-sizes.yaml", "- {prompt: x, size: 64x64, height: 64}\n", "jobs.yaml:1: size"),
    jobs("list-in-a-line.jsonl", '[{"prompt": "x"}]\n', "jobs.jsonl:1", "neither a prompt nor a mapping"),
    jobs("lines-in.json", '{"prompt": "x"}\n{"prompt": "y"}\n', "jobs.json:2", ".jsonl"),
    jobs("number.yaml", "- 7\n", "jobs.yaml:1: 7 is neither"),
    jobs("picture-elsewhere.yaml", "- {prompt: x, image: ../x.png}\n", "jobs.yaml:1: image", "--input-root"),
    jobs("blank.txt", "\n# nothing\n", "holds no job", lines=1),
    jobs("bell.txt", "x\n\x07\n", "jobs.txt:2: prompt"),
    Case("format", "batch jobs.toml", ("jobs.toml", ".tsv"), files={"jobs.toml": "x"}),
    Case("folder-with-a-table", "batch in", ("x.xlsx: does",), files={"in/a.txt": "x", "in/x.xlsx": b"PK"}, lines=2),
    Case("folder-in-a-folder", "batch in", ("sub: is",), files={"in/a.txt": "x", "in/sub/b.CSV": "prompt\ny"}, lines=2),
    Case(
        "folder-with-a-link-to-nothing", "batch in", ("b.yml: is a link to nothing",), lines=2,
        files={"in/a.txt": "x", "in/b.yml": lambda path: path.symlink_to("nothing")},
    ),
    Case("folder-without-jobs", "batch in", ("no file in in ends in",), files={"in/a.png": picture}),
)  # fmt: skip
def test_a_row_is_read_or_named(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, tmp_path, monkeypatch)


READ: dict[str, tuple[str | bytes, list[dict[str, Any]]]] = {
    "capitals.CSV": ("Prompt, SEED ,Negative Prompt\na,1,b\n", [{"prompt": "a", "seed": 1, "negative_prompt": "b"}]),
    "semicolons.csv": ("prompt;seed\na, b;1\n", [{"prompt": "a, b", "seed": 1}]),
    "said.csv": ("sep=;\r\nprompt;seed\r\na;1\r\n", [{"prompt": "a", "seed": 1}]),
    "tabs.csv": ("prompt\tseed\na\t1\n", [{"prompt": "a", "seed": 1}]),
    "tabs.tsv": ("seed\tprompt\n1\ta, b\n", [{"prompt": "a, b", "seed": 1}]),
    "utf16.csv": ("prompt;seed\né;1\n".encode("utf-16"), [{"prompt": "é", "seed": 1}]),
    "bom.csv": (b"\xef\xbb\xbfprompt,seed\na,1\n", [{"prompt": "a", "seed": 1}]),
    "commas.csv": ("prompt,seed\n,\na,1\n , \n,,,\nb,\n\n", [{"prompt": "a", "seed": 1}, {"prompt": "b", "seed": 0}]),
    "as-written.csv": (
        "prompt,negative_prompt,seed,name\n0123,no,0123,007\n12:30:45,null,12,1e5\n",
        [
            {"prompt": "0123", "negative_prompt": "no", "seed": 123, "name": "007"},
            {"prompt": "12:30:45", "negative_prompt": "null", "seed": 12, "name": "1e5"},
        ],
    ),
    "methods.csv": (
        'prompt,method.detail_scale,method,cascade,size\na,1.5,freescale,,\nb,,direct,"64x64,128x128",128x128\n',
        [{"method": ("freescale", 1.5)}, {"method": ("direct", None), "cascade": ((64, 64), (128, 128))}],
    ),
    "broken.csv": ('prompt,seed\na,1\n"b"x,2\nc,3\n', [{"prompt": "a"}, {"prompt": "c"}]),
    "open.csv": ('prompt,seed\na,1\n"b,2\nc,3\nd,4\n', [{"prompt": "a"}, {"prompt": "c"}, {"prompt": "d"}]),
    "long.csv": ('prompt,seed\n"a\nb",1\n', [{"prompt": "a\nb"}]),
    "tabs.json": ('[\n\t{"prompt":\t"a"}\n]', [{"prompt": "a"}]),
    "pairs.json": ('["\\ud83d\\ude00", "\\u00e9"]', [{"prompt": "\U0001f600"}, {"prompt": "é"}]),
    "separators.jsonl": (
        '{"prompt": "a\u2028b"}\n\n{"prompt": "c\x85d"}\n',
        [{"prompt": "a\u2028b"}, {"prompt": "c\x85d"}],
    ),
    "bom.jsonl": (b'\xef\xbb\xbf{"prompt": "a"}\n', [{"prompt": "a"}]),
    "more.ndjson": ('{"prompt": "a"}', [{"prompt": "a"}]),
    "separators.txt": ("a\u2028b\nc\n", [{"prompt": "a\u2028b"}, {"prompt": "c"}]),
    "old-mac.txt": ("a\rb\r", [{"prompt": "a"}, {"prompt": "b"}]),
    "truth.yml": (
        "- {prompt: no, negative_prompt: off, seed: 010}\n- {prompt: 12:30, method: {fusion: no}}\n- 2024-01-01\n",
        [{"prompt": "no", "negative_prompt": "off", "seed": 10}, {"prompt": "12:30"}, {"prompt": "2024-01-01"}],
    ),
    "merged.yaml": (
        "defaults: &d {seed: 1}\njobs:\n- {<<: *d, prompt: a}\n- {<<: *d, prompt: b, seed: 2}\n",
        [{"prompt": "a", "seed": 1}, {"prompt": "b", "seed": 2}],
    ),
    "sides.yaml": (
        "defaults: {size: 256x128}\njobs:\n- {prompt: a, width: 128}\n- {prompt: b, size: 64x64}\n",
        [{"width": 128, "height": 128}, {"width": 64, "height": 64}],
    ),
}


def field_of(queued: QueuedJob, name: str) -> Any:
    if name == "name":
        return queued.name
    value = getattr(queued.job.spec, name)
    return (value.name, getattr(value, "detail_scale", None)) if name == "method" else value


@pytest.mark.parametrize("name", READ)
def test_a_jobs_file_is_read(name: str, tmp_path: Path) -> None:
    text, expected = READ[name]
    (tmp_path / name).write_bytes(text.encode() if isinstance(text, str) else text)
    found = read_jobs(tmp_path / name, Home(tmp_path / "home")).jobs
    assert [
        {field: field_of(queued, field) for field in each} for queued, each in zip(found, expected, strict=True)
    ] == expected


def test_a_folder_is_read_whatever_its_files_are_called(tmp_path: Path) -> None:
    for name, text in {"A.CSV": "prompt\na\n", "b.YML": "- b\n", "c.tsv": "prompt\nc\n", "d.TXT": "d\n"}.items():
        (tmp_path / name).write_text(text)
    picture(tmp_path / "base.PNG")
    (tmp_path / ".DS_Store").write_bytes(b"\0")
    found = read_jobs(tmp_path, Home(tmp_path.parent / "home"))
    assert [queued.job.spec.prompt for queued in found.jobs] == ["a", "b", "c", "d"]
    assert found.problems == ()


def test_a_job_that_names_a_side_keeps_it_under_the_size_of_the_command(tmp_path: Path) -> None:
    (tmp_path / "jobs.yaml").write_text("- {prompt: a, width: 128, height: 64}\n- b\n")
    found = read_jobs(tmp_path / "jobs.yaml", Home(tmp_path / "home"), {"size": "256x256"})
    assert [queued.job.spec.size for queued in found.jobs] == [(64, 128), (256, 256)]


def test_random_seeds_differ_and_are_kept_where_a_file_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "jobs.yaml").write_text("grid: {prompt: [a], seed: [-1, -1]}\njobs: [{prompt: b, seed: 5}]\n")
    seeds: dict[tuple[str, str, int], list[int]] = {}
    first, again = (read_jobs(tmp_path / "jobs.yaml", Home(tmp_path / "home"), seeds=seeds).jobs for _ in range(2))
    assert [queued.job.run for queued in first] == [queued.job.run for queued in again]
    drawn = [queued.job.spec.seed for queued in first if queued.drawn]
    assert len(set(drawn)) == 2
    assert all(queued.drawn in ((queued.job.spec.seed,), ()) for queued in first)
    assert read_jobs(tmp_path / "jobs.yaml", Home(tmp_path / "home")).jobs[1].job.spec.seed not in drawn


def test_a_random_seed_is_recorded_and_a_spec_names_its_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "prompt: a red disc\nsize: 64x64\nseed: -1\nsteps: 2\nname: disc\n"
    case = Case("", "render s.yaml --threads 1 --json", ("the seed -1 is",), 0, {"s.yaml": text}, makes=("disc.png",))
    said = check(case, tmp_path, monkeypatch)
    seed = int(said.err.partition("the seed -1 is ")[2].split()[0])
    run = json.loads(said.out.splitlines()[-1])["run"]
    shown = check(Case("", f"show {run}", (f"seed {seed}:",), 0), tmp_path, monkeypatch)
    assert run in shown.out
    refused = call(tmp_path, f"render {run} --steps 3")  # a run's name is no prompt
    assert (refused.code, run in refused.err) == (2, True)
