"""Renders in many homes with one loaded model, and homes that hold the first part of a render."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.cli.terminal import Terminal
from flows.home import Home
from flows.rendering.session import Session
from flows.rendering.stop import StopEvent
from stages.spec import RunOptions

if TYPE_CHECKING:
    from stages.observer import Observer
    from stages.plan import Plan

_LOADED = Session(Home(Path("nowhere")), RunOptions(), Terminal(quiet=True))


def session_in(home: Path, observer: Observer | None = None, **options: Any) -> Session:
    """A session in `home`. All sessions from here share the model that was loaded last, and nothing else."""
    own: dict[str, Any] = {"home": Home(home), "options": RunOptions(**options), "stop": StopEvent()}
    return replace(_LOADED, observer=observer or Terminal(quiet=True), **own)


def copy_before(home: Path, to: Path, plan: Plan, label: str) -> None:
    """Copy a home to the folder `to`, without the call `label` of a plan and without all that is made from it."""
    shutil.copytree(home, to, dirs_exist_ok=True)
    store, gone = Home(to).store, set[str]()
    for call in plan.calls:
        if call.label == label or any(parent.key in gone for parent in call.parents.values()):
            gone.add(call.key)
            if store.find(call.key) is not None:
                store.move_to_trash(call.key, "to be made again")
    assert gone, f"the plan has no {label}"
