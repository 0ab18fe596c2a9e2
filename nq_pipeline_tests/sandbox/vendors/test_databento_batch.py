"""Batch jobs of Databento's stand-in, submitted and downloaded by the official client over a real socket."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import databento
import numpy as np
import polars as pl
import pytest
import requests
import zstandard
from databento.common.error import BentoClientError

from nq_pipeline_tests.testing.vendor_clients import (
    DATABENTO_PARAMS,
    DATABENTO_SPANS,
    databento_client,
    databento_range,
)

Address = Callable[..., str]
DAYS = ("20250609", "20250610")
"""The days, UTC, of the requested trades."""


def finish_job(batch: Any, **form: Any) -> str:
    """Submit a job, wait until it is done, and return its id."""
    job: str = batch.submit_job(
        **{**DATABENTO_PARAMS, **DATABENTO_SPANS["trades"], "schema": "trades", **form}
    )["id"]
    while batch.get_job_details(job)["state"] != "done":
        pass
    return job


def test_a_job_delivers_what_streaming_does(at: Address, tmp_path: Path) -> None:
    batch = databento_client(at("databento")).batch
    submitted = batch.submit_job(**DATABENTO_PARAMS, **DATABENTO_SPANS["trades"], schema="trades")
    assert submitted["state"] == "queued"
    assert {tuple(job) for job in batch.list_jobs(short=True)} == {("id", "state", "ts_received")}
    mine = {job["id"]: job["state"] for _ in range(2) for job in batch.list_jobs()}
    assert mine[submitted["id"]] == "done"

    paths = batch.download(submitted["id"], tmp_path)

    files = {file["filename"]: file for file in batch.list_files(submitted["id"])}
    assert {path.name for path in paths} == set(files)
    for path in paths:
        assert files[path.name]["size"] == path.stat().st_size
        assert files[path.name]["hash"] == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    data = sorted(path for path in paths if path.suffix == ".zst")
    assert [path.name for path in data] == [f"glbx-mdp3-{day}.trades.dbn.zst" for day in DAYS]
    parts = [databento.DBNStore.from_file(path).to_ndarray() for path in data]
    streamed = databento_range(at("databento"), "trades").to_ndarray()
    assert np.array_equal(np.concatenate(parts), streamed)
    assert submitted["record_count"] == len(streamed)


def test_a_job_comes_as_one_archive_or_file_by_file(at: Address, tmp_path: Path) -> None:
    batch = databento_client(at("databento")).batch
    job = finish_job(batch)

    whole = batch.download(job, tmp_path / "zip", keep_zip=True)[0]

    with zipfile.ZipFile(whole) as archive:
        for name in (file["filename"] for file in batch.list_files(job)):
            single = batch.download(job, tmp_path, filename_to_download=name)[0]
            assert archive.read(name) == single.read_bytes()


def test_a_job_has_condition_metadata_and_symbology_files(at: Address, tmp_path: Path) -> None:
    vendor = databento_client(at("databento"))
    job = finish_job(vendor.batch)
    files = {path.name: path for path in vendor.batch.download(job, tmp_path) if path.suffix == ".json"}

    condition = json.loads(files["condition.json"].read_bytes())
    assert condition == vendor.metadata.get_dataset_condition("GLBX.MDP3", "2025-06-09", "2025-06-10")
    assert json.loads(files["metadata.json"].read_bytes())["query"]["schema"] == "trades"
    listed = {file["filename"] for file in json.loads(files["manifest.json"].read_bytes())["files"]}
    assert listed | {"manifest.json"} == {file["filename"] for file in vendor.batch.list_files(job)}
    # The official client finds every symbol by this file alone.
    symbols = databento.common.symbology.InstrumentMap()
    symbols.insert_json(json.loads(files["symbology.json"].read_bytes()))
    frame = databento_range(at("databento"), "trades").to_df()
    day = frame.index[0].date()
    assert symbols.resolve(int(frame["instrument_id"].iloc[0]), day) == frame["symbol"].iloc[0]


@pytest.mark.parametrize("encoding", ["csv", "json"])
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_csv_and_json_match_the_official_clients(
    encoding: str, compression: str, at: Address, tmp_path: Path
) -> None:
    batch = databento_client(at("databento")).batch
    form = {"encoding": encoding, "compression": compression, "pretty_px": True, "pretty_ts": True}
    job = finish_job(batch, **form, split_duration="none")
    ending = encoding + (".zst" if compression == "zstd" else "")
    names = [file["filename"] for file in batch.list_files(job) if ".trades." in file["filename"]]
    assert names == [f"glbx-mdp3-20250609-20250610.trades.{ending}"]

    raw = batch.download(job, tmp_path, filename_to_download=names[0])[0].read_bytes()

    text = zstandard.decompress(raw, 2**26) if compression == "zstd" else raw
    store = databento_range(at("databento"), "trades")
    (store.to_csv if encoding == "csv" else store.to_json)(tmp_path / "theirs")
    assert text == (tmp_path / "theirs").read_bytes()
    if encoding == "csv":
        assert pl.read_csv(text)["symbol"].null_count() == 0


@pytest.mark.parametrize(
    ("split", "labels"),
    [("week", ["20250606-20250607", "20250608-20250610"]), ("month", ["20250606-20250610"])],
)
def test_files_are_split_by_week_or_month(split: str, labels: list[str], at: Address) -> None:
    batch = databento_client(at("databento")).batch
    params = {"start": "2025-06-06", "symbols": "NQM5", "stype_in": "raw_symbol", "schema": "ohlcv-1h"}
    job = finish_job(batch, **params, split_duration=split)
    names = [file["filename"].split(".")[0] for file in batch.list_files(job) if "ohlcv" in file["filename"]]
    assert names == [f"glbx-mdp3-{label}" for label in labels]


def test_a_limit_covers_the_whole_job(at: Address, tmp_path: Path) -> None:
    batch = databento_client(at("databento")).batch
    first_day = len(databento_range(at("databento"), "trades", end="2025-06-10").to_ndarray())
    job = finish_job(batch, limit=first_day + 2)
    paths = sorted(path for path in batch.download(job, tmp_path) if path.suffix == ".zst")
    assert [len(databento.DBNStore.from_file(path).to_ndarray()) for path in paths] == [first_day, 2]


def test_a_download_resumes_where_it_stopped(at: Address, tmp_path: Path) -> None:
    batch = databento_client(at("databento")).batch
    job, name = finish_job(batch), f"glbx-mdp3-{DAYS[0]}.trades.dbn.zst"
    whole = batch.download(job, tmp_path / "whole", filename_to_download=name)[0].read_bytes()
    half = tmp_path / "half" / job / name
    half.parent.mkdir(parents=True)
    half.write_bytes(whole[:100])
    assert batch.download(job, tmp_path / "half", filename_to_download=name)[0].read_bytes() == whole


def test_missing_jobs_and_files_are_refused(at: Address) -> None:
    url, batch = at("databento"), databento_client(at("databento")).batch
    queued = batch.submit_job(**DATABENTO_PARAMS, **DATABENTO_SPANS["trades"], schema="trades")["id"]
    for call, case in (
        (lambda: batch.list_files(queued), "batch_job_not_done"),
        (lambda: batch.list_files("GLBX-20250610-NOWHERE"), "batch_job_not_found"),
        (lambda: finish_job(batch, split_symbols=True), "batch_form_invalid"),
        (lambda: finish_job(batch, split_size=10**9), "batch_form_invalid"),
    ):
        with pytest.raises(BentoClientError) as caught:
            call()
        assert (caught.value.json_body or {})["detail"]["case"] == case
    missing = requests.get(f"{url}/v0/batch/download/{finish_job(batch)}/none.zst", auth=("db-sandbox", ""))
    assert (missing.status_code, missing.json()["detail"]["case"]) == (404, "batch_file_not_found")
