"""A watched disk: every call that changes it is recorded, any of them may be refused, and a power cut is replayed.

`Disk` stands between the program and a folder, also for the threads of Zarr. It performs no `fsync`: what one would
have kept is for `Crash` to say, which rebuilds from the record what a disk may hold after the power went.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import random
    from pathlib import Path

    import pytest

Tree = dict[str, bytes | None]  # what a folder holds, by path; None is a folder
REFUSALS = (errno.ENOSPC, errno.EIO, errno.EACCES)
CALLS = ("mkdir", "rmdir", "unlink", "link", "rename", "replace", "fsync")
TAKE_ROOM = frozenset({"open", "write", "fsync", "mkdir", "link", "rename"})


class Op(NamedTuple):
    """One call that was carried out: create, write, close, one of `CALLS`, or a `note` of the test."""

    kind: str
    path: str
    target: str = ""
    data: bytes = b""


class Disk:
    """Records what is done below `root` and refuses call number `fails_at` (from 1).

    Not `once`: from there on it refuses all that takes room, as a full disk does, and counts nothing else. A refused
    write has written half; a refused close has closed.
    """

    def __init__(
        self,
        patch: pytest.MonkeyPatch,
        root: Path,
        code: int = errno.EIO,
        fails_at: int | None = None,
        once: bool = True,
    ) -> None:
        self.root, self.code, self.fails_at, self.once = os.path.realpath(root), code, fails_at, once
        self.log: list[Op] = []
        self.kinds: list[str] = []  # of every call, also the refused
        self.refused: list[str] = []
        self.lock = threading.RLock()
        self._os_open, self._io_open = os.open, io.open
        for name in CALLS:
            patch.setattr(os, name, self._watched(name, getattr(os, name)))
        patch.setattr(os, "open", self._open_descriptor)
        patch.setattr(io, "open", self._open)
        patch.setattr(builtins, "open", self._open)

    def note(self, text: str) -> None:
        """Mark a point in the record, for example that something was acknowledged."""
        self.log.append(Op("note", text))

    def count(self, kind: str, path: str | None) -> None:
        """One more call; raises if it is the one to be refused."""
        if not self.once and kind not in TAKE_ROOM:
            return
        self.kinds.append(kind)
        number = len(self.kinds)
        if self.fails_at is not None and (number == self.fails_at or (number > self.fails_at and not self.once)):
            self.refused.append(kind)
            raise OSError(self.code, os.strerror(self.code), *([os.path.join(self.root, path)] if path else []))

    def inside(self, path: Any, folder: int | None = None) -> str | None:
        """The path below the root, also of a descriptor; None for what lies elsewhere."""
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        elif folder is not None:
            path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
        parent, name = os.path.split(os.path.abspath(os.fspath(path)))
        whole = os.path.join(os.path.realpath(parent), name)
        return os.path.relpath(whole, self.root) if whole.startswith(f"{self.root}/") or whole == self.root else None

    def _watched(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        kind = {"replace": "rename"}.get(name, name)

        def watched(*args: Any, **named: Any) -> Any:
            path = self.inside(args[0], named.get("dir_fd"))
            if path is None:
                return call(*args, **named)
            target = self.inside(args[1]) if kind in {"link", "rename"} else ""
            assert target is not None, f"{args[0]} leaves the watched folder"
            with self.lock:
                self.count(kind, None if kind == "fsync" else path)
                result = None if kind == "fsync" else call(*args, **named)
                self.log.append(Op(kind, path, target))
            return result

        return watched

    def _open_descriptor(self, path: Any, flags: int, *args: Any, **named: Any) -> int:
        where = self.inside(path, named.get("dir_fd")) if flags & os.O_CREAT else None
        if where is None:
            return self._os_open(path, flags, *args, **named)
        assert not flags & os.O_TRUNC, f"{path} is opened in a way that is not recorded"
        with self.lock:
            self.count("open", where)
            descriptor = self._os_open(path, flags, *args, **named)
            self.log.append(Op("open", where))
            return descriptor

    def _open(self, file: Any, mode: str = "r", *args: Any, **named: Any) -> Any:
        where = None if isinstance(file, int) else self.inside(file)
        if where is None or mode in {"r", "rb"}:
            return self._io_open(file, mode, *args, **named)
        assert mode in {"w", "wb", "xb"}, f"{file} is opened in a way that is not recorded: {mode}"
        with self.lock:
            self.count("open", where)
            written = io.BufferedWriter(_File(self, file, mode[0], where))
        return written if "b" in mode else io.TextIOWrapper(written, named.get("encoding"))


class _File(io.FileIO):
    """A file whose writes and whose close are seen."""

    def __init__(self, disk: Disk, file: Any, mode: str, where: str) -> None:
        super().__init__(file, mode)
        self._disk, self._where = disk, where
        disk.log.append(Op("open", where, "truncated"))

    def write(self, data: Any) -> int:
        held = bytes(data)
        with self._disk.lock:
            try:
                self._disk.count("write", None)
            except OSError:
                self._wrote(held[: len(held) // 2])
                raise
            return self._wrote(held)

    def _wrote(self, data: bytes) -> int:
        written = super().write(data) or 0
        self._disk.log.append(Op("write", self._where, data=data[:written]))
        return written

    def close(self) -> None:
        was_closed = self.closed
        super().close()
        if not was_closed:
            with self._disk.lock:
                self._disk.count("close", None)


class _Node:
    """A file or a folder: what it holds now, and what it held at each moment since it was last flushed."""

    def __init__(self, now: Any, is_durable: bool = False) -> None:
        self.now = now
        self.durable = now if is_durable else type(now)()

    def flush(self) -> None:
        self.durable = self.now


class _Folder(_Node):
    """Names and, of each that changed since the last flush, every node it stood for."""

    now: dict[str, _Node]

    def __init__(self, is_durable: bool = False) -> None:
        super().__init__({}, is_durable)
        self.since: dict[str, list[_Node | None]] = {}

    def set(self, name: str, node: _Node | None) -> None:
        self.since.setdefault(name, [self.durable.get(name)]).append(node)
        self.now = {key: value for key, value in {**self.now, name: node}.items() if value is not None}

    def flush(self) -> None:
        super().flush()
        self.since = {}


Choice = Callable[[Sequence[Any]], Any]  # picks one of what may be there: first what is certain, last what was asked


def nothing_more(options: Sequence[Any]) -> Any:
    """The pessimist: what was not flushed is not there."""
    return options[0]


def everything(options: Sequence[Any]) -> Any:
    """The optimist: all that was asked for is there."""
    return options[-1]


class Crash:
    """What the folder may hold if the power goes now, after the calls that were `apply`ed."""

    def __init__(self, tree: Tree | None = None) -> None:
        """`tree` is what lies on the disk for certain before the first call."""
        self.root = _Folder(is_durable=True)
        for path, data in sorted((tree or {}).items()):
            folder, name = self._entry(path)
            folder.now[name] = folder.durable[name] = _Folder(True) if data is None else _Node(data, True)

    def apply(self, op: Op) -> None:
        """Go on by one call of the record."""
        if op.kind in {"note", "close"}:
            return
        if op.kind == "fsync":
            return self._node(op.path).flush()
        if op.kind == "write" and not self._is_there(op.path):
            return  # a thread of Zarr was still at it when the draft was given up and deleted
        folder, name = self._entry(op.path)
        if op.kind == "open" and name not in folder.now:
            folder.set(name, _Node(b""))
        elif op.kind == "open" and op.target:
            folder.now[name].now = b""
        elif op.kind == "write":
            folder.now[name].now += op.data
        elif op.kind == "mkdir":
            folder.set(name, _Folder())
        elif op.kind in {"unlink", "rmdir"}:
            folder.set(name, None)
        elif op.kind in {"link", "rename"}:
            target, new = self._entry(op.target)
            target.set(new, folder.now[name])
            if op.kind == "rename":
                folder.set(name, None)

    def tree(self, choose: Choice) -> Tree:
        """One thing that the disk may hold: `choose` decides of every file and name that was not flushed."""
        chosen: dict[int, bytes] = {}
        return dict(self._walk(self.root, "", choose, chosen))

    def _walk(self, folder: _Folder, prefix: str, choose: Choice, chosen: dict[int, bytes]) -> Iterator[Any]:
        found = {**folder.durable, **{name: choose(nodes) for name, nodes in folder.since.items()}}
        for name, node in sorted(found.items()):
            if isinstance(node, _Folder):
                yield prefix + name, None
                yield from self._walk(node, f"{prefix}{name}/", choose, chosen)
            elif node is not None:
                if id(node) not in chosen:  # a file of two names is one file
                    chosen[id(node)] = choose(_contents(node))
                yield prefix + name, chosen[id(node)]

    def _entry(self, path: str) -> tuple[_Folder, str]:
        parent, name = os.path.split(path)
        node = self._node(parent or ".")
        assert isinstance(node, _Folder), path
        return node, name

    def _is_there(self, path: str) -> bool:
        try:
            self._node(path)
        except KeyError:
            return False
        return True

    def _node(self, path: str) -> _Node:
        node: _Node = self.root
        for part in () if path == "." else path.split("/"):
            node = node.now[part]
        return node


def _contents(node: _Node) -> list[bytes]:
    """What may be in a file: what was flushed, nothing, a half, zeros, a half and zeros, all."""
    if node.durable == node.now:
        return [node.now]
    half, size = node.now[: len(node.now) // 2], len(node.now)
    return [node.durable, b"", half, bytes(size), half.ljust(size, b"\0"), node.now]


def crashes(log: Sequence[Op], draw: random.Random, mixes: int, tree: Tree | None = None) -> Iterator[tuple[int, Tree]]:
    """Cut the record at every point: how many calls were done, and what the disk may hold then; each state once.

    Of every cut the pessimist's and the optimist's state, and `mixes` between them.
    """
    crash, seen = Crash(tree), set[int]()
    acknowledged = 0
    for done in range(len(log) + 1):
        if done:
            crash.apply(log[done - 1])
            acknowledged += log[done - 1].kind == "note"
        for choose in (nothing_more, everything, *(draw.choice,) * mixes):
            state = crash.tree(choose)
            if (mark := hash((acknowledged, *state.items()))) not in seen:
                seen.add(mark)
                yield done, state


def tree_of(root: Path) -> Tree:
    """What a folder holds."""
    return {path.relative_to(root).as_posix(): None if path.is_dir() else path.read_bytes() for path in root.rglob("*")}


def build(tree: Tree, root: Path) -> Path:
    """Make a folder that holds `tree`."""
    root.mkdir()
    for path, data in sorted(tree.items()):
        if data is None:
            (root / path).mkdir()
        else:
            (root / path).write_bytes(data)
    return root
