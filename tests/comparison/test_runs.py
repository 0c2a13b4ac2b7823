"""Runs by what a user writes: stores, result folders, printed profiles, logs."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness import verdict
from harness.comparison.runs import find
from harness.errors import ConfigError
from harness.records import ImportedSummary, KernelTime, Profile
from harness.report import plain
from harness.store import Store
from tests.test_stats import measurement
from tests.trtexec.logs import log_text, write_log


def taken(label, sample_s, *, day=1, campaign="profile", sha="0"):
    return replace(
        measurement([sample_s, sample_s], [0, 1], label=label, campaign=campaign),
        taken_at=f"2026-01-{day:02}T12:00:00Z",
        network_sha256=sha * 64,
    )


def profile(sha="0", latency_s=0.001):
    one = KernelTime(name="k", op="Conv", node="/k", latency_s=latency_s, samples_s=(0.001, 0.002))
    return Profile(
        network_sha256=sha * 64,
        runtime="fake",
        runtime_version="1",
        kernels=(one,),
        runs_s=(0.002, 0.003),
    )


@pytest.fixture
def store(tmp_path) -> Path:
    """Network a on three days, the second time with a profile, and b on the third."""
    path = tmp_path / "boardfit.db"
    with Store(path) as kept:
        kept.add(taken("a.onnx", 0.001))
        kept.add(taken("a.onnx", 0.002, day=2))
        kept.add(profile())
        kept.add(taken("b.onnx", 0.004, day=3, sha="b", campaign="night"))
        kept.add(taken("a.onnx", 0.003, day=3, campaign="night"))
    return path


@pytest.mark.parametrize(
    ("reference", "sample_s"),
    [
        ("", 0.003),
        ("~1", 0.004),
        ("~3", 0.001),
        ("#a.onnx", 0.003),
        ("#a.onnx~1", 0.002),
        ("#b.onnx", 0.004),
        ("#night", 0.003),
        ("#night~1", 0.004),
        ("#2026-01-02", 0.002),
        ("#bbbbbbbb", 0.004),
    ],
)
def test_a_run_of_a_store_is_named_by_label_campaign_day_hash_or_age(store, reference, sample_s):
    assert find(f"{store}{reference}").record.samples_s[0] == sample_s


def test_the_profile_that_followed_a_measurement_is_its_own(store):
    assert find(f"{store}#a.onnx~1").profile == profile()
    assert find(f"{store}#a.onnx").profile is None
    assert find(f"{store}#b.onnx").profile is None


def test_profiles_of_two_copies_of_a_network_are_each_of_its_own_run(tmp_path):
    with Store(tmp_path / "twins.db") as kept:
        kept.add(taken("a.onnx", 0.001, campaign="both"))
        kept.add(taken("copy.onnx", 0.002, campaign="both"))
        for latency_s in (0.001, 0.002):
            kept.add(replace(profile(latency_s=latency_s), campaign="both"))
    for label, latency_s in (("a.onnx", 0.001), ("copy.onnx", 0.002)):
        kernels = find(f"{tmp_path}/twins.db#{label}").profile.kernels
        assert kernels[0].latency_s == latency_s


def test_which_of_several_runs_was_taken_is_said(store):
    assert find(str(store)).note == "the latest of 4 that match"
    assert find(f"{store}#a.onnx~2").note == "2 before the latest of 3 that match"
    assert find(f"{store}#b.onnx").note == ""


@pytest.mark.parametrize("reference", ["#c.onnx", "~4", "#b.onnx~1"])
def test_a_run_that_is_not_there_is_refused_with_those_that_are(store, reference):
    with pytest.raises(ConfigError, match=r"holds 4 runs, of which .* there are a\.onnx, b\.onnx"):
        find(f"{store}{reference}")


def test_a_store_without_runs_says_how_to_get_one(tmp_path):
    Store(tmp_path / "empty.db").close()
    with pytest.raises(ConfigError, match="boardfit profile"):
        find(str(tmp_path / "empty.db"))


@pytest.mark.parametrize("reference", ["gone.db", "gone.db#a", "gone~2", "", "#", "~1", "#a~1"])
def test_what_does_not_exist_is_refused_and_not_created(tmp_path, monkeypatch, reference):
    monkeypatch.chdir(tmp_path)
    if reference:
        with pytest.raises(ConfigError, match="does not exist"):
            find(reference)
    else:
        with pytest.raises(ConfigError):
            find(reference)
    assert list(tmp_path.iterdir()) == []


def test_a_printed_profile_is_the_run_that_was_printed(tmp_path):
    one, kernels = taken("a.onnx", 0.002), profile()
    path = tmp_path / "printed.json"
    path.write_text(json.dumps(plain.profile_json(one, kernels, verdict=verdict.judge(one))))
    found = find(str(path))
    assert found.record == one
    assert found.profile == replace(kernels, trace=None)


@pytest.mark.parametrize(
    "text", ["{", "{}", '{"measurement": 1}', '{"measurement": {}, "kernels": []}', '{"a": NaN}']
)
def test_json_that_is_no_profile_is_refused_by_name(tmp_path, text):
    (tmp_path / "odd.json").write_text(text)
    with pytest.raises(ConfigError, match=r"odd\.json is not what boardfit profile --json prints"):
        find(str(tmp_path / "odd.json"))


def test_a_log_is_a_run_and_one_of_several_is_named_by_its_network(tmp_path):
    path = tmp_path / "two.log"
    path.write_text(log_text((1.0, 2.0), net="a.onnx") + log_text((3.0, 4.0), net="b.onnx"))
    assert find(str(path)).record.label == "b.onnx"
    assert find(f"{path}#a.onnx").record.label == "a.onnx"
    assert find(f"{path}~1").record.label == "a.onnx"


def test_an_imported_log_is_a_run_of_its_store(tmp_path):
    from harness.run_commands import import_logs

    log = write_log(tmp_path / "a.log", (1.0, 2.0, 3.0))
    options = dict.fromkeys(("network", "times", "profile", "board", "power_mode"))
    for known in (False, True):
        (imported,) = import_logs([log], store=tmp_path / "s.db", **options)
        assert imported.known is known
    found = find(f"{tmp_path}/s.db")
    assert isinstance(found.record, ImportedSummary)
    assert found.note == ""  # imported twice, it is there once


def test_a_folder_that_no_fit_wrote_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no result folder.*lacks result\.json"):
        find(str(tmp_path))


def test_the_final_campaigns_of_a_fit_are_one_run(tmp_path):
    (tmp_path / "result.json").write_text("{}")
    with Store(tmp_path / "measurements.db") as kept:
        kept.add(taken("joint 1", 0.002, campaign="joint 1"))
        kept.add(profile())
        for number in (1, 2):
            campaign = f"final campaign {number}"
            kept.add(taken("baseline", 0.008, campaign=campaign, sha="b", day=number))
            kept.add(taken("joint 1", 0.001 * number, campaign=campaign, day=number))
    found = find(f"{tmp_path}#joint 1")
    # Two calls of 1 ms in rounds 0 and 1, two of 2 ms in the two rounds behind them.
    assert found.record.samples_s == (0.001, 0.001, 0.002, 0.002)
    assert found.record.rounds == (0, 1, 2, 3)
    # The profile that the fit took before its final measurement.
    assert found.profile == profile()
    assert found.note == "joint 1, 2 final campaigns"
    with pytest.raises(ConfigError, match=r"result\.json is damaged"):
        find(str(tmp_path))


def test_a_damaged_store_is_refused_by_name(store, tmp_path):
    content = bytearray(store.read_bytes())
    # Beyond the header's page everything is overwritten.
    content[4096:] = b"\x5a" * (len(content) - 4096)
    (tmp_path / "damaged.db").write_bytes(content)
    with pytest.raises(ConfigError, match=r"damaged\.db is (damaged|not a measurement store)"):
        find(str(tmp_path / "damaged.db"))


def test_a_store_with_a_record_that_is_none_is_refused_by_name(store):
    connection = sqlite3.connect(store)
    with connection:
        connection.execute(
            "INSERT INTO record (kind, label, network_sha256, at, json)"
            " VALUES ('Measurement', 'x', '', '', '{}')"
        )
    connection.close()
    with pytest.raises(ConfigError, match=r"boardfit\.db is damaged"):
        find(str(store))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(
    st.sampled_from([b"", b"{", b"SQLite format 3\0", b"&&&& RUNNING TensorRT.trtexec"]),
    st.binary(max_size=200),
)
def test_any_file_is_a_run_or_refused_with_its_name(tmp_path, begins, rest):
    path = tmp_path / "any.bin"
    path.write_bytes(begins + rest)
    with pytest.raises(ConfigError, match=r"any\.bin"):
        find(str(path))
