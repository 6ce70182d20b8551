from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from storage import Attempt, Manifest, PlannedCall, RunRecord, UnsupportedFormatError, fingerprint
from storage.manifest import seal, unseal

NOW = datetime(2026, 11, 23, 20, 0, tzinfo=UTC)
MANIFEST = Manifest(key=fingerprint(1), stage="decode", version=2, data="0" * 32, created=NOW, seconds=1.5e-7)
documents = st.dictionaries(
    st.text(max_size=4),
    st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8) | st.lists(st.booleans()),
    max_size=4,
).filter(lambda document: "checksum" not in document)


@given(documents)
def test_what_was_sealed_reads_back(document: dict[str, Any]) -> None:
    assert unseal(seal(document)) == document


def test_every_flipped_bit_of_a_record_is_noticed() -> None:
    """All of them: also those that leave JSON with the same meaning, as the `e` of a float or a hex digit."""
    sealed = MANIFEST.revised(params={"prompt": "naïve ☾", "sigma": 1e-05}).to_bytes()
    for bit in range(8 * len(sealed)):
        data = bytearray(sealed)
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError):  # noqa: PT011 - the JSON parser, the decoder or the checksum, all are right
            Manifest.from_bytes(bytes(data))


@given(st.data())
def test_any_cut_or_spliced_record_is_noticed(data: st.DataObject) -> None:
    sealed = MANIFEST.to_bytes()
    cut = data.draw(st.integers(0, len(sealed) - 1))
    extra = data.draw(st.binary(min_size=1, max_size=3))
    for damaged in (sealed[:cut], sealed[cut:] if cut else b"", sealed[:cut] + extra + sealed[cut:]):
        with pytest.raises(ValueError):  # noqa: PT011 - as above
            Manifest.from_bytes(damaged)


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"null", b'{"checksum": 1}', b'{"checksum": "0"}', b"\xff\xfe"])
def test_other_json_is_no_record(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"checksum|Expecting|decode"):
        unseal(data)


def test_a_record_survives_the_round_trip() -> None:
    manifest = MANIFEST.revised(resumed_at=[12, 55], savings=["split guidance"], params={"a": None, "b": [1, 2.0]})
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest
    assert manifest.resumed_at == (12, 55)
    assert manifest.params == {"a": None, "b": [1, 2.0]}
    assert b'"prompt": "gr\xc3\xbcn"' in MANIFEST.revised(params={"prompt": "grün"}).to_bytes()  # legible with `cat`


def test_savings_are_read_under_their_old_name() -> None:
    document = unseal(MANIFEST.revised(savings=["split guidance"]).to_bytes())
    assert document["savings"] == ["split guidance"]
    before = {**{name: value for name, value in document.items() if name != "savings"}, "measures": ["split guidance"]}
    assert Manifest.from_bytes(seal(before)).savings == ("split guidance",)


def test_a_later_format_is_not_called_damage() -> None:
    document = unseal(MANIFEST.to_bytes())
    for changed in ({**document, "format_version": 2}, {**document, "colour_profile": "srgb"}):
        with pytest.raises(UnsupportedFormatError, match="is intact, but only format 1 is known"):
            Manifest.from_bytes(seal(changed))


@pytest.mark.parametrize(
    "changes",
    [
        {"key": "../../etc/passwd"},
        {"data": "../" + "0" * 29},
        {"files": {"../outside": {"size": 1, "blake2b": "0" * 64}}},
        {"files": {"/etc/passwd": {"size": 1, "blake2b": "0" * 64}}},
        {"files": {"a/./b": {"size": 1, "blake2b": "0" * 64}}},
        {"files": {"a": {"size": -1, "blake2b": "0" * 64}}},
        {"arrays": {"a/b": {"path": "a", "shape": [], "dtype": "", "stored": "", "axes": [], "chunks": []}}},
        {"parents": {"latents": "not a key"}},
        {"seconds": float("nan")},
        {"seconds": -1.0},
        {"params": {"a": {1, 2}}},
        {"created": datetime(2026, 1, 1)},
        {"unknown": 1},
    ],
)
def test_bounds_of_a_manifest(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        MANIFEST.revised(**changes)


def test_records_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        MANIFEST.stage = "encode"  # type: ignore[misc]
    assert MANIFEST.revised(stage="encode").stage == "encode"
    assert MANIFEST.stage == "decode"


def test_a_run_record_grows_by_revision() -> None:
    call = PlannedCall(stage="base_denoise", version=1, key=fingerprint(2), parents={"conditioning": fingerprint(1)})
    run = RunRecord(run="night-1", spec={"prompt": "a disc"}, plan=[call], created=NOW)
    run = run.revised(attempts=[*run.attempts, Attempt(started=NOW, host="studio", process=7)])
    run = run.revised(state="failed", error="no memory", attempts=[run.attempts[0].revised(state="failed")])
    assert RunRecord.from_bytes(run.to_bytes()) == run
    assert run.plan[0].key == fingerprint(2)
    with pytest.raises(ValidationError, match="state"):
        run.revised(state="perhaps")


def test_times_keep_their_zone() -> None:
    there = MANIFEST.revised(created=NOW.astimezone(timezone(timedelta(hours=9))))
    assert Manifest.from_bytes(there.to_bytes()).created == NOW
    assert json.loads(there.to_bytes())["created"] == "2026-11-24T05:00:00+09:00"
