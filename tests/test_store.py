import dataclasses
import json
import sqlite3

import pandas
import pytest

from harness.errors import ConfigError
from harness.records import Interval, Measurement, Prediction, Profile, dump
from harness.store import Store, pool
from tests.test_stats import measurement


def prediction(latency_s):
    return Prediction(
        label="joint 1",
        network_sha256="a" * 64,
        latency_s=latency_s,
        interval=Interval(latency_s * 0.9, latency_s * 1.1, 0.9),
        latency_model_sha256="b" * 64,
        made_at="2026-01-01T00:00:00Z",
    )


def test_a_measurement_is_there_after_the_store_was_left_without_closing(tmp_path):
    store = Store(tmp_path / "m.db")
    record = measurement([0.001, 0.002], [0, 0])
    store.add(record)
    with Store(tmp_path / "m.db") as again:
        assert again.all(Measurement) == (record,)
    store.close()


def test_the_first_prediction_of_a_network_is_the_frozen_one(tmp_path):
    with Store(tmp_path / "m.db") as store:
        store.add(prediction(0.001))
        store.add(prediction(0.009))
        assert store.first_prediction("a" * 64) == prediction(0.001)
        assert store.first_prediction("c" * 64) is None


@pytest.mark.parametrize("statement", ["UPDATE record SET label = 'x'", "DELETE FROM record"])
def test_nothing_in_the_store_can_be_changed(tmp_path, statement):
    with Store(tmp_path / "m.db") as store:
        store.add(prediction(0.001))
    connection = sqlite3.connect(tmp_path / "m.db")
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute(statement)
    connection.close()


def test_a_store_of_a_newer_version_is_refused(tmp_path):
    connection = sqlite3.connect(tmp_path / "m.db")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(ConfigError, match="schema version 99"):
        Store(tmp_path / "m.db")


def test_a_file_that_is_no_store_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "m.db"
    path.write_bytes(b"not a database, but somebody's file" * 40)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="not a measurement store"):
        Store(path)
    assert path.read_bytes() == before


def test_the_csv_is_a_measurement_table_in_milliseconds(tmp_path):
    with Store(tmp_path / "m.db") as store:
        store.add(measurement([0.001, 0.002, 0.003], [0, 0, 0]))
        store.add(prediction(0.004))
        store.export_csv(tmp_path)
    table = pandas.read_csv(tmp_path / "measurements.csv")
    assert table.latency_ms.tolist() == [2.0]
    assert {"network", "precision", "batch"} <= set(table.columns)
    assert pandas.read_csv(tmp_path / "predictions.csv").high_ms.tolist() == pytest.approx([4.4])


def test_pool_joins_comparable_runs():
    a = measurement([1.0], [0])
    assert pool([a, dataclasses.replace(a, samples_s=(2.0,))]) == (1.0, 2.0)


def test_pool_refuses_mixed_power_modes():
    a = measurement([1.0], [0])
    with pytest.raises(ConfigError, match="power_mode is None in one and '5W' in the other"):
        pool([a, dataclasses.replace(a, power_mode="5W")])


def test_what_older_versions_stored_is_read_with_what_they_did_not_know(tmp_path):
    new = ("timed", "machine", "agent_hash", "busy_s")
    content = json.loads(dump(measurement([0.001], [0])))
    old = {name: value for name, value in content.items() if name not in new}
    kernel = {"name": "k", "op": "Conv", "node": "/k", "latency_s": 0.001}
    engine = {"network_sha256": "0", "runtime": "fake", "runtime_version": "1"}
    with Store(tmp_path / "m.db") as store, sqlite3.connect(store.path) as connection:
        for kind, record in (("Measurement", old), ("Profile", {**engine, "kernels": [kernel]})):
            connection.execute(
                "INSERT INTO record (kind, label, network_sha256, at, json)"
                " VALUES (?, 'a', '0', '', ?)",
                (kind, json.dumps(record)),
            )
        connection.commit()
        (one,) = store.all(Measurement)
        (profile,) = store.all(Profile)
    connection.close()
    assert (one.timed, one.machine, one.agent_hash) == ("host", None, None)
    assert (profile.runs_s, profile.trace, profile.kernels[0].samples_s) == ((), None, ())
