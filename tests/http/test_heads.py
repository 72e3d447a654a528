"""Heads that come again but for ``since`` are known, and nothing else is taken for them."""

from __future__ import annotations

import pytest

from ranvier.http.heads import Head, RepeatedHeads, cut_since

HEAD = (
    b"GET /_matrix/client/v3/sync?timeout=30000&since=%b&filter=1 HTTP/1.1\r\n"
    b"authorization: Bearer %b\r\n\r\n"
)


def parsed(query_string: bytes) -> Head:
    return Head(
        method="GET",
        raw_path=b"/_matrix/client/v3/sync",
        query_string=query_string,
        headers=[],
        modern=True,
        keep_alive=True,
        expects_continue=False,
    )


def test_a_poll_that_comes_again_is_known() -> None:
    """A client that polls again would get an answer to where it was before."""
    heads, head = RepeatedHeads(), parsed(b"timeout=30000&since=s1_0-ab&filter=1")
    heads.keep(HEAD % (b"s1_0-ab", b"token"), head)
    assert heads.find(HEAD % (b"s27_3-ab", b"token")) == (head, b"s27_3-ab")
    assert (head.before, head.after) == (b"timeout=30000&since=", b"&filter=1")


@pytest.mark.parametrize(
    "data",
    [
        HEAD % (b"s2", b"another"),
        HEAD % (b"s2&full_state=true", b"token"),
        HEAD % (b"s%32", b"token"),
        HEAD % (b"", b"token"),
        (HEAD % (b"s2", b"token"))[:-1],
        (HEAD % (b"s2", b"token")) + b"GET / HTTP/1.1\r\n",
        (HEAD % (b"s2", b"token")).replace(b"GET", b"POST"),
        (HEAD % (b"s2", b"token")).replace(b"\r\n\r\n", b"\r\ncontent-length: 2\r\n\r\n{}"),
    ],
)
def test_nothing_else_is_taken_for_it(data: bytes) -> None:
    """Somebody would be answered what they did not ask, or what somebody else may see."""
    heads = RepeatedHeads()
    heads.keep(HEAD % (b"s1", b"token"), parsed(b"timeout=30000&since=s1&filter=1"))
    assert heads.find(data) is None


@pytest.mark.parametrize(
    "data",
    [
        b"GET /sync&since=s1?x=1&since=s2 HTTP/1.1\r\n\r\n",
        b"GET /sync#?since=s1 HTTP/1.1\r\n\r\n",
        b"GET /sync?x=1 HTTP/1.1\r\nreferer: /?since=s1\r\n\r\n",
        b"GET /sync?since=s1 HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}",
    ],
)
def test_where_since_is_something_else_it_is_not_kept(data: bytes) -> None:
    """A value that is no parameter would be taken for the client's place in the log."""
    heads = RepeatedHeads()
    heads.keep(data, parsed(b"x=1&since=s2"))
    assert heads.find(data) is None


def test_it_is_bounded() -> None:
    """Strangers could fill the server's memory with requests."""
    heads = RepeatedHeads(max_kept=10)
    for number in range(100):
        heads.keep(HEAD % (b"s1", b"%d" % number), parsed(b"timeout=30000&since=s1&filter=1"))
    known = [number for number in range(100) if heads.find(HEAD % (b"s1", b"%d" % number))]
    assert len(known) <= 10
    assert known[-1] == 99


@pytest.mark.parametrize(
    "query",
    [b"since=s1", b"timeout=1&since=s1_2-ab&filter=0", b"a=since=3&since=s4", b"since=s1%5F2&since=s3"],
)
def test_a_query_is_cut_without_loss(query: bytes) -> None:
    """What a client asks would be read as something else once its request is put together again."""
    cut = cut_since(query)
    assert cut is not None
    assert b"".join(cut) == query
    assert cut[0].endswith(b"since=")
    assert cut[1].startswith(b"s")


@pytest.mark.parametrize("query", [b"", b"timeout=1", b"since=", b"not_since=s1", b"since=%73"])
def test_a_query_without_a_plain_since_is_not_cut(query: bytes) -> None:
    """A client that begins anew would be told only what is new."""
    assert cut_since(query) is None
