"""A state machine over both stores: any sequence of writes, reads, leases, prunes, crashes and damage, against a model.

Hypothesis draws sequences of the rules below and runs each on a new store. The model is a few dicts in memory that say
what the store holds. Every rule compares what the store answers with what the model says, and the invariants compare
the listings after each step.

A crash is a `Death`: from one call to the disk or to the bucket on, no call is carried out any more, so no cleanup
runs. A lease that ends with its process is held by a real process, which is killed.

The suite draws few examples, always the same. To draw many, new ones each time:

    STORE_MACHINE_EXAMPLES=500 pytest tests/storage/test_state_machine.py
"""

from __future__ import annotations

import functools
import itertools
import os
import shutil
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import obstore
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from obstore.exceptions import PermissionDeniedError
from obstore.store import S3Store

import storage.prune
from storage import (
    ArtifactNotFoundError,
    ArtifactStore,
    Checkpoints,
    DamagedArtifactError,
    Disk,
    LeaseTimeoutError,
    PlannedCall,
    RunExistsError,
    RunRecord,
    Runs,
    StorageError,
    bucket_lease,
    fingerprint,
    locks,
)
from storage.bucket import Bucket
from storage.bucket_lease import Sighting
from storage.manifest import StepRecord
from storage.prune import Leftover, survey, sweep
from tests.disk import Disk as WatchedDisk
from tests.disk import Op
from tests.storage.test_processes import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from storage import Backend, Manifest, Writer
    from tests.storage.conftest import Processes

EXAMPLES = int(os.environ.get("STORE_MACHINE_EXAMPLES", "0"))
KEYS = tuple(fingerprint("state machine", number) for number in range(4))
RUNS = ("night-1", "night-2")
NOTE = "note.txt"
PATTERNS = ("data/*", "trash/*", "steps/*", "steps/*/*", "manifests/*/*")
KEPT_STEPS = 2
CLEAR = {"allow_http": True}  # a server of this machine
NEVER = 86_400.0  # seconds between two heartbeats: no lease runs out unless a rule says so
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)

keys = st.sampled_from(KEYS)
views = st.sampled_from(["here", "there"])
picks = st.integers(0, 99)  # which of those that the model has
calls = st.integers(1, 48) | st.integers(33, 44)  # of a write, which makes about 45; its commit is near the end
save_calls = st.integers(1, 34) | st.integers(18, 28)  # the same of a checkpoint


PLACING = {"link", "rename", "put"}  # the calls by which a record gets its name


class Made(NamedTuple):
    """What the model knows of a committed artifact."""

    data: str  # the name of its data folder
    damaged: str | None = None  # the file that was damaged since


class Died(BaseException):
    """Raised by every call of a process that is dead: nothing catches it."""


class Refusal(WatchedDisk):
    """A disk and a bucket that take nothing more from call `fails_at` on; what is there can still be deleted."""

    def __init__(self, patch: pytest.MonkeyPatch, root: Path, fails_at: int) -> None:
        super().__init__(patch, root, fails_at=fails_at, once=False)
        for name in ("put", "copy", "delete"):
            patch.setattr(obstore, name, functools.partial(self._request, name, getattr(obstore, name)))

    def has_put(self, name: str) -> bool:
        """Whether the record `name` got its place."""
        return any((op.target or op.path).endswith(name) for op in self.log if op.kind in PLACING)

    def _request(self, kind: str, call: Callable[..., Any], store: Any, name: str, *args: Any, **named: Any) -> Any:
        try:
            self.count("unlink" if kind == "delete" else "write", None)
        except OSError as error:
            raise PermissionDeniedError(str(error)) from error
        answer = call(store, name, *args, **named)
        self.log.append(Op(kind, name))
        return answer


class Death(Refusal):
    """A process that dies at call `fails_at`: neither that call nor a later one is carried out."""

    def count(self, kind: str, path: str | None) -> None:
        if kind == "close":
            return
        self.kinds.append(kind)
        if self.fails_at is not None and len(self.kinds) >= self.fails_at:
            self.refused.append(kind)
            raise Died


@functools.cache
def latents(key: str) -> Tensor:
    """The array of an artifact; those of two keys differ in size and value, and some in dtype."""
    number = KEYS.index(key)
    drawn = torch.randn((1, 4, 4 + number, 4), generator=torch.Generator().manual_seed(number))
    return drawn.to(torch.bfloat16 if number % 2 else torch.float32)


