"""Templates (Jinja2, in a sandbox) by which an administrator makes names of what a provider says of people.

Jinja2 is imported where there is a template: a server without a provider does without.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from ranvier.config.reader import WrongValueError, text

if TYPE_CHECKING:
    from jinja2 import Template
    from jinja2.sandbox import SandboxedEnvironment


class TemplateFailed(Exception):
    """Say that a template makes nothing of these claims."""


def template(value: Any) -> str:
    """Read a template of a configuration."""
    try:
        _compiled(text(value))
    except WrongValueError:
        raise
    except Exception as error:
        raise WrongValueError(f"a Jinja2 template ({error})") from None
    return text(value)


def render(template: str, claims: Mapping[str, Any]) -> str:
    """Fill in a template; ``user`` in it are the claims, and what is missing is empty.

    Raises TemplateFailed.
    """
    try:
        return _compiled(template).render(user=claims).strip()
    except Exception as error:  # whatever the administrator's expression runs into
        raise TemplateFailed(f"{type(error).__name__}: {error}") from error


@lru_cache(256)
def _compiled(text: str) -> Template:
    return _environment().from_string(text)


@cache
def _environment() -> SandboxedEnvironment:
    from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: PLC0415 (only where there is a template)

    environment = ImmutableSandboxedEnvironment(finalize=lambda value: "" if value is None else value)
    environment.filters["localpart_from_email"] = lambda address: str(address).rpartition("@")[0]
    return environment
