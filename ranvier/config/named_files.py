"""Look at the files that a configuration names, before a start needs them."""

from __future__ import annotations

import ssl
import stat
from collections.abc import Callable
from pathlib import Path

from ranvier.config.database import DatabaseConfig
from ranvier.config.generate import SIGNING_KEY_NAME
from ranvier.config.reader import Section
from ranvier.spec.errors import MatrixError
from ranvier.spec.signatures import SigningKey

_VERIFYING = ("require", "verify-ca", "verify-full")


def check_signing_key(root: Section, named: Path | None, data_dir: Path) -> None:
    """Note what is wrong with the signing key; one that is not ``named`` is in the data folder."""
    key, path = "signing_key_path", named or data_dir / SIGNING_KEY_NAME
    try:
        SigningKey.parse(path.read_text(encoding="ascii").strip().partition("\n")[0])
        mode = stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError as error:
        if named is None:
            root.note(key, f"there is no {path}: `ranvier up` makes one for a new server, and for no other")
        else:
            root.error(key, f"cannot find {path}: {error.strerror}")
    except (OSError, ValueError, MatrixError) as error:
        root.error(key, _unusable(path, error))
    else:
        if mode & 0o007:
            root.warn(key, f"every user of this machine can use {path} (mode {mode:04o})")


def check_database_tls(root: Section, database: DatabaseConfig | None) -> None:
    """Note which files of the connection to the database its driver could not load."""
    if database is None:
        return
    args, tls = root.section("database").section("args"), dict(database.tls)
    context, mode = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), tls.get("sslmode")
    if mode in _VERIFYING:
        for key in ("sslrootcert", "sslcrl"):
            _check(args, key, tls, context.load_verify_locations)
    own_key = tls.get("sslkey")
    if mode == "disable" or not _check(args, "sslkey", tls):
        return
    if own_key is None:  # the driver may find it elsewhere
        _check(args, "sslcert", tls)
    else:
        _check(args, "sslcert", tls, lambda cert: context.load_cert_chain(cert, own_key, password=""))


def _check(
    args: Section, key: str, tls: dict[str, str], use: Callable[[str], object] = lambda path: None
) -> bool:
    path = tls.get(key)
    if path is None:
        return True
    try:
        Path(path).read_bytes()  # tells which of two files it is, as the next line does not
        use(path)
    except OSError as error:
        args.error(key, _unusable(path, error))
        return False
    return True


def _unusable(path: Path | str, error: Exception) -> str:
    return f"cannot use {path}: {getattr(error, 'strerror', None) or error}"
