"""The documentation says which operations of the specification are served, and it is true."""

from __future__ import annotations

from ranvier.processes.application import client_routes
from tests.spec_openapi import DOCUMENT, coverage_document, operations, serving


def test_documented_coverage_is_that_of_the_routes() -> None:
    """The documentation would promise endpoints that do not exist, or hide some that do."""
    assert DOCUMENT.read_text() == coverage_document(client_routes()), "run: python -m tests.spec_openapi"


def test_whole_specification_is_listed() -> None:
    """Operations would be missing from the documentation, neither served nor said to be missing."""
    assert len(list(operations())) == 166


def test_routes_are_found_by_the_table() -> None:
    """The table would say that hardly anything is served, or that what does not exist is."""
    served = serving(client_routes())
    assert served["GET", "/_matrix/client/v3/sync"] is not None
    assert served["GET", "/_matrix/client/v3/thirdparty/location"] is None