def parents(key: str) -> dict[str, str]:
    """What an artifact is made from: the one before it."""
    number = KEYS.index(key)
    return {"latents": KEYS[number - 1]} if number else {}


def note(key: str) -> bytes:
    """The file of an artifact."""
    return f"artifact {KEYS.index(key)}".encode()


def check_contents(read: dict[str, Tensor], key: str) -> None:
    assert read.keys() == {"latents"}
    assert read["latents"].dtype == latents(key).dtype
    assert torch.equal(read["latents"], latents(key))


def last(name: str) -> str:
    return name.rpartition("/")[2]


class StoreMachine(RuleBasedStateMachine):
    """A store as two machines see it, `here` and `there`, and the model of it. On a disk both see one folder."""

    def __init__(self, backend: Callable[[str], Backend], base: Path, processes: Processes) -> None:
        super().__init__()
        base.mkdir()
        self.backend, self.base, self.processes = backend, base, processes
        self.count, self.turns = itertools.count(), itertools.count()
        self.stores = {name: ArtifactStore(backend(name)) for name in ("here", "there")}
        backend = self.stores["here"].backend
        self.bucket = S3Store.from_url(backend.url, client_options=CLEAR) if isinstance(backend, Bucket) else None
        self.committed: dict[str, Made] = {}
        self.unreadable: set[str] = set()  # keys whose manifest was damaged, until somebody looks for them
        self.orphans: set[str] = set()  # data folders that no manifest refers to
        self.trash = 0
        self.steps: dict[str, dict[int, int]] = {}  # of each key: step → the number of the save
        self.spoilt: set[tuple[str, int]] = set()  # checkpoints that were damaged
        self.leases: dict[str, ExitStack] = {}
        self.dead: set[str] = set()  # keys whose lease a dead process left in the bucket
        self.runs: dict[str, tuple[bool, set[str]]] = {}  # of each run: whether it is done, and the keys of its plan
        self.found: list[Leftover] = []  # by the last survey

    def teardown(self) -> None:
        for lease in self.leases.values():
            lease.close()
        shutil.rmtree(self.base)

    # Write and commit

    @rule(key=keys, at=views)
    def write(self, key: str, at: str) -> None:
        self._is_committed(key, self._write(at, key))

    @rule(key=keys, first=views, second=views)
    def write_twice_at_once(self, key: str, first: str, second: str) -> None:
        """Of two writers of one key the first to commit wins, and the other gets its artifact."""
        with self._writing(first, key) as slower:
            self._fill(slower, key)
            self._is_committed(key, self._write(second, key))
        self._is_committed(key, slower)

    @rule(key=keys, at=views, fails_at=calls)
    def die_in_a_write(self, key: str, at: str, fails_at: int) -> None:
        """A process that dies while it writes leaves its own data folder at the most; unless it had committed."""
        begun: list[Writer] = []
        with pytest.MonkeyPatch.context() as patch:
            death = Death(patch, self.base, fails_at)
            with suppress(Died):
                self._write(at, key, begun)
        if death.refused and not death.has_put(f"manifests/{key[:2]}/{key}.json"):
            self._look_again({key} & self.unreadable, {writer.folder.name for writer in begun})
        else:
            self._is_committed(key, begun[0], is_told=not death.refused)
            for store in self.stores.values():
                assert (store.verify(key) is None) == self._is_sound(key)

    @rule(key=keys, at=views, fails_at=calls)
    def be_refused_in_a_write(self, key: str, at: str, fails_at: int) -> None:
        """A write that the disk or the bucket refuses raises and promises nothing. A disk holds nothing of it."""
        begun: list[Writer] = []
        with pytest.MonkeyPatch.context() as patch:
            refusal = Refusal(patch, self.base, fails_at)
            try:
                self._write(at, key, begun)
            except StorageError:
                assert refusal.refused
            else:
                assert not refusal.refused
        if not refusal.refused:
            return self._is_committed(key, begun[0])
        self._look_again({key} & self.unreadable, {w.folder.name for w in begun} if self.bucket else set())

    # Find and read

    @rule(key=keys, at=views)
    def find(self, key: str, at: str) -> None:
        self._find(at, key)

    @rule(key=keys, at=views)
    def read(self, key: str, at: str) -> None:
        if self._is_sound(key):
            check_contents(self.stores[at].read(key), key)
            return
        with pytest.raises(self._error(key), match=key):
            self.stores[at].read(key)
        self._is_in_the_trash(key)

    @rule(key=keys, at=views)
    def read_a_file(self, key: str, at: str) -> None:
        if self._is_sound(key, f"files/{NOTE}"):
            assert self.stores[at].read_file(key, NOTE) == note(key)
            assert self.stores[at].file_path(key, NOTE).read_bytes() == note(key)
            return
        with pytest.raises(self._error(key), match=key):
            self.stores[at].read_file(key, NOTE)
        self._is_in_the_trash(key)

    @rule()
    def audit(self) -> None:
        """A machine that has no copies yet finds every artifact whole or says what is damaged; this moves nothing."""
        store = ArtifactStore(self.backend(f"fresh-{next(self.count)}"))
        assert store.list_keys() == sorted(self.committed.keys() | self.unreadable)
        for key in (*self.committed, *self.unreadable):
            damage = store.verify(key)
            assert (damage is None) == self._is_sound(key)
            if damage is None:
                check_contents(store.read(key), key)
                assert store.read_file(key, NOTE) == note(key)
        if self.bucket is not None:
            held = {last(name).removesuffix(".json") for name in store.backend.names("locks/*.json")}
            assert held == self.leases.keys() | self.dead

    # Damage

    @precondition(lambda self: any(map(self._is_sound, KEYS)))
    @rule(pick=picks, file=picks, how=st.sampled_from(["flip", "cut", "lose"]), position=st.integers(0, 5000))
    def damage_a_file(self, pick: int, file: int, how: str, position: int) -> None:
        key = self._one_of(filter(self._is_sound, KEYS), pick)
        manifest = self._manifest(key)
        name = self._one_of(manifest.files, file)
        self._damage(f"data/{manifest.data}", name, how, position)
        self.committed[key] = Made(manifest.data, name)

    @precondition(lambda self: self.committed)
    @rule(pick=picks, how=st.sampled_from(["flip", "cut"]), position=st.integers(0, 5000))
    def damage_a_manifest(self, pick: int, how: str, position: int) -> None:
        key = self._one_of(self.committed, pick)
        self._damage(f"manifests/{key[:2]}", f"{key}.json", how, position)
        self.orphans.add(self.committed.pop(key).data)
        self.unreadable.add(key)

    @precondition(lambda self: self.bucket is not None and any(map(self._is_sound, KEYS)))
    @rule(pick=picks, file=picks, at=views, position=st.integers(0, 5000))
    def damage_a_copy(self, pick: int, file: int, at: str, position: int) -> None:
        """The bucket still has the right bytes: nobody notices."""
        manifest = self._manifest(self._one_of(filter(self._is_sound, KEYS), pick))
        path = self.stores[at].folder(manifest) / self._one_of(manifest.files, file)
        if path.exists():
            path.write_bytes(changed(path.read_bytes(), "flip", position))

    @precondition(lambda self: any(self._sound_steps()))
    @rule(pick=picks, file=picks, how=st.sampled_from(["flip", "cut"]), position=st.integers(0, 5000))
    def damage_a_checkpoint(self, pick: int, file: int, how: str, position: int) -> None:
        key, step = self._one_of(self._sound_steps(), pick)
        backend, folder, record = self.stores["here"].backend, f"steps/{key}", f"step-{step:06d}.json"
        data = StepRecord.from_bytes(backend.get(f"{folder}/{record}"))
        self._damage(
            folder, self._one_of([record, *(f"{data.data}/{name}" for name in data.files)], file), how, position
        )
        self.spoilt.add((key, step))

    # Leases

    @rule(key=keys, at=views)
    def take_a_lease(self, key: str, at: str) -> None:
        with ExitStack() as stack:
            if key in self.leases or key in self.dead:
                with pytest.raises(LeaseTimeoutError):
                    stack.enter_context(self.stores[at].lease(key, timeout=0))
                return
            stack.enter_context(self.stores[at].lease(key, timeout=0))
            self.leases[key] = stack.pop_all()

    @precondition(lambda self: self.leases)
    @rule(pick=picks)
    def give_a_lease_back(self, pick: int) -> None:
        self.leases.pop(self._one_of(self.leases, pick)).close()

    @rule(key=keys, at=views)
    def work(self, key: str, at: str) -> None:
        """What the runner of stages does: take the lease, look again, go on from a checkpoint, commit, clear."""
        if key in self.leases or key in self.dead:
            return
        with self.stores[at].lease(key, timeout=0):
            if self._find(at, key) is None:
                self._resume(at, key)
                self._is_committed(key, self._write(at, key))
                self._clear(at, key)

    @precondition(lambda self: len(self.leases.keys() | self.dead) < len(KEYS))
    @rule(pick=picks, at=views)
    def die_with_a_lease(self, pick: int, at: str) -> None:
        """The kernel frees a dead process's lease at once; in a bucket it stays until it has been silent for long."""
        key = self._one_of([key for key in KEYS if key not in self.leases.keys() | self.dead], pick)
        name, number = self.stores["here"].backend, next(self.count)
        said = f"{name.url} {self.base / f'holder-{number}'}" if isinstance(name, Bucket) else str(name.root)
        holder = self.processes.start("hold", said, report := self.base / f"report-{number}", key)
        wait_for(report, 1)
        with pytest.raises(LeaseTimeoutError), self.stores[at].lease(key, timeout=0):
            pytest.fail("two hold one lease")
        self.processes.kill(holder)
        if self.bucket is not None:
            self.dead.add(key)

    @precondition(lambda self: self.dead)
    @rule(pick=picks, at=views)
    def take_a_dead_lease_over(self, pick: int, at: str) -> None:
        key, bucket = self._one_of(self.dead, pick), self.stores[at].backend
        with pytest.raises(LeaseTimeoutError), self.stores[at].lease(key, timeout=0):
            pytest.fail("its holder was heard of only now")
        assert isinstance(bucket, Bucket)
        seen = bucket.sightings[f"locks/{key}.json"]
        bucket.sightings[f"locks/{key}.json"] = Sighting(seen.tag, seen.since - 3 * NEVER)  # as if that long had passed
        with self.stores[at].lease(key, timeout=0):
            self.dead.remove(key)

    # Checkpoints

    @rule(key=keys, at=views, is_again=st.booleans())
    def save(self, key: str, at: str, is_again: bool) -> None:
        step, number = self._next_step(key, is_again), next(self.count)
        self._save(at, key, step, number)
        self._is_saved(key, step, number)
        self._has_steps(key, set(sorted(self.steps[key])[-KEPT_STEPS:]))

    @rule(key=keys, at=views, is_again=st.booleans(), fails_at=save_calls)
    def die_in_a_save(self, key: str, at: str, is_again: bool, fails_at: int) -> None:
        """The old checkpoint or the new one is there, and of older ones perhaps more than are kept."""
        step, number = self._next_step(key, is_again), next(self.count)
        with pytest.MonkeyPatch.context() as patch:
            death = Death(patch, self.base, fails_at)
            with suppress(Died):
                self._save(at, key, step, number)
        if not death.refused or death.has_put(f"steps/{key}/step-{step:06d}.json"):
            self._is_saved(key, step, number)
        old, left = self.steps.get(key, {}), set(Checkpoints(self.stores[at], key).steps())
        assert set(sorted(old)[-KEPT_STEPS:]) <= left <= old.keys()
        self._has_steps(key, left)

    @rule(key=keys, at=views)
    def resume(self, key: str, at: str) -> None:
        self._resume(at, key)

    @rule(key=keys, at=views)
    def clear(self, key: str, at: str) -> None:
        self._clear(at, key)

    # Runs and prune

    @rule(run=st.sampled_from(RUNS), plan=st.sets(keys, min_size=1), at=views)
    def begin_a_run(self, run: str, plan: set[str], at: str) -> None:
        calls = tuple(PlannedCall(stage="decode", version=1, key=key) for key in sorted(plan))
        record = RunRecord(run=run, spec={}, plan=calls, created=datetime.now(UTC))
        if run in self.runs:
            with pytest.raises(RunExistsError):
                Runs(self.stores[at].backend).create(record)
            return
        Runs(self.stores[at].backend).create(record)
        self.runs[run] = False, plan

    @precondition(lambda self: self.runs)
    @rule(pick=picks, at=views, is_done=st.booleans())
    def end_a_run(self, pick: int, at: str, is_done: bool) -> None:
        run, runs = self._one_of(self.runs, pick), Runs(self.stores[at].backend)
        runs.save(runs.load(run).revised(state="done" if is_done else "interrupted"))
        self.runs[run] = is_done, self.runs[run][1]

    @rule(at=views, ages=st.sampled_from(["all", "all", "settled", "old"]))
    def look_for_leftovers(self, at: str, ages: str) -> None:
        """A dry prune says what may go: all that no run needs that is not done; of what is young, only what is sure."""
        store, before = self.stores[at], datetime.now(UTC) + (-HOUR if ages == "old" else MINUTE)
        records = Runs(store.backend).list()
        keep = {call.key for record in records for call in record.plan if record.state != "done"}
        assert keep == set().union(*(plan for is_done, plan in self.runs.values() if not is_done))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(storage.prune, "GRACE", -MINUTE if ages == "all" else HOUR)
            self.found = survey(store, keep, before)
        begun = self._lying("steps")
        expected = [("checkpoint", key) for key in begun & self.committed.keys()]
        if ages != "old":
            expected += [("artifact", key) for key in self.committed.keys() - keep]
            expected += [("checkpoint", key) for key in begun - self.committed.keys() - keep]
            expected += [("trash", name) for name in self._lying("trash")]
        if ages == "all":
            expected += [("orphan", name) for name in self.orphans]
            expected += [
                ("partial", path.name) for path in store.root.glob("[!d]*/*/.*.partial") if not self.bucket is not None
            ]
        assert sorted((one.kind, one.name) for one in self.found) == sorted(expected)

    @rule(at=views, is_old=st.booleans())
    def prune(self, at: str, is_old: bool) -> None:
        """All that a survey said goes and nothing else, but for what is leased or was made again since."""
        if not is_old:
            self.look_for_leftovers(at=at, ages="all")
        gone, left = sweep(self.stores[at], self.found)
        stays = [one for one in self.found if not self._may_go(one)]
        assert (left, gone) == (stays, [one for one in self.found if one not in stays])
        for one in gone:
            self._is_gone(one)
        self.found = []

    @precondition(lambda self: self.committed)
    @rule(at=views, fails_at=st.integers(1, 24))
    def die_in_a_prune(self, at: str, fails_at: int) -> None:
        """What a prune did not come to is as before; an artifact that it began to delete is not found."""
        self.look_for_leftovers(at=at, ages="all")
        going = [one for one in self.found if self._may_go(one)]
        with pytest.MonkeyPatch.context() as patch:
            death = Death(patch, self.base, fails_at)
            with suppress(Died):
                sweep(self.stores[at], self.found)
        if not death.refused:
            for one in going:
                self._is_gone(one)
        else:
            self._look_again({one.name for one in going if one.kind == "artifact"}, set(), is_prune=True)
            assert all((self.stores[at].verify(key) is None) == self._is_sound(key) for key in self.committed)
            for key in {one.name for one in going if one.kind == "checkpoint"} & self.steps.keys():
                left = set(Checkpoints(self.stores[at], key).steps())
                assert left <= self.steps[key].keys()
                self._has_steps(key, left)
        self.found = []

    # What holds after every step

    @invariant()
    def what_lies_there_is_what_the_model_has(self) -> None:
        names = self._names()
        found = {part: {name[1] for name in names if name[0] == part} for part in ("data", "trash")}
        assert found["data"] == {made.data for made in self.committed.values()} | self.orphans
        assert len(found["trash"]) == self.trash
        records = {(name[1], name[2]) for name in names if name[0] == "steps" and name[-1].startswith("step-")}
        assert records == {(key, f"step-{step:06d}.json") for key, steps in self.steps.items() for step in steps}
        manifests = {name[2] for name in names if name[0] == "manifests" and name[2][0] != "."}
        assert manifests == {f"{key}.json" for key in self.committed.keys() | self.unreadable}

    @invariant()
    def only_what_is_committed_is_found(self) -> None:
        turn = next(self.turns)
        store, key = self.stores["there" if turn % 2 else "here"], KEYS[turn // 2 % len(KEYS)]
        manifest = store.peek(key)
        assert (manifest is not None) == (key in self.committed)
        if manifest is not None:
            assert (manifest.key, manifest.data, manifest.parents) == (key, self.committed[key].data, parents(key))

    # The store's side

    def _writing(self, at: str, key: str) -> Any:
        return self.stores[at].writing(key, stage="decode", version=1, parents=parents(key))

    def _fill(self, writer: Writer, key: str) -> None:
        writer.put("latents", latents(key), "BChw")
        writer.put_file(NOTE, note(key))

    def _write(self, at: str, key: str, begun: list[Writer] | None = None) -> Writer:
        with self._writing(at, key) as writer:
            if begun is not None:
                begun.append(writer)
            self._fill(writer, key)
        return writer

    def _manifest(self, key: str) -> Manifest:
        manifest = self.stores["here"].peek(key)
        assert manifest is not None
        return manifest

    def _find(self, at: str, key: str) -> Manifest | None:
        found = self.stores[at].find(key)
        assert (found is not None) == (key in self.committed)
        if key in self.unreadable:
            self._is_in_the_trash(key)
        return found

    def _save(self, at: str, key: str, step: int, number: int) -> None:
        Checkpoints(self.stores[at], key).save(step, {"latents": torch.full((2, 3), float(number))}, {"save": number})

    def _resume(self, at: str, key: str) -> None:
        """The newest checkpoint that is sound; those that are not, on the way there, are moved to the trash."""
        newest, steps = Checkpoints(self.stores[at], key).newest(), dict(self.steps.get(key, {}))
        while steps and (key, max(steps)) in self.spoilt:
            steps.pop(max(steps))
            self.trash += 1
        self._has_steps(key, set(steps))
        if not steps:
            assert newest is None
            return
        assert newest is not None
        assert (newest.step, newest.meta) == (max(steps), {"save": steps[max(steps)]})
        assert torch.equal(newest.tensors["latents"], torch.full((2, 3), float(steps[max(steps)])))

    def _clear(self, at: str, key: str) -> None:
        Checkpoints(self.stores[at], key).clear()
        self._has_steps(key, set())

    def _names(self) -> set[tuple[str, ...]]:
        """What lies in the backend, seen without the store: the first three parts of every name."""
        if self.bucket is not None:
            found = (str(one["path"]) for batch in obstore.list(self.bucket) for one in batch)
            return {tuple(name.split("/")[:3]) for name in found}
        root = self.stores["here"].root
        found = (path for pattern in PATTERNS for path in root.glob(pattern))
        return {path.relative_to(root).parts for path in found}

    def _lying(self, part: str) -> set[str]:
        return {name[1] for name in self._names() if name[0] == part}

    def _damage(self, folder: str, name: str, how: str, position: int) -> None:
        """Change bytes in the backend. Copies may go at any time; here they go now, so that the damage is seen."""
        backend = self.stores["here"].backend
        if how == "lose":
            backend.delete(f"{folder}/{name}")
        else:
            backend.put(f"{folder}/{name}", changed(backend.get(f"{folder}/{name}"), how, position))
        if self.bucket is not None:
            for store in self.stores.values():
                shutil.rmtree(store.root / folder, ignore_errors=True)

    # The model's side

    def _one_of(self, found: Any, pick: int) -> Any:
        options = sorted(found)
        return options[pick % len(options)]

    def _is_sound(self, key: str, file: str | None = None) -> bool:
        """Whether all of an artifact, or one file of it, is as it was committed."""
        made = self.committed.get(key)
        return made is not None and (made.damaged is None or (file is not None and made.damaged != file))

    def _error(self, key: str) -> type[StorageError]:
        return DamagedArtifactError if key in self.committed or key in self.unreadable else ArtifactNotFoundError

    def _is_committed(self, key: str, writer: Writer, is_told: bool = True) -> None:
        if key in self.unreadable:
            self._is_in_the_trash(key)
        made = self.committed.setdefault(key, Made(writer.folder.name))
        assert not is_told or writer.manifest.data == made.data

    def _is_in_the_trash(self, key: str) -> None:
        """Somebody saw that an artifact was damaged, if there was one."""
        if self.committed.pop(key, None) is not None or key in self.unreadable:
            self.unreadable.discard(key)
            self.trash += 1

    def _sound_steps(self) -> set[tuple[str, int]]:
        return {(key, step) for key, steps in self.steps.items() for step in steps} - self.spoilt

    def _next_step(self, key: str, is_again: bool) -> int:
        newest = max(self.steps.get(key, {}), default=0)
        return newest if is_again else newest + 1

    def _is_saved(self, key: str, step: int, number: int) -> None:
        self.steps.setdefault(key, {})[step] = number
        self.spoilt.discard((key, step))

    def _has_steps(self, key: str, left: set[int]) -> None:
        """Of the checkpoints of a key these are left."""
        kept = {step: number for step, number in self.steps.pop(key, {}).items() if step in left}
        self.steps |= {key: kept} if kept else {}
        self.spoilt = {(of, step) for of, step in self.spoilt if of != key or step in left}

    def _may_go(self, one: Leftover) -> bool:
        if one.kind not in ("artifact", "checkpoint"):
            return True
        made, is_held = self.committed.get(one.name), one.name in self.leases or one.name in self.dead
        return not is_held and (one.kind == "checkpoint" or (made is not None and made.data == one.data))

    def _is_gone(self, one: Leftover) -> None:
        if one.kind == "artifact":
            del self.committed[one.name]
        elif one.kind == "checkpoint":
            self._has_steps(one.name, set())
        elif one.kind == "orphan":
            self.orphans.discard(one.name)
        elif one.kind == "trash":
            self.trash -= 1

    def _look_again(self, may_go: set[str], may_lie: set[str], *, is_prune: bool = False) -> None:
        """After a failure: only artifacts of `may_go` are lost, and only data folders of `may_lie` came."""
        listed, trash = set(self.stores["here"].list_keys()), len(self._lying("trash"))
        lost = (self.committed.keys() | self.unreadable) - listed
        assert lost <= may_go
        assert not listed - self.committed.keys() - self.unreadable
        may_lie = may_lie | {self.committed.pop(key).data for key in sorted(lost) if key in self.committed}
        self.unreadable -= lost
        orphans = self._lying("data") - {made.data for made in self.committed.values()}
        assert orphans <= self.orphans | may_lie
        assert is_prune or orphans >= self.orphans
        assert trash <= self.trash if is_prune else self.trash <= trash <= self.trash + len(may_go)
        self.orphans, self.trash = orphans, trash
        if self.bucket is not None:
            held = {last(name).removesuffix(".json") for name in self.stores["here"].backend.names("locks/*.json")}
            assert self.leases.keys() <= held
            self.dead = held - self.leases.keys()


def changed(data: bytes, how: str, position: int) -> bytes:
    """The same bytes with one of them flipped, or cut off there."""
    at = position % len(data)
    return data[:at] if how == "cut" else data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def check(
    backend_of: Callable[[int, Path], Callable[[str], Backend]], tmp_path: Path, processes: Processes, few: int
) -> None:
    """Run the machine, each time on the backend that `backend_of` makes of a number and a new folder."""
    numbers = itertools.count()

    def machine() -> StoreMachine:
        base = tmp_path / str(number := next(numbers))
        return StoreMachine(backend_of(number, base), base, processes)

    run_state_machine_as_test(
        machine,
        settings=settings(max_examples=EXAMPLES or few, stateful_step_count=50, derandomize=not EXAMPLES),
    )


@pytest.fixture(autouse=True)
def _nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """No lease runs out, and no call waits for the disk: what a power cut leaves is tested elsewhere."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(locks, "HEARTBEAT_SECONDS", NEVER)
    monkeypatch.setattr(bucket_lease, "HEARTBEAT_SECONDS", NEVER)


@pytest.mark.parametrize("few", [8, pytest.param(40, marks=pytest.mark.thorough)])
def test_a_folder_does_what_the_model_says(tmp_path: Path, processes: Processes, few: int) -> None:
    check(lambda _, base: lambda name: Disk(base / "store"), tmp_path, processes, few)


@pytest.mark.thorough
@pytest.mark.parametrize("few", [3, pytest.param(15, marks=pytest.mark.thorough)])
def test_a_bucket_does_what_the_model_says(tmp_path: Path, processes: Processes, few: int) -> None:
    place = f"s3://studio/machine-{few}"
    check(lambda number, base: lambda name: Bucket(f"{place}-{number}", base / name), tmp_path, processes, few)
