"""Write the golden home and the pinned keys. Run in the root of the repository, on one machine, with a clean tree:

    python -m tests.golden.make keys             # adds keys of specs that are new in specs.yaml; changes none
    python -m tests.golden.make keys --moved     # writes all keys anew
    python -m tests.golden.make home --moved     # writes the home anew

Never run it with `--moved` to make a failing test pass: a key that moves makes every store that people have useless for
what it names, silently. It is right only where the version of a stage, a method or a format was raised on purpose, in
the commit that raises it, with an entry in CHANGELOG.md that says what will be rendered anew.

The home is what a user's folder holds after a night of four jobs, one of them set aside with a checkpoint, a redo, a
comparison and an evaluation. Names of this machine are taken out of its records; locks and caches are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import re
import shutil
import socket
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import yaml

from stages.models.describe import describe
from tests.golden import doors
from tests.golden.moved import differences

if TYPE_CHECKING:
    from collections.abc import Iterator

HOME = doors.GOLDEN / "home"
INDEX = HOME / "golden.json"
KEYS, CALLS = doors.GOLDEN / "plan_keys.json", doors.GOLDEN / "plan_calls.json"
MACHINE = ["--device", "cpu", "--threads", "1"]
CALL = ("stage", "version", "params", "parents")  # what is kept of what a key was computed from
LEFT_OUT = ("cache", "store/locks", "store/machine", "store/trash")


def specs() -> dict[str, dict[str, Any]]:
    """Every pinned spec by name; an example by its path."""
    given = yaml.safe_load((doors.GOLDEN / "specs.yaml").read_text(encoding="utf-8"))
    found = {name: {**given["defaults"], **values} for name, values in given["specs"].items()}
    for name in given["examples"]:
        found[f"examples/{name}"] = yaml.safe_load((doors.ROOT / "examples" / name).read_text(encoding="utf-8"))
    return found


def others(kind: str) -> dict[str, dict[str, Any]]:
    """Every pinned one of `evaluations` or `comparisons` by name."""
    given: dict[str, dict[str, Any]] = yaml.safe_load((doors.GOLDEN / "specs.yaml").read_text(encoding="utf-8"))[kind]
    return given


def pinned() -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """The pinned keys, by kind and spec, and what each key was computed from."""
    keys, calls = (json.loads(path.read_text(encoding="utf-8")) if path.exists() else {} for path in (KEYS, CALLS))
    return keys, calls


def calls_of(keys: dict[str, str], calls: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The pinned calls of one spec by label."""
    return {label: {"key": key, **calls[key]} for label, key in keys.items()}


def root_of(name: str) -> Path:
    """Where the pictures and masks of a pinned spec are looked for."""
    return doors.ROOT / "examples" if name.startswith("examples/") else doors.GOLDEN


@contextlib.contextmanager
def models_linked(home: Path) -> Iterator[None]:
    """Let a home name the models of `tests/golden/models`, in the body.

    They are folders without weights and with a few fields of a configuration, of which no UNet can be made.
    """
    (home / "models").symlink_to(doors.GOLDEN / "models", target_is_directory=True)
    weightless = functools.partial(describe, has_weights=False)
    with contextlib.ExitStack() as stack:
        for module in ("flows.rendering.job", "flows.compare.layout", "flows.evaluate.layout"):
            stack.enter_context(patch(f"{module}.describe", weightless))
        stack.enter_context(patch("flows.rendering.job.check_methods"))
        yield


def today(home: Path) -> dict[str, dict[str, Any]]:
    """Kind and name -> name of the run and calls, computed by today's code."""
    return {
        "specs": {name: doors.plan_calls(values, home, root_of(name)) for name, values in specs().items()},
        "evaluations": {name: doors.evaluation_calls(values, home) for name, values in others("evaluations").items()},
        "comparisons": {name: doors.comparison_names(values, home) for name, values in others("comparisons").items()},
    }


def make_keys(moved: bool) -> int:
    """Pin the keys of new specs; with `moved` also those that are others now. Return the exit code."""
    keys, known = pinned()
    fresh, calls = dict[str, Any](), dict[str, Any]()
    refused = list[str]()
    with tempfile.TemporaryDirectory() as folder, models_linked(Path(folder)):
        for kind, entries in today(Path(folder)).items():
            fresh[kind] = {}
            for name, (title, found) in entries.items():
                if isinstance(found, list):
                    fresh[kind][name] = {"name": title, "runs": found}
                else:
                    fresh[kind][name] = {"name": title, "keys": {label: call["key"] for label, call in found.items()}}
                    calls |= {
                        c["key"]: {k: c[k] for k in ("stage", "version", "params", "parents")} for c in found.values()
                    }
                before = keys.get(kind, {}).get(name)
                if before is not None and before != fresh[kind][name]:
                    refused.append(f"{kind} {name!r}:")
                    if "keys" in before:
                        refused += [f"  {line}" for line in differences(calls_of(before["keys"], known), found)]
    refused += [f"{kind} {name!r} is gone" for kind in keys for name in keys[kind] if name not in fresh[kind]]
    if refused:
        print("\n".join(refused))
        if not moved:
            print("nothing was written; the docstring of this file says when --moved is right")
            return 1
    KEYS.write_text(json.dumps(fresh, indent=1) + "\n", encoding="utf-8")
    lines = (f"{json.dumps(key)}: {json.dumps(calls[key], sort_keys=True)}" for key in sorted(calls))
    CALLS.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    return 0


