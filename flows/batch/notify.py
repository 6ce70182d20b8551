"""Notifications of how a batch ended: to a web address that takes JSON, or to a notification block of Prefect.

The batch is over before one is sent, so a hook that fails, hangs or is misspelt costs a line of the log and no job.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
import threading
import urllib.parse
import urllib.request
from collections import Counter
from typing import TYPE_CHECKING, Any

from stages.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from flows.batch.runner import State

log = logging.getLogger(__name__)
TIMEOUT_SECONDS = 10.0  # of one request


def check_hook(hook: str | None) -> str | None:
    """Return `hook`: None, an http(s) address, or TYPE/NAME of a Prefect block. Raises `SpecError` for another text."""
    if hook is None:
        return None
    address = urllib.parse.urlsplit(hook)
    is_web = address.scheme in ("http", "https") and bool(address.hostname)
    is_block = not address.scheme and len(parts := hook.split("/")) == 2 and all(parts)
    if not is_web and not is_block:
        raise SpecError(
            f"notify: {hook!r} is neither an http address nor TYPE/NAME of a Prefect block: slack-webhook/studio"
        )
    return hook


def notify(hook: str | None, states: Iterable[State], page: Path | None) -> bool:
    """Send how many jobs are done, set aside and left, and where the page is; return whether that succeeded.

    Takes at most twice `TIMEOUT_SECONDS`. A failure is logged, and nothing is raised.
    """
    if hook is None or page is None:
        return False
    tally = Counter(states)
    subject = "FreeScale: " + ", ".join(f"{tally[state]} {state}" for state in ("done", "set aside", "left"))
    succeeded: list[bool] = []

    def send() -> None:
        """Tell the hook; note that it worked."""
        try:
            if "://" in hook:
                _post(hook, {"text": f"{subject}\n{page.as_uri()}", "tally": dict(tally), "page": str(page)})
            else:
                _through_block(hook, subject, page.as_uri())
            succeeded.append(True)
        except Exception as error:
            log.warning("notify: %s: %s: %s", hook.split("?")[0], type(error).__name__, error)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(send,), name="notify", daemon=True)
    thread.start()
    thread.join(2 * TIMEOUT_SECONDS)
    return bool(succeeded)


def _post(url: str, message: dict[str, Any]) -> None:
    """One JSON object; `text` is what Slack, Mattermost and their like show."""
    body = json.dumps(message, ensure_ascii=False).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method="POST")
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS):
        pass


def _through_block(name: str, subject: str, body: str) -> None:
    """Any block that notifies (e-mail, chat), or a plain webhook block, as it was saved on the server."""
    from prefect.blocks.abstract import NotificationBlock
    from prefect.blocks.core import Block

    block: Any = Block.load(name)
    notifies = isinstance(block, NotificationBlock)
    if notifies:
        block.notify(body, subject=subject)
    else:
        asyncio.run(block.call({"text": f"{subject}\n{body}"})).raise_for_status()
