"""Rate limits: who is slowed down, for how long, and what it costs the server."""

from __future__ import annotations

from contextlib import suppress

import pytest

from ranvier.http.limits import Rate, RateLimiter, address_key
from ranvier.spec.errors import MatrixError


def refused_ms(
    limiter: RateLimiter, key: str, now: float, cost: float = 1.0, name: str = "rc_message"
) -> int:
    try:
        limiter.check(name, key, now, cost)
    except MatrixError as error:
        return int(error.fields["retry_after_ms"])
    return 0


def test_a_burst_then_a_steady_rate() -> None:
    """A user could send too fast, or would be stopped while talking normally."""
    limiter = RateLimiter({"rc_message": Rate(0.5, 3)})
    assert [refused_ms(limiter, "@a", 100.0) for _ in range(4)] == [0, 0, 0, 2000]
    assert refused_ms(limiter, "@a", 101.0) == 1000
    assert refused_ms(limiter, "@a", 102.0) == 0
    assert refused_ms(limiter, "@a", 102.0) == 2000
    assert [refused_ms(limiter, "@a", 200.0) for _ in range(4)] == [0, 0, 0, 2000]


def test_waiting_as_told_is_enough() -> None:
    """A client that waits as it is told would be refused again."""
    limiter = RateLimiter({"rc_message": Rate(0.17, 3)})
    now = 1000.3
    for _ in range(200):
        now += refused_ms(limiter, "@a", now) / 1000
        assert refused_ms(limiter, "@a", now) >= 0
        wait = refused_ms(limiter, "@a", now)
        if wait:
            assert refused_ms(limiter, "@a", now + wait / 1000) == 0
            now += wait / 1000


def test_keys_limits_and_costs_are_apart() -> None:
    """One user's messages would stop another's, or their logins."""
    limiter = RateLimiter({"rc_message": Rate(1, 2), "rc_login.address": Rate(1, 1)})
    assert refused_ms(limiter, "@a", 0.0, cost=2.0) == 0
    assert refused_ms(limiter, "@a", 0.0) == 1000
    assert refused_ms(limiter, "@b", 0.0) == 0
    assert refused_ms(limiter, "@a", 0.0, name="rc_login.address") == 0
    assert refused_ms(limiter, "@a", 0.0, name="rc_not_configured") == 0


def test_looking_without_counting() -> None:
    """A right password would count as a failed attempt."""
    limiter = RateLimiter({"rc_message": Rate(0.1, 1)})
    for _ in range(5):
        limiter.check("rc_message", "@a", 0.0, count=False)
    assert refused_ms(limiter, "@a", 0.0) == 0
    with pytest.raises(MatrixError) as caught:
        limiter.check("rc_message", "@a", 0.0, count=False)
    assert (caught.value.errcode, caught.value.status) == ("M_LIMIT_EXCEEDED", 429)


def test_what_was_tried_at_several_workers_at_once_is_counted() -> None:
    """Somebody who sends each guess to every worker at once could try as many times as many passwords."""
    workers: list[RateLimiter] = []
    now = tried = 0

    def tell(name: str, key: str, cost: float, burst: float) -> None:
        for worker in workers:
            if worker is not guessing:
                worker.count_elsewhere(name, key, cost, now)

    workers += [RateLimiter({"rc_message": Rate(0.1, 5)}, counted=tell) for _ in range(4)]
    for now in range(1000):
        let_pass = []
        for worker in workers:
            with suppress(MatrixError):
                worker.check("rc_message", "@a", now, count=False)
                let_pass.append(worker)
        for guessing in let_pass:
            tried += 1
            guessing.count("rc_message", "@a", now)
    assert 90 < tried <= 0.1 * 1000 + 4 * 5


def test_a_rate_of_nothing() -> None:
    """An administrator who forbids something with a rate of 0 would crash it instead."""
    limiter = RateLimiter({"rc_message": Rate(0, 1)})
    assert refused_ms(limiter, "@a", 0.0) == 0
    assert refused_ms(limiter, "@a", 1e6) > 0


def test_a_more_generous_rate_helps_at_once() -> None:
    """Who was kept out by a limit would be kept out for hours, or decades, after it was raised."""
    limiter = RateLimiter({"rc_message": Rate(0.003, 5), "rc_login.address": Rate(0, 1)})
    assert [refused_ms(limiter, "@a", 0.0) for _ in range(6)][-1] > 300_000
    assert refused_ms(limiter, "1.2.3.4", 0.0, name="rc_login.address") == 0
    limiter.change_rates({"rc_message": Rate(1, 10), "rc_login.address": Rate(0, 1)})
    assert [refused_ms(limiter, "@a", 1.0) for _ in range(11)] == [0] * 10 + [1000]
    assert refused_ms(limiter, "1.2.3.4", 1.0, name="rc_login.address") > 0


@pytest.mark.parametrize("workers", [2, 4, 8])
def test_workers_together_keep_the_rate(workers: int) -> None:
    """Who asks all workers at once could guess many times as many passwords, for ever."""
    limiters = [RateLimiter({"rc_message": Rate(1, 5)}) for _ in range(workers)]
    passed = 0
    for now in range(0, 1000, 10):
        counts = [_let_pass(limiter, now) for limiter in limiters]
        for limiter, own in zip(limiters, counts, strict=True):
            limiter.count_elsewhere("rc_message", "@a", sum(counts) - own, now)
        passed += sum(counts)
    assert 900 <= passed <= 1000 + workers * 5


def _let_pass(limiter: RateLimiter, now: int) -> int:
    """Ask until it is refused, and give how often it was not."""
    passed = 0
    while not refused_ms(limiter, "@a", now):
        passed += 1
    return passed


def test_memory_is_bounded() -> None:
    """Strangers from many addresses would fill the server's memory."""
    limiter = RateLimiter({"rc_message": Rate(0.001, 1)}, max_buckets=100)
    for i in range(1000):
        refused_ms(limiter, str(i), 0.0)
    assert len(limiter) <= 100
    for i in range(1000):
        refused_ms(limiter, f"later {i}", 1e6 + i * 10_000)
    assert len(limiter) <= 2


def test_addresses() -> None:
    """One household could have 2^64 times the attempts of another."""
    assert address_key("192.0.2.7") == "192.0.2.7"
    assert address_key("2001:db8::1") == address_key("2001:db8::ffff:2") != address_key("2001:db8:0:1::1")
    assert address_key("fe80::1%eth0") == "fe80::/64"
    assert address_key("not:an:address") == "not:an:address"
