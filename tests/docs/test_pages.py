"""README and docs/: links, paths, names and commands exist, and the reference is what the code says."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from docs.generate import ROOT, anchor, command_line, pages
from flows.cli.given import read_spec
from freescale.methods.ablations import ABLATIONS
from stages.metrics.grid import make_grid
from stages.spec import METHOD_MODELS, RenderSpec, make_spec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TOP = (
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "benchmarks/shapes/README.md",
    "benchmarks/shapes_motion/README.md",
)
PAGES = [*TOP, *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]
FOLDERS = ("freescale", "stages", "storage", "flows", "tests", "benchmarks", "examples", "docs")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
OLD_WORDS = (  # for what they no longer name; `code` is left out before
    r"\b[Cc]lips?\b(?! skip)",  # moving pictures are videos
    r"\b(?:the|these|which|every|all|no|mildest|further|next) measures?\b(?! (?:what|it|them|how))",  # metrics, savings
    r"\brungs?\b|\bladder\b",
    r"\b(?:Crew|Fleet|Orders|Ordered|Spread)\b",
    r"\bheir\b|\bDEAF\b|\bPATIENCE\b",
    r"(?<!set )(?<!sets )(?<!set-)\baside\b",
)
RIDDLES = (
    "come what may",
    "at hand",
    "never fails the night",
    "workers are busy",
    "tiles are what",
    "against other draws at the training size",
    "nothing but Python",
    "do what they say",
    "to its turn",
)


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def prose(page: str) -> str:
    """A page without code, links' targets and comments."""
    text = FENCE.sub("", text_of(page))
    return " ".join(re.sub(r"\]\([^)]*\)", "]", INLINE.sub("", text)).split())


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {anchor(re.sub(r"[^\w\- ]", "", INLINE.sub(r"\1", heading))) for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text_of(page))):
        if target.startswith("http"):
            continue
        name, _, part = target.partition("#")
        there = (ROOT / page).parent / name if name else ROOT / page
        assert there.is_file(), f"{page} links to {target}"
        if part:
            assert part in anchors(there), f"{page} links to {target}"
        if page.startswith("docs/"):
            assert (ROOT / "docs") in there.resolve().parents, f"{page} links to {target}, which is not on the site"


def named_paths(text: str) -> Iterator[str]:
    """Paths below the folders of the repository, in code and in commands."""
    for found in re.findall(rf"(?<![\w/.$~-])((?:{'|'.join(FOLDERS)})/[\w./-]*)", text):
        path = found.rstrip("./") if not found.endswith("/") else found.rstrip("/")
        if path not in ABLATIONS and path != "overnight/overnight":
            yield path


@pytest.mark.parametrize("page", PAGES)
def test_paths_exist(page: str) -> None:
    text = re.sub(r"https?://\S+", "", text_of(page))
    made = {"freescale/methods/resample.py", "freescale/methods/yours.py"}  # by the reader
    code = "\n".join([*INLINE.findall(FENCE.sub("", text)), *(body for _, body in FENCE.findall(text))])
    missing = [path for path in named_paths(code) if not (ROOT / path).exists() and path not in made]
    assert not missing


def test_code_names_pages_that_exist() -> None:
    sources = [p for folder in FOLDERS[:6] for p in (ROOT / folder).rglob("*.py")]
    named = {(p, name) for p in sources for name in re.findall(r"docs/[\w/-]+\.md", p.read_text(encoding="utf-8"))}
    assert not [(str(p), name) for p, name in named if not (ROOT / name).is_file()]


@pytest.mark.parametrize("page", PAGES)
def test_python_names_exist(page: str) -> None:
    """`freescale.methods.base.Method` and its like."""
    for name in re.findall(
        rf"(?<![\w/.])(?:{'|'.join(FOLDERS[:4])})(?:\.\w+)+", " ".join(INLINE.findall(text_of(page)))
    ):
        if name.rpartition(".")[2] in ("py", "yaml", "json"):
            continue
        parts, found = name.split("."), None
        for cut in range(len(parts), 0, -1):
            try:
                found = importlib.import_module(".".join(parts[:cut]))
            except ModuleNotFoundError:
                continue
            for part in parts[cut:]:
                found = getattr(found, part)
            break
        assert found is not None, name


def test_the_paper_map_names_what_exists() -> None:
    """`module.name` and `Class.name` in the columns `here`: a module or class of `freescale`, and a name in it."""
    texts: dict[str, str] = {}
    for path in (ROOT / "freescale").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for owner in (path.stem, path.parent.name, *re.findall(r"^class (\w+)", text, re.MULTILINE)):
            texts[owner] = texts.get(owner, "") + text
    column, checked = None, 0
    for line in text_of("docs/reference/paper_map.md").splitlines():
        cells = [part.strip() for part in line.strip("|").split("|")] if line.startswith("|") else []
        if "here" in cells:
            column = cells.index("here")
        for code in INLINE.findall(cells[column]) if cells and column is not None and column < len(cells) else ():
            if (found := re.fullmatch(r"(\w+)\.(\w+)(?:\(.*\))?", code)) and found[2] != "py":
                owner, name = found.groups()
                assert owner in texts, code
                assert re.search(rf"\b{name}\b", texts[owner]), code
                checked += 1
    assert checked > 30


# ---------------------------------------------------------------- commands


def shell_lines(page: str) -> Iterator[str]:
    """Every command in a `sh` block, continued lines joined, comments cut."""
    for language, body in FENCE.findall(text_of(page)):
        if language == "sh":
            for line in body.replace("\\\n", " ").splitlines():
                if words := shlex.join(shlex.split(line, comments=True)):
                    yield words


