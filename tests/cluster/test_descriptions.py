"""Workers and the log as people are told of them."""

from __future__ import annotations

from ranvier.cluster.descriptions import describe_log
from ranvier.wire.figures import Figures
from ranvier.wire.members import Member


def test_what_is_passed_on_is_one_request() -> None:
    """The page would show more requests than clients sent, and than Prometheus counts."""
    figures = [Figures(requests_per_s=5.0), Figures(requests_per_s=4.0, forwarded_per_s=3.0)]
    members = [
        Member(name=name, instance=name, pid=1, host="host", address="unix:/nowhere", figures=it)
        for name, it in zip("ab", figures, strict=True)
    ]
    assert describe_log(0, 0.0, members)["requests_per_s"] == 6.0
