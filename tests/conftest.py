"""Fixtures that every test may ask for."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.oidc_provider import Provider, running_provider
from tests.postgres import fresh_database, migrated_template, running_postgres

# How fast a machine makes up examples, or works on one, is no matter of these tests.
settings.register_profile("ranvier", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ranvier")


def pytest_configure() -> None:
    """Let SIGTERM end the run as Ctrl-C does, so that fixtures stop what they started."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Show what tests recorded as their ``summary``, in whatever process they ran."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "summary" and report.when == "call":
                terminalreporter.write_line(f"{report.nodeid}: {value}")


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Give the DSN of a private PostgreSQL that runs for the whole session."""
    with running_postgres() as dsn:
        yield dsn


@pytest.fixture(scope="session")
def migrated(postgres: str) -> Iterator[str]:
    """Give the name of a database with the whole schema and nothing in it, to make copies of."""
    with migrated_template(postgres) as name:
        yield name


@pytest.fixture
async def database(postgres: str, migrated: str) -> AsyncIterator[str]:
    """Give the DSN of a fresh database, of no server yet, dropped after the test.

    It has the schema already: copying it takes half the time of making it.
    """
    async with fresh_database(postgres, template=migrated) as dsn:
        yield dsn


@pytest.fixture
async def empty_database(postgres: str) -> AsyncIterator[str]:
    """Give the DSN of a fresh empty database, dropped after the test."""
    async with fresh_database(postgres) as dsn:
        yield dsn


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    """Give an OpenID provider where Alice is logged in."""
    async with running_provider() as running:
        yield running
