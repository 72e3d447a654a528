"""What Prometheus and a load balancer ask: ``/metrics`` and ``/health``."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from ranvier.http.request import Request
from ranvier.http.response import Response
from ranvier.http.route import Auth, Route

_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
_BUCKET_NAMES = [*map(str, _BUCKETS_S), "+Inf"]


class _Times:
    """Count how long the requests of one endpoint took."""

    __slots__ = ("buckets", "total_s")

    def __init__(self) -> None:
        self.buckets = [0] * len(_BUCKET_NAMES)
        self.total_s = 0.0


class _Answers:
    """Count the answers of one status of an endpoint, with the times of all of them."""

    __slots__ = ("count", "times")

    def __init__(self, times: _Times) -> None:
        self.count = 0
        self.times = times


class _RequestCounts(Collector):
    """Count requests in plain dicts: prometheus-client's own counters cost several times as much each."""

    def __init__(self) -> None:
        self.answers: dict[tuple[str, str, int], _Answers] = {}
        self.times: defaultdict[str, _Times] = defaultdict(_Times)

    def collect(self) -> Iterator[Metric]:
        """Give the counts to Prometheus."""
        answers = CounterMetricFamily(
            "ranvier_http_requests",
            "Requests answered, by endpoint, method and status.",
            labels=["endpoint", "method", "status"],
        )
        for (endpoint, method, status), answered in self.answers.items():
            answers.add_metric([endpoint, method, str(status)], answered.count)
        yield answers
        seconds = HistogramMetricFamily(
            "ranvier_http_request_seconds",
            "Time from the head of a request to the end of its answer.",
            labels=["endpoint"],
        )
        for endpoint, times in self.times.items():
            counts = zip(_BUCKET_NAMES, accumulate(map(float, times.buckets)), strict=True)
            seconds.add_metric([endpoint], list(counts), times.total_s)
        yield seconds


class Metrics:
    """Count requests. ``registry`` is where other parts of the server put what they count."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry if registry is not None else CollectorRegistry()
        ProcessCollector(registry=self.registry)  # CPU, memory, open files of this process
        self._counts = _RequestCounts()
        self.registry.register(self._counts)
        self._in_flight = Gauge(
            "ranvier_http_requests_in_flight", "Requests being answered now.", registry=self.registry
        )

    def watch_in_flight(self, count: Callable[[], float]) -> None:
        """Read the number of requests in flight from a function, whenever Prometheus asks."""
        self._in_flight.set_function(count)

    def observe(self, endpoint: str, method: str, status: int, seconds: float) -> None:
        """Count one answered request. ``endpoint`` is the name of a route, never what a stranger sent."""
        answers = self._counts.answers.get((endpoint, method, status))
        if answers is None:
            answers = _Answers(self._counts.times[endpoint])
            self._counts.answers[endpoint, method, status] = answers
        answers.count += 1
        times = answers.times
        times.buckets[bisect_left(_BUCKETS_S, seconds)] += 1
        times.total_s += seconds


async def get_metrics(request: Request, *, metrics: Metrics) -> Response:
    """Give all counts in Prometheus's text format."""
    return Response(200, generate_latest(metrics.registry), content_type=CONTENT_TYPE_LATEST)


async def get_health(
    request: Request, *, ready: Callable[[], bool], behind_rows: Callable[[], int] = lambda: 0
) -> Response:
    """Say OK while this process can answer requests, 503 while it starts or drains.

    A header tells how many rows of the log it knows of and has not followed yet.
    """
    headers = {"Ranvier-Behind-Rows": str(behind_rows())}
    if ready():
        return Response(200, b"OK", headers, content_type="text/plain; charset=utf-8")
    return Response(503, b"not ready", headers, content_type="text/plain; charset=utf-8")


METRICS_ROUTES = [
    Route(
        "GET", ("/metrics", "/_ranvier/metrics"), get_metrics, auth=Auth.NONE, name="metrics", follows=False
    )
]
HEALTH_ROUTES = [Route("GET", "/health", get_health, auth=Auth.NONE, name="health", follows=False)]
