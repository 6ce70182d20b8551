"""Renders whose store is a bucket of a real local server: from the command line, over two machines, and refused."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flows import home
from flows.cli import app as cli
from flows.home import Home
from tests.bucket_server import bucket_server
from tests.processes import freescale

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
WORDS = ["a red disc on sand", "--size", "192x128", "--steps", "4", "--threads", "1", "--checkpoint-every", "0"]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with bucket_server() as url:
        yield url


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No connection, and no environment, of another test."""
    monkeypatch.setenv("FREESCALE_STORE", "")  # so that what stood there comes back, whatever the command line sets
    home._bucket.cache_clear()
    yield
    home._bucket.cache_clear()


def command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.argv", ["freescale", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


def render(url: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """What `--json` says of a render on a machine whose home is `folder`."""
    words = ["--store", url, "render", *WORDS, "--home", str(folder), "--out", str(folder / "made.png"), "--json"]
    assert command(words, monkeypatch) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.thorough
def test_what_one_machine_rendered_another_has(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = render("s3://studio/night", tmp_path / "here", monkeypatch, capsys)
    there = render("s3://studio/night", tmp_path / "there", monkeypatch, capsys)
    assert not any(stage["reused"] for stage in here["stages"])
    assert all(stage["reused"] for stage in there["stages"])
    assert here["pixels_sha256"] == there["pixels_sha256"]
    assert (tmp_path / "here" / "made.png").read_bytes() == (tmp_path / "there" / "made.png").read_bytes()
    assert not (tmp_path / "here" / "store").exists()
    home = ["--home", str(tmp_path / "third")]
    assert command(["--store", "s3://studio/night", "runs", *home], monkeypatch) == 0
    assert here["run"] in capsys.readouterr().out
    assert command(["--store", "s3://studio/night", "doctor", *home], monkeypatch) == 0
    assert "s3://studio/night, which answers" in capsys.readouterr().out
    assert command(["--store", "s3://studio/night", "prune", "--older-than", "0h", "--delete", *home], monkeypatch) == 0
    assert "artifact" in capsys.readouterr().out
    monkeypatch.setenv("FREESCALE_STORE", "")
    words = ["render", *WORDS, "--home", str(tmp_path / "disk"), "--out", str(tmp_path / "disk.png"), "--json"]
    assert command(words, monkeypatch) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["pixels_sha256"] == here["pixels_sha256"]


@pytest.mark.thorough
def test_a_render_killed_on_one_machine_is_ended_by_another(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = "s3://studio/killed"
    words = ["--store", url, "render", *WORDS, "--home", str(tmp_path / "here"), "--out", str(tmp_path / "killed.png")]
    process = freescale(tmp_path / "told", *words)
    monkeypatch.setenv("FREESCALE_STORE", url)
    backend = Home.find(tmp_path / "watcher").backend
    patience = time.monotonic() + 120
    while not backend.names("steps/*/step-*.json"):
        assert time.monotonic() < patience, "no checkpoint in two minutes"
        assert process.exitcode is None, (tmp_path / "told.err").read_text()
        time.sleep(0.02)
    process.kill()
    process.join()
    monkeypatch.setattr("storage.bucket_lease.HEARTBEAT_SECONDS", 0.5)
    there = render(url, tmp_path / "there", monkeypatch, capsys)
    assert [stage["resumed_at_step"] for stage in there["stages"] if stage["resumed_at_step"]]
    quiet = render("s3://studio/quiet", tmp_path / "quiet", monkeypatch, capsys)
    assert there["pixels_sha256"] == quiet["pixels_sha256"]


class Refusing(BaseHTTPRequestHandler):
    """Answers every request as a bucket does to those who may not."""

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(403)
        self.end_headers()

    def log_message(self, *words: Any) -> None:
        pass


def test_a_bucket_without_permission_is_said_before_the_first_job(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refusing = HTTPServer(("127.0.0.1", 0), Refusing)
    thread = threading.Thread(target=refusing.serve_forever)
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{refusing.server_port}")
    (tmp_path / "jobs.txt").write_text("a red disc\n", encoding="utf-8")
    words = ["batch", str(tmp_path / "jobs.txt"), "--home", str(tmp_path / "home")]
    try:
        assert command(["--store", "s3://studio/x", *words], monkeypatch) == 1
        assert "freescale: s3://studio/x refuses access to probe/" in capsys.readouterr().err
        assert command(["--store", "ftp://studio/x", *words], monkeypatch) == 2
        assert "freescale: store: 'ftp://studio/x' is not s3://BUCKET" in capsys.readouterr().err
        monkeypatch.setenv("AWS_ENDPOINT_URL", server)
        assert command(["--store", "s3://nobody/x", *words], monkeypatch) == 1
        assert "freescale: there is no bucket at s3://nobody/x" in capsys.readouterr().err
    finally:
        refusing.shutdown()
        thread.join()
        refusing.server_close()
    assert not (tmp_path / "home" / "runs").exists()
