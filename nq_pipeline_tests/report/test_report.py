"""The report as a file: its contents, its path, and that it loads and runs nothing foreign."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner
from lxml import html

from nq_pipeline import cli
from nq_pipeline.analytics import metrics
from nq_pipeline.charts.theme import SANDBOX
from nq_pipeline.cli import exit_codes
from nq_pipeline.configuration import build_settings
from nq_pipeline.errors import LakeError
from nq_pipeline.lake import catalog
from nq_pipeline.lake.tables import DECISIONS, OPEN_INTEREST_CHANGE, OPTION_CHAIN, conform
from nq_pipeline.market.pricing import price_chain
from nq_pipeline.report import headline
from nq_pipeline.report.facts import load_facts
from nq_pipeline.report.page import write_report
from nq_pipeline.settings import Settings
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.report_lake import HOSTILE, NOW, price_and_store, store_snapshot, store_trades


@pytest.fixture(scope="module")
def written(sandbox: Settings) -> Path:
    path = write_report(sandbox).path
    assert path
    return path


@pytest.fixture(scope="module")
def page(written: Path) -> html.HtmlElement:
    return html.fromstring(written.read_bytes())


def text(page: html.HtmlElement, path: str) -> str:
    """All words below the elements of an XPath, spaces made one."""
    return " ".join(" ".join(part.text_content() for part in page.xpath(path)).split())


def tiles(page: html.HtmlElement) -> dict[str, str]:
    return {text(tile, "./dt"): text(tile, "./dd[1]") for tile in page.xpath('//dl[@class="tiles"]/div')}


def test_file_is_named_after_its_snapshot(sandbox: Settings, written: Path) -> None:
    before = written.read_bytes()
    assert written == (sandbox.environment_dir / "reports/2025-06-10T15-00-00Z.html").resolve()
    assert before.startswith(b"<!doctype html>") and before.rstrip().endswith(b"</html>")


def test_headline_shows_the_metrics_of_the_chain(sandbox: Settings, page: html.HtmlElement) -> None:
    with catalog.connect(Workspace.of(sandbox).lake) as lake:
        chain = catalog.chain(lake)
    pricing = sandbox.pricing
    priced = price_chain(chain, rate=pricing.risk_free_rate, max_last_age_s=pricing.max_last_age_s)
    priced = metrics.priced_chain(chain, priced)
    front = metrics.series_metrics(priced).sort("expiration").row(0, named=True)
    levels = metrics.gamma_levels(priced).row(0, named=True)
    shown = tiles(page)
    assert shown["Future NQM5"] == f"{front['forward']:,.2f}"
    assert shown["ATM IV"] == f"{front['atm_iv']:.1%}"
    assert shown["Expected move"] == f"±{front['expected_move_iv']:,.0f}"
    net = levels["gex_per_pct"]
    sign = "Positive" if net > 0 else "Negative"
    assert shown["Net gamma"] == f"{sign} ${abs(net) / 1e6:,.1f}M"
    gamma = text(page, '//dl[@class="tiles"]/div[dt="Net gamma"]')
    assert f"{levels['open_interest_left_out']:,} open contracts left out" in gamma
    assert re.fullmatch(r"21,\d{3}|–", shown["Zero gamma"]), "calls and puts cancel out: rounding decides"
    assert shown["Put/call ratio"] == f"{levels['put_call_open_interest']:.2f}"
    ratio = text(page, '//dl[@class="tiles"]/div[dt="Put/call ratio"]')
    assert f"of {levels['call_open_interest'] + levels['put_open_interest']:,} open contracts" in ratio
    assert len(page.xpath('//section[@id="1-series"]//tbody/tr')) == chain["series"].n_unique()


def test_headline_shows_how_the_walls_moved(tmp_path: Path) -> None:
    store_snapshot(tmp_path, now="2025-06-10T14:30:00Z")
    settings, _ = store_snapshot(tmp_path)
    (product,) = load_facts(settings, None).products
    before = product.earlier["previous"]
    levels = product.now.levels.with_columns(pl.col("call_wall") - 50, put_wall=None)
    earlier = {"previous": replace(before, levels=levels), "close": before}
    shown = {tile.name: tile.changes for tile in headline.tiles(replace(product, earlier=earlier))}
    assert shown["Call wall / put wall"] == {"previous": "+50 / –", "close": "+0 / +0"}


def test_headline_after_an_expiration_is_of_the_next_series(tmp_path: Path) -> None:
    settings, snapshot = store_snapshot(tmp_path, now="2025-06-10T20:30:00Z")
    assert snapshot.chain.select((pl.col("expiration") < pl.col("snapshot_ts")).any()).item(), (
        "one series ended"
    )
    path = write_report(settings).path
    assert path
    shown = tiles(html.fromstring(path.read_bytes()))
    assert "–" not in (shown["Future NQM5"], shown["ATM IV"], shown["Expected move"])


def test_quotes_on_a_closed_market_are_of_its_close(tmp_path: Path) -> None:
    _, snapshot = store_snapshot(tmp_path / "well", now="2025-06-14T16:00:00Z")
    settings = build_settings(data_dir=tmp_path / "delayed")
    lake = Workspace.of(settings).lake
    delayed = snapshot.chain.with_columns(as_of=pl.col("snapshot_ts") - pl.duration(minutes=10))
    lake.append(OPTION_CHAIN, delayed, run_id="run")
    lake.append(DECISIONS, snapshot.decisions, run_id="run")
    lead = html.fromstring(write_report(settings).page).xpath('//p[@class="lead"]')[0].text_content()
    assert "quotes as of Fri 16:00 CT" in lead


def test_sources_show_who_won_and_why_others_lost(page: html.HtmlElement) -> None:
    rows = [
        [" ".join(cell.text_content().split()) for cell in row.xpath("./td")]
        for row in page.xpath('//section[@id="sources"]//tbody/tr')
    ]
    shown = {row[0]: row[1:4] for row in rows}
    assert rows[0][0] == "tradovate", "the winner comes first"
    assert shown["tradovate"][0] == "ok" and shown["tradovate"][1].startswith("4 of 4")
    assert shown["barchart"][0] == "blocked" and HOSTILE in shown["barchart"][2]
    assert shown["databento"][2] == "healthy, but tradovate has priority"
    assert "proxy" in shown["polygon"][2]
    assert "databento's answer: 2 spread" in text(page, '//section[@id="sources"]')


def test_trades_gaps_and_spend_are_shown(page: html.HtmlElement) -> None:
    trades = text(page, '//section[@id="1-trades"]//figcaption')
    assert "5 bought (green), 2 sold (purple)" in trades
    assert "0 bought (green), 1 sold (purple)" in trades
    assert "No gap is known on 2025-06-10." in text(page, '//section[@id="gaps"]')
    money = text(page, '//section[@id="money"]')
    assert "flat fee" in money and "Left this month" in money


@pytest.mark.parametrize(
    ("began", "when"),
    [
        ("2025-06-09T15:00:00Z", "2025-06-09 10:00 to 10:05 CT"),  # as the sandbox's capture, out of hours
        (
            "2025-06-10T15:01:00Z",
            "2025-06-10 10:00 to 10:05 CT",
        ),  # after the snapshot, in a window that goes on
    ],
)
def test_report_shows_the_newest_captured_trades(tmp_path: Path, began: str, when: str) -> None:
    settings, snapshot = store_snapshot(tmp_path)
    store_trades(settings, snapshot, datetime.fromisoformat(began))
    page = html.fromstring(write_report(settings).page)
    trades = text(page, '//section[@id="1-trades"]')
    assert f"5 bought (green), 2 sold (purple) by aggressors, {when}" in trades
    assert "captured" not in trades
    assert f"No gap is known on {when[:10]}." in text(page, '//section[@id="gaps"]')


def test_report_of_a_moment_has_no_later_trades(tmp_path: Path) -> None:
    settings, snapshot = store_snapshot(tmp_path)
    for began in ("2025-06-09T15:00:00Z", "2025-06-10T15:01:00Z", "2025-06-11T15:00:00Z"):
        store_trades(settings, snapshot, datetime.fromisoformat(began))
    asked = datetime.fromisoformat(NOW)
    page = html.fromstring(write_report(settings, snapshot_ts=asked).page)
    assert "by aggressors, 2025-06-09" in text(page, '//section[@id="1-trades"]')


def test_page_contains_the_data_of_its_charts_once(page: html.HtmlElement) -> None:
    (charts,) = page.xpath('//script[@id="charts"]/text()')
    drawn = json.loads(gzip.decompress(base64.b64decode(charts)))
    named = set(re.findall(r'"data": ?\{"name": ?"([^"]+)"', json.dumps(drawn["specs"])))
    assert named == set(drawn["datasets"])
    assert len(page.xpath("//*[@data-chart]")) == len(drawn["specs"]) >= 8


def test_page_shows_open_interest_changes_and_the_trade_date_so_far(tmp_path: Path) -> None:
    for now in ("2025-06-10T14:30:00Z", NOW):
        settings, snapshot = store_snapshot(tmp_path, now=now)
        price_and_store(settings, snapshot)
    chain = snapshot.chain
    when = datetime.fromisoformat("2025-06-10T14:50:00Z")
    changes = chain.with_columns(
        trade_date=pl.lit(date(2025, 6, 9)),
        previous_trade_date=pl.lit(date(2025, 6, 6)),
        open_interest=pl.lit(12),
        previous_open_interest=pl.lit(9),
        open_interest_change=pl.lit(3),
        figure=pl.lit("chain"),
        known_at=pl.lit(when),
        run_id=pl.lit("run"),
    ).select(OPEN_INTEREST_CHANGE.schema.names())
    lake = Workspace.of(settings).lake
    lake.append(OPEN_INTEREST_CHANGE, conform(OPEN_INTEREST_CHANGE, changes), run_id="run")
    found = html.fromstring(write_report(settings).page)
    positions = text(found, '//section[@id="1-positions"]')
    assert "Contracts opened minus closed on 2025-06-09, by tradovate" in positions
    intraday = text(found, '//section[@id="1-intraday"]//figcaption')
    assert "ATM IV" in intraday and "Future and levels" in intraday
    before = html.fromstring(
        write_report(settings, snapshot_ts=datetime.fromisoformat("2025-06-10T14:40:00Z")).page
    )
    assert "No open-interest change" in text(before, '//section[@id="1-positions"]')
    assert "it needs two snapshots" in text(before, '//section[@id="1-intraday"]')


def test_vendor_text_is_never_markup(page: html.HtmlElement) -> None:
    assert len(page.xpath("//script")) == 3, "the charts, Vega, and the page's own"
    assert page.xpath("//img") == [] and page.xpath("//*[@onerror]") == []


def test_page_loads_and_runs_nothing_foreign(written: Path, page: html.HtmlElement) -> None:
    source = written.read_text()
    links = page.xpath("//@href | //@src | //@srcset | //@action | //@data")
    assert links and all(link.startswith("#") for link in links)
    (policy,) = page.xpath('//meta[@http-equiv="Content-Security-Policy"]/@content')
    assert policy.startswith("default-src 'none';")
    run = re.findall(r'<script type="module">(.*?)</script>', source, re.DOTALL)
    styles = re.findall(r"<style>(.*?)</style>", source, re.DOTALL)
    assert (len(run), len(styles)) == (2, 1)
    assert "@import" not in styles[0] and "url(" not in styles[0]
    for kind, bodies in (("script", run), ("style", styles)):
        digests = [base64.b64encode(hashlib.sha256(body.encode()).digest()).decode() for body in bodies]
        assert f"{kind}-src " + " ".join(f"'sha256-{digest}'" for digest in digests) + ";" in policy
    assert "unsafe" not in policy
    for element in page.iter():
        assert not [name for name in element.attrib if name == "style" or name.startswith("on")]


def test_sandbox_data_is_marked_at_top_and_every_chart(page: html.HtmlElement, tmp_path: Path) -> None:
    assert text(page, '//div[@class="sandbox"]') == SANDBOX
    figures = page.xpath("//figure")
    assert len(figures) >= 8
    assert all(figure.xpath('.//span[@class="badge"]/text()') == ["SANDBOX"] for figure in figures)
    settings, _ = store_snapshot(tmp_path, environment="live")
    live = html.fromstring(write_report(settings).page)
    assert live.xpath('//div[@class="sandbox"]') == [] and "SANDBOX" not in live.text_content()


def test_missing_chain_is_an_error_and_writes_no_file(tmp_path: Path) -> None:
    settings = build_settings(data_dir=tmp_path)
    Workspace.of(settings).lake.root.mkdir(parents=True)
    with pytest.raises(LakeError, match="no chain to report on"):
        write_report(settings)
    store_snapshot(tmp_path)
    with pytest.raises(LakeError, match="no chain as of 2025-06-09 15:00 UTC"):
        write_report(settings, snapshot_ts=datetime(2025, 6, 9, 15, tzinfo=UTC))
    assert not (settings.environment_dir / "reports").exists()


def test_unquoted_chain_has_sentences_for_charts(tmp_path: Path) -> None:
    settings, snapshot = store_snapshot(tmp_path / "well")
    silent = build_settings(data_dir=tmp_path / "silent")
    lake = Workspace.of(silent).lake
    unknown = ("bid", "ask", "last", "volume", "open_interest", "underlying_price")
    chain = snapshot.chain.with_columns(pl.lit(None).cast(snapshot.chain.schema[n]).alias(n) for n in unknown)
    lake.append(OPTION_CHAIN, chain, run_id="run")
    lake.append(DECISIONS, snapshot.decisions, run_id="run")
    page = html.fromstring(write_report(silent).page)
    sentences = [" ".join(part.text_content().split()) for part in page.xpath('//p[@class="none"]')]
    assert any(one.startswith("No smile") for one in sentences)
    assert any(one.startswith("No open interest of all series") for one in sentences)
    assert tiles(page)["Expected move"] == "–"
    assert settings.environment_dir != silent.environment_dir


def test_command_prints_the_path_and_overwrites(sandbox: Settings, written: Path) -> None:
    environment = {"NQ_DATA_DIR": str(sandbox.data_dir), "NQ_NOW": NOW}
    result = CliRunner().invoke(cli.main, ["report", "--no-open"], env=environment)
    assert result.exit_code == exit_codes.OK, result.output
    path = Path(re.findall(r"Report: (.*?\.html)", result.stdout)[0])
    assert path == written and result.stdout.startswith("SANDBOX")
    assert [one.name for one in path.parent.iterdir()] == [path.name]
    result = CliRunner().invoke(cli.main, ["report", "--snapshot", "2025-06-10 15:00"], env=environment)
    assert result.exit_code == exit_codes.USAGE
    assert "2025-06-10T15:00:00Z" in result.stderr
