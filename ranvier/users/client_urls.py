"""Where clients wait for a login: the ``redirectUrl`` that each of them names, which may be anything.

A stranger may have written it into a link, so that what it does to whoever follows it is looked at first.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import SplitResult, quote, unquote_plus, urlsplit

from ranvier.spec.errors import invalid_param

MAX_URL: Final = 1000
"""In bytes: it is sealed in a cookie, which has at most 4096, beside a name and a subject."""
# What a browser would run, or show as if it were from here, or open of the reader's own.
_FORBIDDEN: Final = frozenset(
    (
        *("about", "blob", "data", "file", "filesystem", "ftp", "intent", "javascript", "jar", "mailto"),
        *("vbscript", "view-source", "ws", "wss"),
    )
)
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(.*)", re.DOTALL)
_HOST: Final = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_DOTS: Final = re.compile(r"(?:\.|%2e){1,2}", re.IGNORECASE)
_UNCHANGED: Final = "!#$%&'()*+,/:;=?@[]~"


def checked_url(url: str) -> str:
    """Give a URL of a client in ASCII, or refuse it. Raises 400 ``M_INVALID_PARAM``."""
    match = _SCHEME.fullmatch(url)
    # Browsers leave out tabs and line ends wherever they are, and take \ for /.
    if match is None or not url.isprintable() or "\\" in url or " " in url:
        raise invalid_param("'redirectUrl' is no address of an app")
    scheme = match[1].lower()
    if scheme in _FORBIDDEN:
        raise invalid_param(f"'redirectUrl' may not begin with {scheme}:")
    safe = quote(url, safe=_UNCHANGED)
    if len(safe) > MAX_URL:
        raise invalid_param(f"'redirectUrl' is longer than {MAX_URL} bytes")
    try:
        parts = urlsplit(safe)
    except ValueError:
        raise invalid_param("'redirectUrl' is no address of an app") from None
    if scheme in ("http", "https"):
        return _of_the_web(safe, parts)
    return safe


def _of_the_web(url: str, parts: SplitResult) -> str:
    if not url[len(parts.scheme) + 1 :].startswith("//") or not _HOST.fullmatch(parts.netloc):
        raise invalid_param("'redirectUrl' is no address of an app")
    # Browsers take them out, and with them what an address that is trusted begins with.
    if any(_DOTS.fullmatch(segment) for segment in parts.path.split("/")):
        raise invalid_param("'redirectUrl' may have no '.' or '..' in its path")
    if not parts.path:  # so that no longer host name begins as it does
        origin = f"{parts.scheme}://{parts.netloc}"
        return f"{origin}/{url[len(origin) :]}"
    return url


def with_login_token(url: str, token: str) -> str:
    """Add a login token to a client's URL, in place of any other.

    "If it already includes one or more loginToken parameters, they should be removed before adding the new
    one": all else stays as it is. Source: client-server API, "Handling the callback from the Authentication
    server".
    """
    before, hash_mark, fragment = url.partition("#")
    path, _, query = before.partition("?")
    kept = [
        pair for pair in query.split("&") if pair and unquote_plus(pair.partition("=")[0]) != "loginToken"
    ]
    return f"{path}?{'&'.join([*kept, f'loginToken={quote(token)}'])}{hash_mark}{fragment}"


def origin_of(url: str) -> str:
    """Give what a person is told of where a URL leads, which a content security policy understands, too."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}" if parts.scheme in ("http", "https") else f"{parts.scheme}:"
