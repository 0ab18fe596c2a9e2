"""Objects: one contract for a folder and for an object store, and what the store's faults become."""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Callable
from pathlib import Path

import duckdb
import polars as pl
import pytest

from nq_pipeline.configuration import build_settings, load
from nq_pipeline.errors import SettingsError, StoreError
from nq_pipeline.lake.objects import LocalObjects, Objects, RemoteObjects
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.s3 import ACCESS_KEY, SECRET_KEY, Bucket, Fault, FaultProxy

BODY = bytes(range(256)) * 40


@pytest.fixture(params=["local", "remote"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    if request.param == "local":
        return LocalObjects(tmp_path / "objects")
    bucket: Bucket = request.getfixturevalue("bucket")
    return RemoteObjects(bucket.url, load().store)


@pytest.fixture
def flaky(flaky_bucket: Bucket) -> RemoteObjects:
    settings = load(lake_url=flaky_bucket.url, store_timeout_s=3)
    return RemoteObjects(flaky_bucket.url, settings.store)


# ── the contract ──────────────────────────────────────────────────────────────────


def test_an_object_is_read_as_it_was_put(objects: Objects) -> None:
    name = "barchart/trade_date=2025-07-01/a-b_c.1.zst"
    objects.put(name, BODY)
    assert objects.get(name) == BODY
    objects.put(name, b"")
    assert objects.get(name) == b""
    assert objects.exists(name) and not objects.exists("barchart")


def test_a_missing_object_is_file_not_found(objects: Objects, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        objects.get("none")
    with pytest.raises(FileNotFoundError):
        objects.fetch_file("none", tmp_path / "copy")
    with pytest.raises(FileNotFoundError), objects.local_copy("none"):
        pass
    assert not (tmp_path / "copy").exists()
    assert not objects.exists("none") and list(objects.list()) == [] and objects.folders() == ()
    objects.delete(["none"])


def test_put_if_absent_keeps_the_first(objects: Objects) -> None:
    assert objects.put_if_absent("id", b"first")
    assert not objects.put_if_absent("id", b"second")
    assert objects.put_if_absent("id", b"first"), "repeating the call that won changes nothing"
    assert objects.get("id") == b"first"


def test_one_of_many_racing_calls_creates_the_object(objects: Objects) -> None:
    won = list[int]()

    def race(number: int) -> None:
        if objects.put_if_absent("race", b"%d" % number):
            won.append(number)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and objects.get("race") == b"%d" % won[0]


def test_a_listing_is_ordered_and_below_its_folder(objects: Objects) -> None:
    for name in ("raw/b", "raw/a/1", "raw/a/2", "raw-2/x", "reports/p.html"):
        objects.put(name, name.encode())
    assert [(one.name, one.size) for one in objects.list("raw")] == [
        ("raw/a/1", 7),
        ("raw/a/2", 7),
        ("raw/b", 5),
    ]
    assert len(list(objects.list())) == 5 and list(objects.list("nothing")) == []
    assert objects.folders() == ("raw", "raw-2", "reports") and objects.folders("raw") == ("a",)
    assert all(one.modified > 1_700_000_000_000_000_000 for one in objects.list())


def test_a_folder_has_names_of_its_own(objects: Objects) -> None:
    inner = objects.within("raw").within("runs")
    inner.put("r.json", b"{}")
    assert objects.get("raw/runs/r.json") == b"{}"
    assert [one.name for one in inner.list()] == ["r.json"]
    assert [one.name for one in objects.within("raw").list("runs")] == ["runs/r.json"]
    assert inner.uri("r.json") == objects.uri("raw/runs/r.json")


def test_deleted_objects_are_gone(objects: Objects) -> None:
    for name in ("a", "b", "c/d"):
        objects.put(name, b"1")
    objects.delete(["a", "c/d", "never"])
    assert [one.name for one in objects.list()] == ["b"]


def test_a_file_is_stored_and_copied(objects: Objects, tmp_path: Path) -> None:
    source = tmp_path / "large"
    source.write_bytes(BODY * 2000)  # 20 MB: more than one request
    objects.put_file("history/large.dbn", source)
    with objects.local_copy("history/large.dbn") as copy:
        assert copy.read_bytes() == BODY * 2000 and copy.name == "large.dbn"
    assert copy.exists() == objects.is_local
    objects.fetch_file("history/large.dbn", tmp_path / "folder" / "copy")
    assert (tmp_path / "folder" / "copy").read_bytes() == source.read_bytes() == BODY * 2000


@pytest.mark.parametrize("name", ["", "/a", "a/", "a//b", "../a", "a/../b", ".hidden", "a\\b", "a\0", "a%2e"])
def test_a_name_that_could_lead_elsewhere_is_refused(name: str, objects: Objects) -> None:
    for operation in (objects.get, objects.exists, lambda name: objects.put(name, b"")):
        with pytest.raises(ValueError, match="name of an object"):
            operation(name)


# ── on this machine ───────────────────────────────────────────────────────────────


def test_local_objects_are_plain_files(tmp_path: Path) -> None:
    objects = LocalObjects(tmp_path)
    objects.put("raw/runs/r.json", b"{}")
    assert (tmp_path / "raw/runs/r.json").read_bytes() == b"{}"
    (tmp_path / "raw/runs/.r.json.1.tmp").write_bytes(b"unfinished")
    assert [one.name for one in objects.list()] == ["raw/runs/r.json"]
    assert objects.uri("raw") == str(tmp_path / "raw")


def test_the_setting_decides_where_objects_are(tmp_path: Path) -> None:
    local = Workspace.of(build_settings(data_dir=tmp_path)).objects
    assert local.is_local and local.uri("raw") == str(tmp_path / "sandbox" / "raw")
    remote = Workspace.of(build_settings(lake_url="s3://bucket/nq/", environment="live")).objects
    assert not remote.is_local and remote.uri("raw") == "s3://bucket/nq/live/raw"
    for url in ("gs://bucket", "az://container/nq"):
        assert Workspace.of(build_settings(lake_url=url)).objects.uri() == f"{url}/sandbox"


def test_a_lake_keeps_its_identity(tmp_path: Path, bucket: Bucket) -> None:
    first, second = build_settings(data_dir=tmp_path / "1"), build_settings(data_dir=tmp_path / "2")
    assert Workspace.of(first).identify_lake() == Workspace.of(first).identify_lake()
    assert Workspace.of(first).identify_lake() != Workspace.of(second).identify_lake()
    shared = [load(data_dir=tmp_path / name, lake_url=bucket.url) for name in "12"]
    assert Workspace.of(shared[0]).identify_lake() == Workspace.of(shared[1]).identify_lake()
    assert bucket.names() == ["lakes/nq/sandbox/lake_id"]


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"lake_url": "https://bucket.example/nq"}, "s3://bucket/prefix"),
        ({"lake_url": "s3://key:secret@bucket/nq"}, "without keys"),
        ({"lake_url": "s3://bucket/trade_date=1"}, "NQ_LAKE_URL"),
        ({"lake_url": "s3://bucket/../nq"}, "NQ_LAKE_URL"),
        ({"lake_url": "s3://bucket", "store_endpoint_url": "http://10.0.0.1:9000"}, "AWS_ENDPOINT_URL"),
        ({"lake_url": "s3://bucket", "store_endpoint_url": "https://u:p@host"}, "AWS_ENDPOINT_URL"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused(values: dict[str, str], word: str) -> None:
    with pytest.raises(SettingsError, match=word) as refused:
        build_settings(**values)
    assert "secret@" not in str(refused.value)


def test_the_store_variables_of_other_programs_do_no_harm() -> None:
    assert build_settings(store_endpoint_url="http://10.0.0.1:9000", store_region="nowhere").store.url is None


def test_duckdb_asks_for_the_size_of_a_file_once(flaky_bucket: Bucket, s3_faults: FaultProxy) -> None:
    objects = RemoteObjects(flaky_bucket.url, load().store)
    frame = pl.DataFrame({"a": range(1000)})
    body = io.BytesIO()
    frame.write_parquet(body)
    objects.put("table/one.parquet", body.getvalue())
    with duckdb.connect() as connection:
        connection.register_filesystem(objects.filesystem())
        connection.sql(f"create view t as select * from read_parquet('{objects.uri('table/one.parquet')}')")
        for _ in range(3):
            assert connection.sql("select sum(a) from t").fetchall() == [(499_500,)]
    assert sum(method == "HEAD" for method, _ in s3_faults.requests) == 1


# ── an object store's faults ──────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=503, times=2),
        Fault(status=500),
        Fault(delay_s=0.5),
        Fault(dies_mid_upload=True, method="PUT"),
        Fault(loses_answer=True, method="PUT"),
        Fault(cuts_answer=True, method="GET"),
    ],
    ids=lambda fault: str(fault.status or next(name for name, value in vars(fault).items() if value)),
)
def test_a_passing_fault_is_retried(fault: Fault, flaky: RemoteObjects, s3_faults: FaultProxy) -> None:
    s3_faults.show(fault)
    flaky.put("a", BODY)
    assert flaky.get("a") == BODY
    assert s3_faults.left == 0


