"""`freescale evaluate --readings`: a table grows from what other machines have read, and a wrong file is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from flows.cli import app as cli
from flows.evaluate.layout import prepare_evaluation
from flows.evaluate.readings import cells, read_all
from flows.evaluate.readings_file import FORMAT, ReadingsFile
from flows.evaluate.report import rows
from flows.home import Home
from stages.errors import SpecError
from stages.metrics.spec import EvaluationSpec, make_evaluation
from stages.runner import Runner
from tests.homes import session_in

if TYPE_CHECKING:
    from pathlib import Path

    from flows.evaluate.layout import Evaluation

SMALL: dict[str, Any] = {
    "methods": ["direct"],
    "sizes": ["128x128"],
    "steps": 1,
    "draws": 10,
    "metrics": ["fid", "objects"],
}


def small(seeds: list[int]) -> EvaluationSpec:
    return make_evaluation(SMALL | {"count": 2, "seeds": seeds})


def numbers(evaluation: Evaluation, home: Home) -> list[tuple[str, float]]:
    readings = read_all(evaluation, session_in(home.root, threads=1))
    return [(row["metric"], row["value"]) for row in rows(evaluation, list(cells(evaluation, readings)))]


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Home, Home]:
    return Home(tmp_path_factory.mktemp("one")), Home(tmp_path_factory.mktemp("other"))


@pytest.fixture(scope="module")
def files(homes: tuple[Home, Home], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Half of a table each, from two homes that share nothing."""
    folder = tmp_path_factory.mktemp("files")
    found = [folder / "one.safetensors", folder / "other.safetensors"]
    for home, path, seed in zip(homes, found, (0, 1), strict=True):
        evaluation = prepare_evaluation(small([seed]), home)
        numbers(evaluation, home)
        ReadingsFile((path,)).add(evaluation, home.store)
    return found


@pytest.mark.thorough
def test_the_halves_of_two_machines_make_the_table_of_one(
    homes: tuple[Home, Home], files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = numbers(prepare_evaluation(small([0, 1]), homes[0]), homes[0])
    third, joined = Home(tmp_path / "third"), tmp_path / "joined.safetensors"
    evaluation = prepare_evaluation(small([0, 1]), third)
    file = ReadingsFile((joined, *files))
    assert file.take(evaluation, third.store) == sum(len(picture.readings) for picture in evaluation.pictures)
    monkeypatch.setattr(Runner, "make", lambda *_: pytest.fail("something was made again"))
    assert numbers(evaluation, third) == whole
    file.add(evaluation, third.store)
    assert load_file(joined).keys() == load_file(files[0]).keys() | load_file(files[1]).keys()
    assert file.take(evaluation, third.store) == 0


@pytest.mark.thorough
def test_a_file_keeps_what_others_put_there(homes: tuple[Home, Home], files: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "kept.safetensors"
    path.write_bytes(files[1].read_bytes())
    ReadingsFile((path,)).add(prepare_evaluation(small([0]), homes[0]), homes[0].store)
    kept, theirs = load_file(path), load_file(files[1])
    assert kept.keys() == theirs.keys() | load_file(files[0]).keys()
    assert all(torch.equal(kept[name], tensor) for name, tensor in theirs.items())


@pytest.mark.thorough
def test_from_the_command_line(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, new = tmp_path / "table.yaml", tmp_path / "new.safetensors"
    spec.write_text("\n".join(f"{name}: {value}" for name, value in (SMALL | {"count": 2, "seeds": [1]}).items()))
    words = [str(spec), "--threads", "1", "--home", str(tmp_path / "home"), "--readings", str(new)]
    monkeypatch.setattr("signal.signal", lambda *_: None)
    for more, said in (["--plan"], "4 pictures, 0 to read"), ([], "6 readings taken over"):
        monkeypatch.setattr("sys.argv", ["freescale", "evaluate", *words, "--readings", str(files[1]), *more])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code
        assert said in capsys.readouterr().err
        assert new.exists() != bool(more)
    assert load_file(new).keys() == load_file(files[1]).keys()


def broken(path: Path, what: str) -> None:
    """Write a file that is refused."""
    if what == "nothing of safetensors":
        path.write_bytes(b"PK\x03\x04 pickled things")
    elif what == "another safetensors":
        save_file({"weight": torch.zeros(1)}, path)
    elif what == "a later version":
        save_file({"weight": torch.zeros(1)}, path, FORMAT | {"version": "2"})
    else:
        save_file({"../../evil/features": torch.zeros(1)}, path, FORMAT)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("nothing of safetensors", "is no safetensors file"),
        ("another safetensors", "holds no readings; such a file is made by --readings"),
        ("a later version", "is of version '2', known: 1"),
        ("a strange name", "holds '../../evil/features', which is no reading"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, what: str, message: str) -> None:
    broken(path := tmp_path / "file", what)
    with pytest.raises(SpecError, match=message):
        ReadingsFile((path,))


def test_places_where_no_file_can_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="nowhere' is not a folder; make it first"):
        ReadingsFile((tmp_path / "nowhere" / "file",))
    with pytest.raises(SpecError, match="two' is not there; only the first file may be new"):
        ReadingsFile((tmp_path / "one", tmp_path / "two"))


@pytest.mark.parametrize(
    ("name", "tensor"),
    [("features", torch.zeros(64)), ("features", torch.full((1, 64), torch.nan)), ("weights", torch.zeros(1))],
    ids=["misshapen", "not finite", "unknown"],
)
def test_a_reading_that_its_stage_would_not_give_is_refused(tmp_path: Path, name: str, tensor: Any) -> None:
    home = Home(tmp_path / "home")
    evaluation = prepare_evaluation(small([0]), home)
    key = next(iter(evaluation.pictures[0].readings.values())).key
    save_file({f"{key}/{name}": tensor}, tmp_path / "file", FORMAT)
    with pytest.raises(SpecError, match=f"holds {name} .* for render_features, which gives something else"):
        ReadingsFile((tmp_path / "file",)).take(evaluation, home.store)
    assert home.store.find(key) is None


@pytest.mark.thorough
def test_a_damaged_reading_is_left_out(homes: tuple[Home, Home], files: list[Path], tmp_path: Path) -> None:
    """It does not stop the others from being kept."""
    home = Home(tmp_path / "home")
    evaluation = prepare_evaluation(small([0]), home)
    ReadingsFile((files[0],)).take(evaluation, home.store)
    chunk = next(path for path in sorted((home.root / "store" / "data").rglob("c/**/*")) if path.is_file())
    chunk.write_bytes(bytes([chunk.read_bytes()[0] ^ 1]) + chunk.read_bytes()[1:])
    ReadingsFile((tmp_path / "kept",)).add(evaluation, home.store)
    kept, whole = ({name[:64] for name in load_file(path)} for path in (tmp_path / "kept", files[0]))
    assert kept < whole
    assert len(whole - kept) == 1
