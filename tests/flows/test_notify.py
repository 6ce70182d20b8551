"""Somebody is told how a night ended, over a real local HTTP server; a hook that fails never fails the night."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from flows.batch import notify
from flows.batch.notify import check_hook
from flows.batch.runner import Batch
from flows.cli import app as cli
from stages.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from flows.batch.runner import State


class Hook(BaseHTTPRequestHandler):
    heard: list[dict[str, Any]]
    status = 200

    def do_POST(self) -> None:
        type(self).heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture
def hook() -> Iterator[tuple[str, type[Hook]]]:
    kind = type("Hook", (Hook,), {"heard": []})
    server = HTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/hook", kind
    server.shutdown()
    thread.join()
    server.server_close()


def batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hook: str) -> int:
    """A night from the command line, over before it began."""

    def run(self: Batch, jobs: Any) -> dict[str, State]:
        return {queued.job.run: "left" for queued in jobs}

    monkeypatch.setattr(Batch, "run", run)
    jobs = tmp_path / "jobs.txt"
    jobs.write_text("a red disc\na green ring\na blue star\n", encoding="utf-8")
    words = ["freescale", "batch", str(jobs), "--notify", hook, "--home", str(tmp_path / "home")]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


def test_the_counts_and_the_page_are_told(
    hook: tuple[str, type[Hook]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, kind = hook
    assert batch(tmp_path, monkeypatch, url) == 3
    (told,) = kind.heard
    assert told["tally"] == {"left": 3}
    assert told["text"].startswith("FreeScale: 0 done, 0 set aside, 3 left\nfile:///")
    assert told["page"].endswith("index.html")
    assert notify.notify(url, ["done", "set aside", "done"], tmp_path / "index.html")
    assert kind.heard[1]["tally"] == {"done": 2, "set aside": 1}


def test_a_hook_that_fails_never_fails_the_night(
    hook: tuple[str, type[Hook]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url, kind = hook
    kind.status = 500
    assert batch(tmp_path, monkeypatch, url) == 3
    assert batch(tmp_path, monkeypatch, "http://127.0.0.1:9/nobody") == 3
    assert capsys.readouterr().err.count("was not told") == 2


@pytest.mark.thorough
@pytest.mark.server
@pytest.mark.filterwarnings("default")  # Prefect's own warnings are not ours
def test_blocks_saved_on_a_server_are_called_by_their_name(
    hook: tuple[str, type[Hook]], tmp_path: Path, prefect_server: str
) -> None:
    from prefect.blocks.notifications import CustomWebhookNotificationBlock
    from prefect.blocks.webhook import Webhook

    url, kind = hook
    Webhook(url=url).save("studio", overwrite=True)  # type: ignore[unused-coroutine]
    body = {"title": "{{subject}}", "words": "{{body}}"}
    CustomWebhookNotificationBlock(name="mail", url=url, json_data=body).save("mail", overwrite=True)  # type: ignore[unused-coroutine]
    page = tmp_path / "index.html"
    assert notify.notify(check_hook("webhook/studio"), ["done", "set aside"], page)
    assert notify.notify(check_hook("custom-webhook/mail"), ["done"], page)
    assert not notify.notify("webhook/nobody", ["done"], page)
    first, second = kind.heard
    assert first == {"text": f"FreeScale: 1 done, 1 set aside, 0 left\n{page.as_uri()}"}
    assert second == {"title": "FreeScale: 1 done, 0 set aside, 0 left", "words": page.as_uri()}


def test_a_hook_that_hangs_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(notify, "TIMEOUT_SECONDS", 0.05)
    monkeypatch.setattr(notify, "_post", lambda url, told: over.wait(30))
    assert not notify.notify("http://example.org/", ["done"], tmp_path / "index.html")
    over.set()


@pytest.mark.parametrize("bad", ["", "ftp://host/x", "http://", "studio", "a/b/c", "file:///etc/passwd"])
def test_what_is_no_hook_is_refused(bad: str) -> None:
    with pytest.raises(SpecError, match="notify: "):
        check_hook(bad)
