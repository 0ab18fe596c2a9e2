"""A run whose process died on any host is reported as failed; one that lives is left alone."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster._core.test_utils import create_run_for_test

from nq_pipeline.configuration import build_settings
from nq_pipeline.errors import LeaseLost, LedgerError
from nq_pipeline.leases.tables import LEASES
from nq_pipeline.orchestration.cluster import run_leases
from nq_pipeline.orchestration.cluster.run_leases import claim_lease, fail_lost_runs
from nq_pipeline.orchestration.names import CAPTURE, KIND, LEASED
from nq_pipeline.orchestration.resources import Vendors, vendors_resource
from nq_pipeline.settings import Settings
from nq_pipeline.spend.database import open_engine, row_transaction
from nq_pipeline.ui.cluster import Shared
from nq_pipeline_tests.testing.cluster_hosts import new_hosts, wait_until
from nq_pipeline_tests.testing.lease_hosts import PROCESSES, Hosts
from nq_pipeline_tests.testing.network import link_to

STARTED = dg.DagsterRunStatus.STARTED


@pytest.fixture(autouse=True)
def released() -> Iterator[None]:
    """The leases that this process claimed are released, as if it had ended."""
    yield
    while run_leases._held:
        run_leases._held.pop().release()


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


@pytest.fixture
def settings(shared: Shared, tmp_path: Path) -> Settings:
    return Hosts(tmp_path, new_hosts(shared, tmp_path).ledger).settings("data")


@pytest.fixture
def begin(instance: dg.DagsterInstance) -> Callable[..., dg.DagsterRun]:
    """A run that Dagster counts as started."""
    return lambda **tags: create_run_for_test(instance, status=STARTED, tags=tags)


def test_only_a_run_without_its_lease_has_died(
    instance: dg.DagsterInstance, settings: Settings, begin: Callable[..., dg.DagsterRun]
) -> None:
    alive, unleased = begin(), begin()
    claim_lease(instance, alive, settings)
    dead = create_run_for_test(instance, status=STARTED, tags={LEASED: "sandbox"})
    elsewhere = create_run_for_test(instance, status=STARTED, tags={LEASED: "live"})
    suspects = fail_lost_runs(instance, settings)
    assert suspects == [dead.run_id]
    assert {one.status for one in instance.get_runs()} == {STARTED}
    assert fail_lost_runs(instance, settings, suspects) == []
    states = {one.run_id: one.status for one in instance.get_runs()}
    assert states.pop(dead.run_id) is dg.DagsterRunStatus.FAILURE
    assert states == {one.run_id: STARTED for one in (alive, unleased, elsewhere)}


@dg.op
def wait(context: dg.OpExecutionContext) -> None:
    """Claim the lease of the run over the address in its tags, and wait for ever."""
    tags = context.run.tags
    hosts = Hosts(Path(tags["folder"]), tags["ledger"])
    claim_lease(context.instance, context.run, hosts.settings("distant"), ttl_s=1)
    time.sleep(300)


@dg.job
def waiting() -> None:
    wait()


def execute_waiting(home: str, tags: dict[str, str]) -> None:
    with dg.DagsterInstance.local_temp(home) as instance:
        waiting.execute_in_process(instance=instance, tags=tags, raise_on_error=False)


@pytest.mark.parametrize("found_dead", [False, True])
def test_a_run_that_was_cut_off_goes_on_unless_it_was_found_dead(
    shared: Shared, tmp_path: Path, found_dead: bool
) -> None:
    url = new_hosts(shared, tmp_path).ledger
    settings = Hosts(tmp_path, url).settings("near")
    with link_to(shared.postgres_port) as link, dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        tags = {
            "folder": str(tmp_path),
            "ledger": url.replace(f":{shared.postgres_port}/", f":{link.port}/"),
        }
        process = PROCESSES.Process(target=execute_waiting, args=(str(tmp_path), tags), daemon=True)
        process.start()
        try:
            wait_until(lambda: instance.get_runs(dg.RunsFilter(tags={LEASED: "sandbox"})), patience_s=60)
            link.cut()
            wait_until(lambda: fail_lost_runs(instance, settings), patience_s=60)
            [run] = instance.get_runs()
            if found_dead:
                assert fail_lost_runs(instance, settings, [run.run_id]) == []
            link.mend()
            process.join(30 if found_dead else 3)
            assert process.exitcode == (0 if found_dead else None)
            assert fail_lost_runs(instance, settings, [run.run_id]) == []
            [run] = instance.get_runs()
            assert run.status is (dg.DagsterRunStatus.FAILURE if found_dead else STARTED)
        finally:
            process.kill()
            process.join()


@pytest.mark.parametrize("found_dead", [False, True])
def test_a_run_outlives_an_older_backup_unless_it_was_found_dead(
    instance: dg.DagsterInstance,
    settings: Settings,
    begin: Callable[..., dg.DagsterRun],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    found_dead: bool,
) -> None:
    ended = threading.Event()
    monkeypatch.setattr(run_leases, "_terminate", ended.set)
    run = begin()
    claim_lease(instance, run, settings)
    with row_transaction(open_engine(settings)) as connection:
        connection.execute(sa.delete(LEASES))
    assert settings.spend.ledger_url
    elsewhere = Hosts(tmp_path, settings.spend.ledger_url.get_secret_value()).settings("elsewhere")
    suspects = fail_lost_runs(instance, elsewhere)
    assert suspects == [run.run_id]
    if found_dead:
        fail_lost_runs(instance, elsewhere, suspects)
    with pytest.raises(LeaseLost) if found_dead else nullcontext():
        run_leases._held[-1].renew()
    assert fail_lost_runs(instance, elsewhere, suspects) == []
    now = instance.get_run_by_id(run.run_id)
    assert now and now.status is (dg.DagsterRunStatus.FAILURE if found_dead else STARTED)
    assert ended.is_set() is found_dead


def test_a_database_that_does_not_answer_kills_nobody(
    instance: dg.DagsterInstance, settings: Settings
) -> None:
    run = create_run_for_test(instance, status=STARTED, tags={LEASED: "sandbox"})
    gone = settings.with_values(ledger_url="postgresql://nq:no@127.0.0.1:1/ledger", ledger_timeout_s=1)
    with pytest.raises(LedgerError):
        fail_lost_runs(instance, gone)
    claim_lease(instance, create_run_for_test(instance, status=STARTED), gone)
    now = instance.get_run_by_id(run.run_id)
    assert now and now.status is STARTED


def test_a_capture_and_a_single_machine_claim_nothing(
    instance: dg.DagsterInstance, settings: Settings, tmp_path: Path
) -> None:
    capture = create_run_for_test(instance, status=STARTED, tags={KIND: CAPTURE})
    claim_lease(instance, capture, settings)
    run = create_run_for_test(instance, status=STARTED)
    claim_lease(instance, run, build_settings(data_dir=tmp_path / "alone"))
    assert all(LEASED not in one.tags for one in instance.get_runs())
    assert not (tmp_path / "alone").exists()


def test_a_run_that_uses_the_vendors_has_a_lease(instance: dg.DagsterInstance, settings: Settings) -> None:
    @dg.op(required_resource_keys={"vendors"})
    def work(context: dg.OpExecutionContext) -> None:
        assert context.resources.vendors.settings() is settings

    @dg.job(resource_defs={"vendors": vendors_resource(Vendors(settings))})
    def one_job() -> None:
        work()

    result = one_job.execute_in_process(instance=instance)
    run = instance.get_run_by_id(result.run_id)
    assert run and run.tags[LEASED] == "sandbox"
