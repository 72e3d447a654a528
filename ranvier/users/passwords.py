"""Passwords: hashed and checked off the event loop, by as many threads as may be busy with it."""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import argon2
import bcrypt

from ranvier.config.accounts import PasswordConfig, PasswordPolicy
from ranvier.spec.errors import MatrixError, invalid_param

MAX_PASSWORD_LENGTH = 512
MAX_WAITING = 200
_BCRYPT_BYTES = 72  # what bcrypt looks at; whoever made the hash let the rest go, too

T = TypeVar("T")


def weak_password(message: str) -> MatrixError:
    """Say that a password is too easy to guess (400 ``M_WEAK_PASSWORD``)."""
    return MatrixError("M_WEAK_PASSWORD", 400, message)


def check_new_password(policy: PasswordPolicy, password: str) -> None:
    """Check a new password. Raises ``M_INVALID_PARAM`` and ``M_WEAK_PASSWORD``."""
    if not password or len(password) > MAX_PASSWORD_LENGTH:
        raise invalid_param(f"A password has 1 to {MAX_PASSWORD_LENGTH} characters")
    if not policy.enabled:
        return
    if len(password) < policy.minimum_length:
        raise weak_password(f"The password must be at least {policy.minimum_length} characters long")
    wanted: tuple[tuple[bool, Callable[[str], bool], str], ...] = (
        (policy.require_digit, str.isdigit, "a digit"),
        (policy.require_symbol, lambda character: not character.isalnum(), "a symbol"),
        (policy.require_uppercase, str.isupper, "an upper-case letter"),
        (policy.require_lowercase, str.islower, "a lower-case letter"),
    )
    for asked, test, name in wanted:
        if asked and not any(test(character) for character in password):
            raise weak_password(f"The password must have {name}")


class Passwords:
    """Hash new passwords with argon2id; check those and the bcrypt hashes of imported users.

    Each hash takes its ``argon2_memory_kib``, so the threads bound the memory as well.
    """

    def __init__(self, config: PasswordConfig, *, threads: int = 2) -> None:
        self._argon2 = argon2.PasswordHasher(
            time_cost=config.argon2_time_cost,
            memory_cost=config.argon2_memory_kib,
            parallelism=config.argon2_parallelism,
        )
        self._pepper = config.pepper
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="passwords")
        self._waiting = 0
        self._closed = False

    def close(self) -> None:
        """End the threads once they are done with what is waiting; what comes later is answered 503."""
        self._closed = True
        self._pool.shutdown(wait=False)

    async def hash(self, password: str) -> str:
        """Hash a password."""
        return await self._run(lambda: self._argon2.hash(self._prepare(password)))

    async def matches(self, password: str, stored: str | None) -> bool:
        """Tell whether a password is the stored one; as slow where there is none (None)."""
        if len(password) > MAX_PASSWORD_LENGTH:
            return False
        return await self._run(lambda: self._matches(self._prepare(password), stored))

    def is_outdated(self, stored: str) -> bool:
        """Tell whether a hash is of another kind or strength than new ones."""
        return stored.startswith("$2") or self._argon2.check_needs_rehash(stored)

    def _matches(self, password: bytes, stored: str | None) -> bool:
        if stored is None:
            self._argon2.hash(password)
            return False
        try:
            if stored.startswith("$2"):
                return bcrypt.checkpw(password[:_BCRYPT_BYTES], stored.encode("ascii"))
            return self._argon2.verify(stored, password)
        except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError, ValueError):
            return False

    def _prepare(self, password: str) -> bytes:
        # The same text may come in several Unicode forms, depending on the keyboard.
        return (unicodedata.normalize("NFKC", password) + self._pepper).encode("utf-8", "surrogatepass")

    async def _run(self, work: Callable[[], T]) -> T:
        if self._closed:
            raise MatrixError("M_UNKNOWN", 503, "The server is stopping")
        if self._waiting >= MAX_WAITING:
            raise MatrixError(
                "M_LIMIT_EXCEEDED", 429, "Too many logins at the moment; try again", retry_after_ms=2000
            )
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        finally:
            self._waiting -= 1
