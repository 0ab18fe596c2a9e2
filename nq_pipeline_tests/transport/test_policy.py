"""When a failed request may be repeated."""

import pytest

from nq_pipeline.settings.groups import HttpSettings
from nq_pipeline.transport.policy import Policy, retry_wait

POLICY = Policy(retry_after_cap_s=30)


@pytest.mark.parametrize(
    ("status", "header", "remaining_s", "wait_s"),
    [
        (429, "5", 60, 5),
        (503, " 5 ", 60, 5),
        (429, "31", 60, None),
        (503, "31", 60, None),
        (429, "5", 4, None),
        (429, "", 60, None),
        (429, "Tue, 10 Jun 2025 15:00:00 GMT", 60, None),
        (503, "", 60, 0),
        (503, "Tue, 10 Jun 2025 15:00:00 GMT", 60, 0),
        (None, "", 60, 0),
    ],
)
def test_the_wait_before_a_request_is_repeated(
    status: int | None, header: str, remaining_s: float, wait_s: float | None
) -> None:
    assert retry_wait(status, {"Retry-After": header}, POLICY, remaining_s) == wait_s


def test_the_settings_decide_times_and_attempts_and_the_vendor_its_rate() -> None:
    http = HttpSettings(timeout_s=4, attempts=2, retry_after_cap_s=7)
    assert Policy.of(http, per_minute=5) == Policy(4, 2, 7, per_minute=5)
