"""Alerts from the library's side, over a real webhook on loopback."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from nq_pipeline.alerts import webhook
from nq_pipeline.alerts.message import LONGEST, Alert, one_line
from nq_pipeline.alerts.notifier import Notifier
from nq_pipeline.cli import main
from nq_pipeline.clock import SystemClock
from nq_pipeline.configuration import load
from nq_pipeline.errors import AlertError, SettingsError
from nq_pipeline.settings import Settings
from nq_pipeline_tests.testing.webhook_receiver import Receiver, receiver

ALERT = Alert(
    key="check/databento/trades/gaps",
    what="databento/trades/gaps: 1 gap on 2025-06-10 cannot be filled",
    so_what="Trades are missing.",
    what_to_do="docs/capturing.md says what can fill a gap.",
    where=["http://127.0.0.1:3000/runs/abc"],
)


class Hand(SystemClock):
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.at = datetime(2025, 6, 10, 15, 0, tzinfo=UTC)

    def now(self) -> datetime:
        return self.at

    def move(self, **by: float) -> None:
        self.at += timedelta(**by)


@pytest.fixture
def hook() -> Iterator[Receiver]:
    with receiver() as state:
        yield state


@pytest.fixture
def clock() -> Hand:
    return Hand()


def settings(hook: Receiver | None, data: Path, **more: Any) -> Settings:
    return load(data_dir=data, alert_webhook=hook.url if hook else None, **more)


@pytest.fixture
def notifier(hook: Receiver, tmp_path: Path, clock: Hand) -> Notifier:
    return Notifier(settings(hook, tmp_path), clock=clock)


def lines(notifier: Notifier) -> list[dict[str, Any]]:
    return [json.loads(line) for line in notifier.log.read_text().splitlines()]


def test_a_message_says_what_happened_and_what_to_do(notifier: Notifier, hook: Receiver) -> None:
    assert notifier.fire(ALERT)
    sent = notifier.deliver()
    assert (sent.delivered, sent.waiting, sent.reason) == (1, 0, "")
    assert hook.texts == [
        "*ERROR* [sandbox] databento/trades/gaps: 1 gap on 2025-06-10 cannot be filled\n"
        "Trades are missing.\n"
        "What to do: docs/capturing.md says what can fill a gap.\n"
        "http://127.0.0.1:3000/runs/abc"
    ]
    message, delivered = lines(notifier)
    assert (
        "alert" not in message
        and message["key"] == ALERT.key
        and message["state"] == "firing"
        and message["what"] == ALERT.what
    )
    assert delivered["id"] == message["id"] and delivered["delivered"] is True


def test_a_lasting_alert_is_repeated_with_its_count(notifier: Notifier, hook: Receiver, clock: Hand) -> None:
    reported = []
    for _ in range(7):
        reported.append(notifier.fire(ALERT))
        notifier.deliver()
        clock.move(minutes=20)
    assert reported == [True, False, False, True, False, False, True]
    assert len(hook.texts) == 3
    assert "(7 times since 2025-06-10 15:00 UTC)" in hook.texts[-1]


def test_a_worse_severity_is_not_kept_back(notifier: Notifier) -> None:
    assert notifier.fire(Alert("k", "a", "b", "c", severity="warning"))
    assert notifier.fire(Alert("k", "a", "b", "c", severity="error"))
    assert not notifier.fire(Alert("k", "a", "b", "c", severity="error"))


def test_a_clock_set_back_silences_nothing(notifier: Notifier, hook: Receiver, clock: Hand) -> None:
    hook.always = (500, "", 0.0)
    notifier.fire(ALERT)
    assert notifier.deliver().waiting == 1
    clock.move(days=-40)
    hook.always = (200, "", 0.0)
    assert notifier.fire(ALERT)
    assert notifier.deliver().delivered == 1


def test_the_end_of_an_alert_is_reported_once(notifier: Notifier, hook: Receiver) -> None:
    assert not notifier.resolve(ALERT.key, "never heard of")
    notifier.fire(ALERT)
    assert [message.alert.key for message in notifier.firing()] == [ALERT.key]
    assert notifier.resolve(ALERT.key, "1 gap, filled and counted")
    assert not notifier.resolve(ALERT.key, "1 gap, filled and counted")
    assert notifier.firing() == []
    notifier.deliver()
    assert len(hook.texts) == 1  # the beginning of what had ended already was not worth a message
    assert hook.texts[0].startswith("*RESOLVED* [sandbox] 1 gap, filled and counted")
    assert notifier.deliver().delivered == 0
    assert notifier.fire(ALERT)


def test_a_restart_forgets_nothing(notifier: Notifier, hook: Receiver, tmp_path: Path, clock: Hand) -> None:
    notifier.fire(ALERT)
    again = Notifier(settings(hook, tmp_path), clock=clock)
    assert not again.fire(ALERT)
    assert again.deliver().delivered == 1
    assert Notifier(settings(hook, tmp_path), clock=clock).deliver().delivered == 0
    assert len(hook.texts) == 1


def test_two_processes_report_the_same_alert_once(hook: Receiver, tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from nq_pipeline.alerts.message import Alert\n"
        "from nq_pipeline.alerts.notifier import Notifier\n"
        "from nq_pipeline.configuration import load\n"
        "notifier = Notifier(load())\n"
        "sys.stdin.readline()\n"
        "for n in range(50):\n"
        "    notifier.fire(Alert(f'key{n % 5}', f'thing {n % 5}', 'so', 'do'))\n"
        "    notifier.deliver()\n"
    )
    environment = {"NQ_DATA_DIR": str(tmp_path), "NQ_ALERT_WEBHOOK": hook.url, "PATH": "/usr/bin:/bin"}
    root = Path(__file__).parents[2]
    started = [
        subprocess.Popen([sys.executable, "-c", script], env=environment, cwd=root, stdin=subprocess.PIPE)
        for _ in range(2)
    ]
    for process in started:
        assert process.stdin
        process.stdin.write(b"\n")
        process.stdin.close()
    assert [process.wait(timeout=60) for process in started] == [0, 0]
    notifier = Notifier(settings(hook, tmp_path))
    notifier.deliver()
    fired = [line["key"] for line in lines(notifier) if "state" in line]
    assert sorted(fired) == [f"key{n}" for n in range(5)]
    assert len(hook.texts) == 5 and len(set(hook.texts)) == 5
    # Each of the hundred calls was counted.
    memory = json.loads((tmp_path / "sandbox" / "alerts.json").read_text())
    assert sum(entry["times"] for entry in memory["stories"].values()) == 100


def test_a_server_fault_is_tried_again_at_once_and_then_later(
    notifier: Notifier, hook: Receiver, clock: Hand
) -> None:
    hook.answers = [(500, "", 0.0), (200, "", 0.0)]
    notifier.fire(ALERT)
    assert notifier.deliver().delivered == 1
    hook.always = (503, "", 0.0)
    notifier.fire(Alert("other", "a", "b", "c"))
    sent = notifier.deliver()
    assert (sent.delivered, sent.waiting, sent.reason) == (0, 1, "the webhook answered HTTP 503")
    failed = lines(notifier)[-1]
    assert failed["delivered"] is False and failed["reason"] == "the webhook answered HTTP 503"
    before = hook.requests
    hook.always = (200, "", 0.0)
    assert "not tried before" in notifier.deliver().reason
    assert hook.requests == before
    clock.move(seconds=31)
    assert notifier.deliver().delivered == 1


def test_retry_after_is_respected_through_a_restart(
    notifier: Notifier, hook: Receiver, clock: Hand, tmp_path: Path
) -> None:
    hook.answers = [(429, "600", 0.0)]
    notifier.fire(ALERT)
    assert notifier.deliver().reason == "the webhook answered HTTP 429"
    clock.move(seconds=590)
    Notifier(settings(hook, tmp_path), clock=clock).deliver()
    assert hook.requests == 1
    clock.move(seconds=11)
    assert Notifier(settings(hook, tmp_path), clock=clock).deliver().delivered == 1


def test_a_hanging_webhook_does_not_delay_the_sender(
    notifier: Notifier, hook: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "TIMEOUT_S", 0.2)
    hook.always = (200, "", 2.0)
    notifier.fire(ALERT)
    notifier.fire(Alert("other", "a", "b", "c"))
    sent = notifier.deliver()
    assert (sent.delivered, sent.waiting) == (0, 2)
    assert sent.reason == "the webhook gave no answer within 0.2 s"
    while hook.requests < webhook.ATTEMPTS:  # the receiver may be slower than we were patient
        time.sleep(0.01)
    assert hook.requests == webhook.ATTEMPTS  # the second message was not tried: it would hang as well


def test_an_unreachable_webhook_is_named_as_the_reason(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, never listening
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/x/marked-path"
        notifier = Notifier(load(data_dir=tmp_path, alert_webhook=url))
        assert notifier.fire(ALERT)
        assert notifier.deliver().reason == "the webhook gave no connection (ConnectionRefusedError)"


def test_a_message_that_is_refused_lets_the_others_go_first(
    notifier: Notifier, hook: Receiver, clock: Hand
) -> None:
    hook.answers = [(400, "", 0.0)]
    notifier.fire(ALERT)
    clock.move(seconds=1)
    notifier.fire(Alert("other", "the other", "b", "c"))
    sent = notifier.deliver()
    assert (sent.delivered, sent.waiting, sent.reason) == (1, 1, "the webhook answered HTTP 400")
    assert notifier.deliver().delivered == 1
    assert "the other" in hook.texts[0] and "gaps" in hook.texts[1]


def test_a_delivery_that_takes_too_long_leaves_the_rest(
    notifier: Notifier, hook: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nq_pipeline.alerts.notifier.LONGEST_DELIVERY_S", -1)
    notifier.fire(ALERT)
    sent = notifier.deliver()
    assert (sent.delivered, sent.waiting, sent.reason) == (0, 1, "the next delivery sends the rest")
    monkeypatch.undo()
    assert notifier.deliver().delivered == 1


def test_a_redirect_is_not_followed(notifier: Notifier, hook: Receiver) -> None:
    hook.always = (302, "", 0.0)
    notifier.fire(ALERT)
    assert notifier.deliver().reason == "the webhook answered HTTP 302"
    assert hook.requests == 1


def test_without_a_webhook_the_file_has_it_all(tmp_path: Path) -> None:
    notifier = Notifier(settings(None, tmp_path))
    notifier.fire(ALERT)
    notifier.resolve(ALERT.key, "well")
    assert [line["state"] for line in lines(notifier)] == ["firing", "resolved"]
    assert (notifier.deliver().delivered, notifier.deliver().waiting) == (0, 0)


def test_a_line_that_a_power_cut_tore_spoils_no_other(notifier: Notifier) -> None:
    notifier.fire(ALERT)
    with notifier.log.open("ab") as log:
        log.write(b'{"id": "half')
    notifier.fire(Alert("other", "a", "b", "c"))
    whole, torn, next_one = notifier.log.read_text().splitlines()
    assert json.loads(whole)["key"] == ALERT.key and torn == '{"id": "half'
    assert json.loads(next_one)["key"] == "other"


def test_a_damaged_state_file_says_what_to_do(notifier: Notifier, tmp_path: Path) -> None:
    notifier.fire(ALERT)
    (tmp_path / "sandbox" / "alerts.json").write_text("{")
    with pytest.raises(AlertError, match="remove it"):
        notifier.fire(ALERT)


def test_no_secret_leaves(
    hook: Receiver, tmp_path: Path, clock: Hand, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    chosen = settings(
        hook,
        tmp_path,
        databento_api_key="db-marked-key",
        polygon_api_key="marked key/with signs",
        ledger_url="postgresql://nq:marked-password@127.0.0.1/nq",
    )
    notifier = Notifier(chosen, clock=clock)
    leaky = (
        f"db-marked-key, marked key/with signs, marked%20key%2Fwith%20signs, marked-password, {hook.url}, "
        "Max retries exceeded with url: /services/T0/B0/marked-path"
    )
    sent = []
    for n, answer in enumerate([(200, "", 0.0), (400, "", 0.0), (500, "", 0.0), (429, "900", 0.0)]):
        hook.answers = [answer] * (3 if answer[0] == 500 else 1)
        notifier.fire(Alert(f"key{n}", leaky, leaky, leaky, where=[leaky]))
        sent.append(notifier.deliver())
        clock.move(hours=2)
    sent.append(notifier.send_test())
    written = "".join(path.read_text() for path in (tmp_path / "sandbox").iterdir())
    everything = "\n".join([written, caplog.text, *hook.texts, repr(sent), repr(chosen)])
    assert "marked" not in everything
    assert hook.texts[0].count("***") >= 5


def test_text_from_a_vendor_mentions_nobody(notifier: Notifier, hook: Receiver) -> None:
    notifier.fire(Alert("k", "<!channel> & <https://evil.example|click>\x1b[31m\nnext", "b", "c"))
    notifier.deliver()
    head = hook.texts[0].splitlines()[0]
    assert head.endswith("&lt;!channel&gt; &amp; &lt;https://evil.example|click&gt; [31m next")


@given(st.text())
def test_a_sentence_is_one_line_that_prints_and_ends(text: str) -> None:
    line = one_line(text)
    assert line.isprintable() and len(line) <= LONGEST and one_line(line) == line


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example.com/marked",
        "https://",
        "ftp://h/marked",
        "https://a:marked@h/x",
        "https://h:marked/",
        "https://h/marked\n",
    ],
)
def test_an_invalid_address_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(SettingsError, match="NQ_ALERT_WEBHOOK: write the address") as caught:
        load(alert_webhook=url)
    assert "marked" not in str(caught.value)


def test_the_command_reports_the_result_of_a_test(hook: Receiver, tmp_path: Path) -> None:
    def nq(*words: str, **variables: str) -> Result:
        return CliRunner().invoke(main, words, env={"NQ_DATA_DIR": str(tmp_path), **variables})

    done = nq("alert", "test")
    assert done.exit_code == 0 and "NQ_ALERT_WEBHOOK is not set" in done.stdout
    done = nq("alert", "test", NQ_ALERT_WEBHOOK=hook.url)
    assert done.exit_code == 0 and "the webhook accepted it" in done.stdout
    assert hook.texts[0].startswith("*TEST* [sandbox] a test of the alerts")
    hook.always = (404, "", 0.0)
    done = nq("alert", "test", NQ_ALERT_WEBHOOK=hook.url)
    assert done.exit_code == 5 and "HTTP 404" in done.stdout
    Notifier(settings(hook, tmp_path)).fire(ALERT)
    assert ALERT.what in nq("alert").stdout