@pytest.mark.parametrize("fault", [Fault(loses_answer=True), Fault(dies_mid_upload=True), Fault(status=503)])
def test_an_object_is_created_once_whatever_is_lost(
    fault: Fault, flaky: RemoteObjects, s3_faults: FaultProxy
) -> None:
    s3_faults.show(fault)
    assert flaky.put_if_absent("id", b"mine")
    assert not flaky.put_if_absent("id", b"theirs") and flaky.get("id") == b"mine"


def test_a_store_that_stays_away_is_one_sentence(flaky: RemoteObjects, s3_faults: FaultProxy) -> None:
    s3_faults.show(Fault(status=503, times=1000))
    with pytest.raises(StoreError) as failed:
        flaky.put("a", BODY)
    message = str(failed.value)
    assert "s3://bucket-" in message and "SlowDown" in message and "\n" not in message and len(message) < 250


def test_an_upload_that_dies_leaves_no_object(
    flaky: RemoteObjects, s3_faults: FaultProxy, tmp_path: Path
) -> None:
    large = tmp_path / "large"
    large.write_bytes(BODY * 2000)
    s3_faults.show(Fault(dies_mid_upload=True, path="partNumber=3", times=1000))
    with pytest.raises(StoreError):
        flaky.put_file("large", large)
    assert not flaky.exists("large") and list(flaky.list()) == []


