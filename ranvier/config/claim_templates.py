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
    return _rendered(template, claims, strict=False)


def render_strictly(template: str, claims: Mapping[str, Any]) -> str:
    """Fill in a template by which somebody is known, of texts and whole numbers that are all there.

    Without one of them two people could come to the same. Raises TemplateFailed.
    """
    # What is no word is missing, also to an expression that would make a text of it before it is looked at.
    return _rendered(template, _words(claims), strict=True)


def _words(claims: Mapping[str, Any]) -> dict[str, Any]:
    """Give the texts and whole numbers of claims, and of claims in them."""
    found = {name: _words(it) if isinstance(it, Mapping) else it for name, it in claims.items()}
    return {name: it for name, it in found.items() if _is_word(it) or (isinstance(it, dict) and it)}


def _rendered(template: str, claims: Mapping[str, Any], *, strict: bool) -> str:
    try:
        return _compiled(template, strict=strict).render(user=claims).strip()
    except Exception as error:  # whatever the administrator's expression runs into
        raise TemplateFailed(f"{type(error).__name__}: {error}") from error


@lru_cache(256)
def _compiled(text: str, *, strict: bool = False) -> Template:
    return _environment(strict=strict).from_string(text)


@cache
def _environment(*, strict: bool) -> SandboxedEnvironment:
    from jinja2 import StrictUndefined, Undefined  # noqa: PLC0415 (only where there is a template)
    from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: PLC0415

    environment = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined if strict else Undefined, finalize=_word if strict else _or_nothing
    )
    environment.filters["localpart_from_email"] = lambda address: str(address).rpartition("@")[0]
    return environment


def _or_nothing(value: Any) -> Any:
    return "" if value is None else value


def _is_word(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool) and bool(str(value).strip())


def _word(value: Any) -> str:
    if not _is_word(value):
        raise ValueError("an expression gives neither a text nor a number")
    return str(value)
