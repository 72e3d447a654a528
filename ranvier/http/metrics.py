"""What Prometheus and a load balancer ask: ``/metrics`` and ``/health``."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from ranvier.http.request import Request
from ranvier.http.response import Response
from ranvier.http.route import Auth, Route

_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """Count requests. ``registry`` is where other parts of the server put what they count."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry if registry is not None else CollectorRegistry()
        ProcessCollector(registry=self.registry)  # CPU, memory, open files of this process
        self._requests = Counter(
            "ranvier_http_requests",
            "Requests answered, by endpoint, method and status.",
            ["endpoint", "method", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "ranvier_http_request_seconds",
            "Time from the head of a request to the end of its answer.",
            ["endpoint"],
            buckets=_BUCKETS_S,
            registry=self.registry,
        )
        self._in_flight = Gauge(
            "ranvier_http_requests_in_flight", "Requests being answered now.", registry=self.registry
        )
        # prometheus-client finds a labelled child in 3 µs, this in 0.1. Endpoints and statuses are few.
        self._counters: dict[tuple[str, str, int], Counter] = {}
        self._histograms: dict[str, Histogram] = {}

    def watch_in_flight(self, count: Callable[[], float]) -> None:
        """Read the number of requests in flight from a function, whenever Prometheus asks."""
        self._in_flight.set_function(count)

    def observe(self, endpoint: str, method: str, status: int, seconds: float) -> None:
        """Count one answered request. ``endpoint`` is the name of a route, never what a stranger sent."""
        counter = self._counters.get((endpoint, method, status))
        if counter is None:
            counter = self._requests.labels(endpoint, method, str(status))
            self._counters[(endpoint, method, status)] = counter
        counter.inc()
        histogram = self._histograms.get(endpoint)
        if histogram is None:
            histogram = self._histograms[endpoint] = self._seconds.labels(endpoint)
        histogram.observe(seconds)


async def get_metrics(request: Request, *, metrics: Metrics) -> Response:
    """Give all counts in Prometheus's text format."""
    return Response(200, generate_latest(metrics.registry), content_type=CONTENT_TYPE_LATEST)


async def get_health(request: Request, *, ready: Callable[[], bool]) -> Response:
    """Say OK while this process can answer requests, 503 while it starts or drains."""
    if ready():
        return Response(200, b"OK", content_type="text/plain; charset=utf-8")
    return Response(503, b"not ready", content_type="text/plain; charset=utf-8")


METRICS_ROUTES = [
    Route("GET", ("/metrics", "/_ranvier/metrics"), get_metrics, auth=Auth.NONE, name="metrics")
]
HEALTH_ROUTES = [Route("GET", "/health", get_health, auth=Auth.NONE, name="health")]
