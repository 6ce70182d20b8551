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

from flows.cli.terminal import Pace
from stages.export_video import PREVIEWS, STRIP

if TYPE_CHECKING:
    import logging
    from pathlib import Path

    from flows.rendering.session import Job, Result
    from stages.call import Call
    from stages.observer import Outcome
    from stages.plan import Plan

THUMBNAIL = 256  # pixels of a preview's longer side: artifacts live in Prefect's database, twice
GRACE = 20.0  # seconds the end of a render waits for what is still unsent


class Sender:
    """Runs calls to the server one after another, away from the render; only the newest progress is kept."""

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
        """Send what is queued, waiting at most `GRACE` seconds."""
        self._calls.put(None)
        self._thread.join(GRACE)

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
        self.log, self.pace, self.sender = logger, Pace.of(plan), Sender()
        self._progress: Any = None
        self._counted: dict[int, float] = {}

    def began(self, job: Job) -> None:
        """The render starts: make the progress bar."""
        self.log.info("%s: %s", job.run, " -> ".join(f"{w}x{h}" for h, w in job.plan.sizes))

        def make() -> None:
            self._progress = create_progress_artifact(0.0, key=f"progress-{job.run[-8:]}", description=job.spec.prompt)

        self.sender.send(make)

    def started(self, call: Call, resumed_at: int | None) -> None:
        """A stage begins or goes on."""
        if resumed_at is None:
            self.log.info("%s: started", call.label)
        else:
            self.log.info("%s: going on from step %s", call.label, resumed_at)
            first, last = call.stage.span
            self._count(call, call.work * (resumed_at - first) / max(last - first, 1), made=False)

    def stepped(self, call: Call, step: int) -> None:
        """A step is done."""
        first, last = call.stage.span
        self._count(call, call.work / max(last - first, 1), made=True)

    def finished(self, outcome: Outcome) -> None:
        """A stage is there."""
        call = outcome.call
        self._count(call, call.work - self._counted.get(id(call), 0.0), made=not outcome.reused)
        self.log.info("%s: %s", call.label, "reused" if outcome.reused else f"{outcome.seconds:.1f} s")

    def preview(self, level: int, path: Path) -> None:
        """A level's picture or video is there; of a video its strip of frames is shown."""
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
        """The table of costs."""
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
        """Nothing more will come."""
        self.sender.close()

    def _count(self, call: Call, work: float, made: bool) -> None:
        self._counted[id(call)] = self._counted.get(id(call), 0.0) + work
        self.pace.add(work, made)
        share, left = min(100.0 * self.pace.done / self.pace.total, 100.0), self.pace.seconds_left

        def update() -> None:
            if self._progress is not None:
                told = "" if left is None else f"{call.label}, {left:.0f} s left"
                update_progress_artifact(self._progress, progress=share, description=told)

        self.sender.offer(update)


def picture_link(name: str, path: Path) -> str:
    """Markdown with the picture in it, small: browsers refuse file links."""
    with Image.open(path) as picture:
        small = picture.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    out = BytesIO()
    small.save(out, "JPEG", quality=80)
    encoded = base64.b64encode(out.getvalue()).decode()
    return f"![{name}](data:image/jpeg;base64,{encoded})\n"
