"""How requests to Barchart are authorized, by the strategy of `NQ_BARCHART_SESSION`.

`api` sends what the page's script sends and no cookie. `cookies` visits a page first, for a session and
its `XSRF-TOKEN`. `browser` sends cookies from the user's own browser.
"""

from __future__ import annotations

from urllib.parse import unquote

from nq_pipeline.errors import (
    BadPayload,
    Blocked,
    DeadlineReached,
    NotConfigured,
    NotEntitled,
    RateLimited,
    SourceError,
    Unavailable,
)
from nq_pipeline.settings import Settings
from nq_pipeline.sources.barchart.spec import BarchartSettings
from nq_pipeline.sources.failures import error_of_status, rejecting
from nq_pipeline.transport.lifetime import Keep
from nq_pipeline.transport.vendor_session import Reply, VendorSession

BROWSER = {
    "Accept": "application/json",
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) "
    "Chrome/140.0 Safari/537.36",
    "Sec-Fetch-Site": "same-origin",
    "Sec-Fetch-Mode": "cors",
    "Sec-Fetch-Dest": "empty",
}
"""What a browser sends with the page's own request; the API wants the same-origin mark."""


class SiteLogin:
    """The headers that authorize one run's requests.

    Raises `NotConfigured` when `NQ_BARCHART_SESSION=browser` has no usable cookies.
    """

    def __init__(self, settings: Settings, session: VendorSession) -> None:
        own = settings.vendor(BarchartSettings)
        self.session, self._strategy, cookies = session, own.session, own.cookies
        self._cookies = cookies.get_secret_value() if cookies and self._strategy == "browser" else ""
        self._visited = self._renewed = False
        if self._strategy == "browser" and not (self._cookies.isascii() and self._cookies.isprintable()):
            raise NotConfigured(
                "NQ_BARCHART_COOKIES is not a Cookie header: it must be one line of plain text"
            )
        if self._strategy == "browser" and not self._cookies:
            raise NotConfigured(
                "NQ_BARCHART_SESSION=browser needs the Cookie header of your browser in NQ_BARCHART_COOKIES"
            )

    def api_headers(self, referer: str) -> dict[str, str]:
        """The headers of an API request; the first one may visit the page `referer` for a session."""
        headers = {**BROWSER, "Referer": self.session.scope.base_url + referer}
        if self._strategy == "browser":
            pairs = dict(pair.strip().partition("=")[::2] for pair in self._cookies.split(";"))
            token: str | None = pairs.get("XSRF-TOKEN", "")
            headers["Cookie"] = self._cookies
        elif self._strategy == "cookies":
            if not self._visited:
                self._visit(referer)
            token = self.session.cookie("XSRF-TOKEN") or None  # the site replaces it with every answer
        else:
            token = None
        return headers if token is None else headers | {"X-XSRF-TOKEN": unquote(token)}

    def page_headers(self) -> dict[str, str]:
        """What a browser sends when it opens a page."""
        page = {**BROWSER, "Accept": "text/html", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
        return page | ({"Cookie": self._cookies} if self._cookies else {})

    def renew(self, referer: str) -> bool:
        """Start a new session, at most once per run; False when there is none to start."""
        if self._strategy != "cookies" or self._renewed:
            return False
        self._renewed = True
        return self._visit(referer)

    def _visit(self, referer: str) -> bool:
        """Open a page for its cookies. A refusal here decides nothing: the API's answer does."""
        self._visited = True
        try:
            reply = self.session.get(
                referer, operation="session", headers=self.page_headers(), keep=Keep.NEVER, archive=False
            )
            check_status(reply, self.session)
        except DeadlineReached:
            raise
        except SourceError:
            return False
        return True


def check_status(reply: Reply, session: VendorSession) -> None:
    """Raise what a status other than 200 or a challenge means, and reject the reply."""
    with rejecting(session, reply):
        error = _error_of_reply(reply)
        if error is not None:
            raise error


def _error_of_reply(reply: Reply) -> SourceError | None:
    status, what = reply.status, reply.operation
    if status == 202 or reply.headers.get("x-amzn-waf-action") == "challenge":
        return Blocked(f"{what}: the site's bot protection answered with a challenge (HTTP {status})")
    if status == 200:
        return None
    if status is not None and 300 <= status < 400:
        return BadPayload(f"{what}: the site redirects elsewhere (HTTP {status}), which is not followed")
    known = {
        401: NotEntitled(f"{what}: the site wants a session or a login (HTTP 401)"),
        403: Blocked(f"{what}: the site refuses this client or address (HTTP 403)"),
        405: Blocked(f"{what}: the site's bot protection wants a captcha solved (HTTP 405)"),
        419: Blocked(f"{what}: the session's token is missing or has expired (HTTP 419)"),
        429: RateLimited(f"{what}: too many requests (HTTP 429); raise NQ_BARCHART_SPACING_S"),
    }
    return error_of_status(f"{what}: the site", status, known, otherwise=Unavailable)
