"""Look at the files that a configuration names, before a start needs them."""

from __future__ import annotations

import os
import ssl
import stat
from collections.abc import Callable
from pathlib import Path

from ranvier.config.database import DatabaseConfig, RedisConfig
from ranvier.config.generate import SIGNING_KEY_NAME
from ranvier.config.reader import Section
from ranvier.config.server import ServerConfig
from ranvier.spec.errors import MatrixError
from ranvier.spec.signatures import SigningKey

_VERIFYING = ("require", "verify-ca", "verify-full")


def check_signing_key(root: Section, named: Path | None, data_dir: Path) -> None:
    """Note what is wrong with the signing key; one that is not ``named`` is in the data folder."""
    key, path = "signing_key_path", named or data_dir / SIGNING_KEY_NAME
    try:
        mode = _mode(path)
        SigningKey.parse(path.read_text(encoding="ascii").strip().partition("\n")[0])
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


def check_listeners_tls(root: Section, server: ServerConfig) -> None:
    """Note which files of the certificate listeners could not load; one that is not there is noted before."""
    certificate, private_key = server.tls_certificate_path, server.tls_private_key_path
    if certificate is None or private_key is None:
        return
    if os.path.exists(certificate) and os.path.exists(private_key):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        keys = ("tls_certificate_path", "tls_private_key_path")
        _check_pair(root, keys, certificate, private_key, context)


def check_redis_tls(root: Section, redis: RedisConfig | None) -> None:
    """Note which files of the connection to Redis could not be loaded."""
    if redis is None or not redis.use_tls or redis.path is not None:
        return
    section, context = root.section("redis"), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _check(section, "ca_file", redis.ca_file, context.load_verify_locations)
    if redis.ca_path is not None and not os.path.isdir(redis.ca_path):
        section.warn("ca_path", f"there is no folder {redis.ca_path}: no certificate is known from it")
    if redis.certificate_file is not None:
        keys = ("certificate_file", "private_key_file")
        _check_pair(section, keys, redis.certificate_file, redis.private_key_file, context)


def check_database_tls(root: Section, database: DatabaseConfig | None) -> None:
    """Note which files of the connection to the database its driver could not load."""
    if database is None:
        return
    args, tls = root.section("database").section("args"), dict(database.tls)
    context, mode = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), tls.get("sslmode")
    if mode == "disable" or (mode is None and _is_socket(database)):
        return  # the driver looks at none of them
    if mode in _VERIFYING:
        for key in ("sslrootcert", "sslcrl"):
            _check(args, key, tls.get(key), context.load_verify_locations)
    certificate, own_key = tls.get("sslcert"), tls.get("sslkey")
    if not _check(args, "sslkey", own_key):
        return
    if own_key is None:  # the driver may find it elsewhere
        _check(args, "sslcert", certificate)
    else:
        _check(args, "sslcert", certificate, lambda it: context.load_cert_chain(it, own_key, password=""))


def _is_socket(database: DatabaseConfig) -> bool:
    return all(host.startswith("/") for host in database.host.split(","))


def _check_pair(
    section: Section,
    keys: tuple[str, str],
    certificate: Path,
    private_key: Path | None,
    context: ssl.SSLContext,
) -> None:
    """Note which of two files cannot be read, or that they do not belong together."""
    if _check(section, keys[1], private_key):
        _check(section, keys[0], certificate, lambda it: context.load_cert_chain(it, private_key))


def _check(
    section: Section, key: str, path: Path | str | None, use: Callable[[str], object] = lambda path: None
) -> bool:
    if path is None:
        return True
    try:
        _mode(Path(path))
        Path(path).read_bytes()  # tells which of two files it is, as the next line does not
        use(str(path))
    except OSError as error:
        section.error(key, _unusable(path, error))
        return False
    return True


def _mode(path: Path) -> int:
    """Give a file's permission bits. Raises ``OSError``, also for a pipe or a folder: reading may not end."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise OSError("it is no regular file")
    return stat.S_IMODE(mode)


def _unusable(path: Path | str, error: Exception) -> str:
    return f"cannot use {path}: {getattr(error, 'strerror', None) or error}"