def make_home() -> None:
    """Write the golden home anew."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(doors.GOLDEN):  # where masks are named from
        made = Path(folder) / "home"
        index = _fill(made)
        for name in LEFT_OUT:
            shutil.rmtree(made / name, ignore_errors=True)
        for page in (*made.rglob("index.html"), *made.rglob("contact-sheet.png")):
            page.unlink()  # made anew from the records beside them
        _make_nameless(made)
        index |= _pixels(made, Path(folder))
        (made / "golden.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
        _check_nameless(made)
        shutil.rmtree(HOME, ignore_errors=True)
        shutil.copytree(made, HOME)


def _fill(home: Path) -> dict[str, Any]:
    """A night, a redo, a comparison and an evaluation; what there must be, by name."""
    jobs, place = doors.GOLDEN / "jobs.yaml", ["--home", str(home), "--json"]
    doors.fail_at(jobs, home, "broken", step=3)
    night = _told("batch", jobs, *MACHINE, *place, code=1)
    runs = {job["name"]: job["run"] for job in night["jobs"]}
    redo = ["redo", runs["small"], "--from", "detail_pass", "--detail-scale", "1.0"]
    runs["redone"] = _told(*redo, *MACHINE, *place, "--out", home / "redone.png")["run"]
    (home / "redone.png").unlink()
    comparison = _told("compare", doors.GOLDEN / "comparison.yaml", *MACHINE, *place)
    evaluation = _told("evaluate", doors.GOLDEN / "evaluation.yaml", *MACHINE, *place)
    return {
        "runs": runs,
        "comparison": comparison["comparison"],
        "evaluation": evaluation["evaluation"],
        "artifacts": len(list(home.glob("store/manifests/*/*.json"))),
    }


def _told(*words: Any, code: int = 0) -> Any:
    told = doors.freescale(*words)
    if told.code != code:
        raise SystemExit(f"freescale {' '.join(map(str, words))} ended with {told.code}: {told.said}")
    return told.json


def _pixels(home: Path, folder: Path) -> dict[str, Any]:
    """The digest of each done run's pixels, as the command line gives it; asked of a copy."""
    copy = folder / "copy"
    shutil.copytree(home, copy)
    digests = {}
    for record in doors.Home(copy).runs.list():
        if record.state == "done":
            words = ["resume", record.run, "--home", copy, "--out", folder, *MACHINE, "--json"]
            digests[record.run] = _resumed(words)["pixels_sha256"]
    return {"pixels_sha256": digests}


def _resumed(words: list[Any]) -> Any:
    told = _told(*words)
    assert all(stage["reused"] for stage in told["stages"]), told
    return told


def _make_nameless(home: Path) -> None:
    """Take this machine out of the records: paths become relative, host, process and date are no real ones.

    The date lies before the clock of any machine that runs the test: `prune` asks for the age of an artifact.
    """
    runs, store, date = doors.Home(home).runs, doors.Home(home).store, datetime(2024, 1, 1, tzinfo=UTC)
    for path in home.glob("store/manifests/*/*.json"):
        manifest = store.find(path.stem)
        assert manifest is not None, path
        path.write_bytes(manifest.revised(created=date).to_bytes())
    for record in runs.list():
        spec = json.loads(_nameless(json.dumps(record.spec), home))
        attempts = tuple(one.revised(host="golden", process=1) for one in record.attempts)
        outputs = tuple(_nameless(path, home) for path in record.outputs if not path.startswith(f"{home}/redone"))
        runs.save(record.revised(spec=spec, attempts=attempts, outputs=outputs, created=date))
    for path in (*home.glob("set-aside/*.json"), *home.glob("nights/*/night.json"), *home.glob("*s/*/*.json")):
        text = _nameless(path.read_text(encoding="utf-8"), home)
        text = re.sub(r'"host": "[^"]*"', '"host": "golden"', re.sub(r'"process": \d+', '"process": 1', text))
        path.write_text(text, encoding="utf-8")
    for partial in home.rglob("*.partial"):
        partial.unlink()


def _nameless(text: str, home: Path) -> str:
    for folder in (home, doors.GOLDEN, doors.ROOT, Path(sys.prefix), Path(sys.base_prefix)):
        text = text.replace(f"{folder}/", "")
    return text


def _check_nameless(home: Path) -> None:
    """Raise where a file still says where, or on what, it was made."""
    names = {str(doors.ROOT), str(home), str(Path.home()), f"{tempfile.gettempdir()}/", f'"{socket.gethostname()}"'}
    for path in sorted(p for p in home.rglob("*") if p.is_file()):
        data = path.read_bytes()
        found = [name for name in names if name != "/" and name.encode() in data]
        if found:
            raise SystemExit(f"{path.relative_to(home)} names {', '.join(found)}")


def main() -> int:
    """The command line of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("keys", "home"))
    parser.add_argument("--moved", action="store_true", help="overwrite what is there; read above when that is right")
    given = parser.parse_args()
    if given.what == "keys":
        return make_keys(given.moved)
    if HOME.exists() and not given.moved:
        print(f"{HOME.relative_to(doors.ROOT)} is there; nothing was written")
        return 1
    make_home()
    return 0


if __name__ == "__main__":
    sys.exit(main())