def arguments(line: str) -> list[str] | None:
    """The words after `freescale`, with assignments before it cut; None for another command."""
    words = shlex.split(line)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    return words[1:] if words and words[0] == "freescale" else None


def command_of(words: list[str]) -> tuple[Any, str, list[str]]:
    """The command that words name, its name, and the words left for it. Raises `LookupError`."""
    command, name, words = command_line(), "freescale", list(words)
    while words and words[0] == "--store":
        words = words[2:]
    while hasattr(command, "commands"):
        if command.invoke_without_command and (not words or words[0].startswith("-")):
            break
        if not words or words[0] not in command.commands:
            raise LookupError(f"{name} has no command {' '.join(words[:1])!r}")
        name, command = f"{name} {words[0]}", command.commands[words.pop(0)]
    return command, name, words


def unknown_options(command: Any, words: list[str]) -> list[str]:
    """Options that neither the command knows nor, where it takes them, a spec or a method."""
    known = {name for param in command.params for name in (*param.opts, *param.secondary_opts)} | {"--help"}
    if (command.context_settings or {}).get("allow_extra_args"):
        fields = {"dtype", *RenderSpec.model_fields}.union(*(model.model_fields for model in METHOD_MODELS))
        known |= {f"--{prefix}{field.replace('_', '-')}" for field in fields for prefix in ("", "no-")}
        known.add("--sharpen")  # of the method that a tutorial writes
    return [word for word in words if word.startswith("--") and word.partition("=")[0] not in known]


@pytest.mark.parametrize("page", PAGES)
def test_commands_parse(page: str) -> None:
    for line in shell_lines(page):
        if (words := arguments(line)) is None:
            continue
        command, name, left = command_of(words)
        assert not unknown_options(command, left), line
        command.make_context(name, list(left))  # raises where an argument is missing or a value is none
        for word in left:
            if re.match(r"(examples|benchmarks)/.*\.yaml$", word):
                values = read_spec(ROOT / word).values
                make_spec(values) if name.endswith("render") or name.endswith("plan") else make_grid_of(name, values)


def make_grid_of(name: str, values: dict[str, Any]) -> None:
    """Check the file of a comparison or an evaluation."""
    if name.endswith("compare"):
        make_grid(values)
    else:
        assert values["methods"]


@pytest.mark.parametrize("page", [page for page in PAGES if not page.endswith("reference/commands.md")])
def test_commands_in_sentences_exist(page: str) -> None:
    for code in INLINE.findall(FENCE.sub("", text_of(page))):
        words = code.split()
        if words[0] == "freescale" and len(words) > 1 and not words[1].isupper():
            command, _, left = command_of(shlex.split(code)[1:])
            assert not unknown_options(command, left), code


@pytest.mark.parametrize("page", PAGES)
def test_other_commands_exist(page: str) -> None:
    makefile = text_of("Makefile")
    deployments = {d["name"] for d in yaml.safe_load(text_of("prefect.yaml"))["deployments"]}
    for line in [*shell_lines(page), *INLINE.findall(FENCE.sub("", text_of(page)))]:
        if found := re.match(r"make (\w+)$", line):
            assert re.search(rf"^{found[1]}:", makefile, re.MULTILINE), line
        for module in re.findall(r"python -m ((?:benchmarks|docs)[\w.]*)", line):
            path = ROOT / module.replace(".", "/")
            assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), line
        for name in re.findall(r"prefect deployment run [\w-]+/([\w-]+)", line):
            assert name in deployments, line


@pytest.mark.parametrize("page", PAGES)
def test_data_in_pages_can_be_read(page: str) -> None:
    for language, body in FENCE.findall(text_of(page)):
        if language == "yaml":
            assert yaml.safe_load(body)
        if language == "json":
            assert json.loads(body)


# ---------------------------------------------------------------- README, reference, words


def test_the_readme_is_short_and_says_first_what_a_reader_wants() -> None:
    lines = text_of("README.md").splitlines()
    assert len(lines) <= 130
    screen = "\n".join(lines[:45])
    for needed in ("![", "make demo", "make test", "--model PATH", "models/NAME", "safetensors", "No GPU is needed"):
        assert needed in screen, needed
    for needed in ("## What you need", "VRAM", "disk", "not measured", "It is for"):
        assert needed in screen, needed
    for page in PAGES:
        if page.startswith("docs/") and page != "docs/index.md":
            assert page in text_of("README.md") or page.removeprefix("docs/") in text_of("docs/index.md"), page


def test_the_site_has_every_page() -> None:
    listed = re.findall(r": ([\w/-]+\.md)$", text_of("mkdocs.yml"), re.MULTILINE)
    assert sorted(listed) == sorted(page.removeprefix("docs/") for page in PAGES if page.startswith("docs/"))
    for page in listed:
        assert page == "index.md" or f"({page})" in text_of("docs/index.md"), page


def test_the_reference_is_what_the_code_says() -> None:
    for path, text in pages().items():
        assert text == text_of(str(path)), f"{path}: run python -m docs.generate"


@pytest.mark.parametrize("page", PAGES)
def test_words_are_those_of_the_field(page: str) -> None:
    text = prose(page)
    found = [match[0] for pattern in OLD_WORDS for match in re.finditer(pattern, text)]
    assert not found
    assert not [riddle for riddle in RIDDLES if riddle in text]


def test_old_words_would_be_found() -> None:
    sentences = ("a clip of 16 frames", "with the mildest measures", "the next rung", "a Fleet of workers", "put aside")
    for sentence in sentences:
        assert any(re.search(pattern, sentence) for pattern in OLD_WORDS), sentence
    for sentence in ("CLIP score", "the network measures what is shown", "the job is set aside", "set-aside jobs"):
        assert not any(re.search(pattern, sentence) for pattern in OLD_WORDS), sentence
