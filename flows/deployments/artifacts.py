"""What Prefect shows of a render: a progress bar, a preview of each level, a table of what each stage cost.

Artifacts are sent from a thread of their own, one call at a time, and every failure of the server is swallowed:
with the server away a call blocks for more than a minute, and no render may wait for that.
"""

from __future__ import annotations

import base64
import contextvars
import queue
import threading
from collections.abc import Callable
from io import BytesIO
from typing import TYPE_CHECKING, Any

from PIL import Image
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from flows.rendering.progress import RenderProgress
from stages.export_video import PREVIEWS, STRIP

if TYPE_CHECKING:
    import logging
    from pathlib import Path

    from flows.rendering.job import Job
    from flows.rendering.session import Result
    from stages.call import Call
    from stages.observer import Outcome
    from stages.plan import Plan

THUMBNAIL = 256  # pixels of a preview's longer side: artifacts live in Prefect's database, twice
FLUSH_SECONDS = 20.0  # the end of a render waits so long at most for what is still unsent


class Sender:
    """Runs calls to the server one after another in a thread; of the progress, only the newest is sent."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._newest: Callable[[], Any] | None = None
        context = contextvars.copy_context()  # so that artifacts belong to this flow run
        self._thread = threading.Thread(target=context.run, args=(self._work,), name="artifacts", daemon=True)
        self._thread.start()

    def send(self, call: Callable[[], Any]) -> None:
        """Queue a call that must not be dropped."""
        self._calls.put(call)

    def offer(self, call: Callable[[], Any]) -> None:
        """Queue a call that a newer one may replace."""
        waiting, self._newest = self._newest, call
        if waiting is None:
            self._calls.put(self._send_newest)

    def close(self) -> None:
        """Send what is queued; wait at most `FLUSH_SECONDS`."""
        self._calls.put(None)
        self._thread.join(FLUSH_SECONDS)

    def _send_newest(self) -> None:
        call, self._newest = self._newest, None
        if call is not None:
            call()

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call()
            except Exception:  # whatever the server does, the render goes on
                continue


class FlowObserver:
    """An observer for a Prefect run: its log, and artifacts of progress, previews and costs."""

    def __init__(self, plan: Plan, logger: logging.Logger | logging.LoggerAdapter[Any]) -> None:
        self.log, self.progress, self.sender = logger, RenderProgress.of(plan), Sender()
        self._artifact: Any = None  # of the progress bar

    def began(self, job: Job) -> None:
        """Log the start of a render, and make the artifact of its progress bar."""
        self.log.info("%s: %s", job.run, " -> ".join(f"{w}x{h}" for h, w in job.plan.sizes))

        def make() -> None:
            """Make the artifact of the progress bar, at 0 %."""
            self._artifact = create_progress_artifact(0.0, key=f"progress-{job.run[-8:]}", description=job.spec.prompt)

        self.sender.send(make)

    def started(self, call: Call, resumed_at: int | None) -> None:
        """Log that a stage begins, or that it goes on at a step."""
        if resumed_at is None:
            self.log.info("%s: started", call.label)
        else:
            self.log.info("%s: going on from step %s", call.label, resumed_at)
            self.progress.resumed(call, resumed_at)
            self._update(call)

    def stepped(self, call: Call, step: int) -> None:
        """Count a step."""
        self.progress.stepped(call)
        self._update(call)

    def finished(self, outcome: Outcome) -> None:
        """Count a stage as done, and log its seconds or that it was reused."""
        self.progress.finished(outcome)
        self._update(outcome.call)
        self.log.info("%s: %s", outcome.call.label, "reused" if outcome.reused else f"{outcome.seconds:.1f} s")

    def preview(self, level: int, path: Path) -> None:
        """Show the picture of a level, or of a video the strip of its frames."""
        strip = path.with_name(f"{path.stem}{PREVIEWS[STRIP]}")
        picture = strip if strip.is_file() else path
        self.sender.send(
            lambda: create_markdown_artifact(
                f"Level {level}: `{path}`\n\n{picture_link(f'level {level}', picture)}",
                key=f"level-{level}",
                description=path.name,
            )
        )

    def summary(self, job: Job, result: Result) -> None:
        """Show a table of what each stage cost."""
        rows = [
            {
                "stage": o.call.label,
                "size": f"{o.call.size[1]}x{o.call.size[0]}",
                "seconds": round(o.seconds, 2),
                "how": "reused"
                if o.reused
                else "made"
                if o.resumed_at_step is None
                else f"from step {o.resumed_at_step}",
            }
            for o in result.outcomes
        ]
        self.sender.send(
            lambda: create_table_artifact(rows, key=f"costs-{job.run[-8:]}", description=str(result.outputs[0]))
        )

    def close(self) -> None:
        """Send what is left; nothing may be sent after that."""
        self.sender.close()

    def _update(self, call: Call) -> None:
        """Send where the render is now, unless something newer is sent first."""
        percent, left = self.progress.percent, self.progress.seconds_left

        def update() -> None:
            """Set the progress bar, where there is one by now."""
            if self._artifact is not None:
                description = "" if left is None else f"{call.label}, {left:.0f} s left"
                update_progress_artifact(self._artifact, progress=percent, description=description)

        self.sender.offer(update)


def picture_link(name: str, path: Path) -> str:
    """Markdown that holds the picture at `THUMBNAIL` pixels at most, as browsers refuse links to files."""
    with Image.open(path) as picture:
        small = picture.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    out = BytesIO()
    small.save(out, "JPEG", quality=80)
    encoded = base64.b64encode(out.getvalue()).decode()
    return f"![{name}](data:image/jpeg;base64,{encoded})\n"