def test_a_bucket_that_is_not_there_is_not_a_missing_object(bucket: Bucket) -> None:
    objects = RemoteObjects("s3://no-such-bucket-here/nq", load().store)
    operations: list[Callable[[], object]] = [
        lambda: objects.get("a"),
        lambda: objects.put("a", b""),
        lambda: list(objects.list()),
        lambda: objects.put_if_absent("a", b""),
    ]
    for operation in operations:
        with pytest.raises(StoreError, match="does not exist"):
            operation()


def test_a_store_that_nobody_runs_is_one_sentence(bucket: Bucket) -> None:
    settings = load(lake_url=bucket.url, store_endpoint_url="http://127.0.0.1:9", store_timeout_s=1)
    with pytest.raises(StoreError, match="no answer"):
        Workspace.of(settings).objects.get("a")


def test_no_secret_of_the_store_is_shown(
    flaky: RemoteObjects, s3_faults: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    s3_faults.show(Fault(status=403, times=10))
    with pytest.raises(StoreError) as failed:
        flaky.get("a")
    settings = load()
    shown = [str(failed.value), repr(failed.value.__cause__), repr(flaky), flaky.uri("a"), caplog.text]
    shown += [repr(settings), str(settings.store), settings.model_dump_json()]
    for text in shown:
        assert SECRET_KEY not in text and ACCESS_KEY not in text
    assert {SECRET_KEY, ACCESS_KEY} <= set(settings.secrets)
