"""The command line, as an administrator types it."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner, Result

from ranvier.cli.data_folder import load_config
from ranvier.cli.main import main
from ranvier.cli.up import greeting, with_port


def ranvier(*arguments: str | Path, standard_input: str | None = None) -> Result:
    """Run one command."""
    return CliRunner().invoke(main, [str(word) for word in arguments], input=standard_input)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Give a data folder with a generated configuration."""
    folder = tmp_path / "data"
    assert ranvier("generate-config", "--server-name", "example.org", "--data", folder).exit_code == 0
    return folder


def test_help_names_every_command() -> None:
    """A newcomer would not find out what can be done."""
    result = ranvier("--help")
    assert result.exit_code == 0
    for command in ("up", "register-user", "generate-config", "check-config"):
        assert command in result.output


def test_a_generated_configuration_passes_the_check(data: Path) -> None:
    """The first configuration that an administrator gets would be refused."""
    result = ranvier("check-config", "--data", data)
    assert (result.exit_code, result.output) == (0, "The configuration of example.org is good.\n")


def test_generating_again_replaces_nothing(data: Path) -> None:
    """A signing key would be lost by repeating a command."""
    key = (data / "signing.key").read_text()
    result = ranvier("generate-config", "--data", data)
    assert result.exit_code == 1
    assert "not replaced" in result.output
    assert (data / "signing.key").read_text() == key


def test_a_server_name_that_is_none_is_refused(tmp_path: Path) -> None:
    """A server would get a name that it can never change and nobody can reach."""
    result = ranvier("generate-config", "--server-name", "my server", "--data", tmp_path / "data")
    assert result.exit_code == 2
    assert not (tmp_path / "data").exists()


def test_check_config_tells_every_error_and_fails(data: Path) -> None:
    """A script could not tell a broken configuration from a good one."""
    (data / "more.yaml").write_text("log_level: LOUD\nmax_upload_size: big\n")
    result = ranvier("check-config", "--config", data)
    assert result.exit_code == 1
    assert f"{data}/more.yaml:1: error: log_level: expected" in result.output
    assert f"{data}/more.yaml:2: error: max_upload_size: expected" in result.output
    assert "2 errors" in result.output


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (None, "cannot find {}: No such file or directory"),
        ("ed25519 a_key no/base64!\n", "cannot use {}: "),
        ("\xe9\n", "cannot use {}: "),
        ("", "cannot use {}: A signing key is a line of three words"),
    ],
)
def test_check_config_looks_at_the_signing_key(data: Path, key: str | None, said: str) -> None:
    """A server that was moved, with its key left behind, would be found good, and not start."""
    path = data / "signing.key"
    path.unlink() if key is None else path.write_text(key)
    result = ranvier("check-config", "--data", data)
    assert result.exit_code == 1
    assert f"error: signing_key_path: {said.format(path)}" in result.output


def test_check_config_says_who_can_use_the_key_and_that_there_is_none_yet(data: Path) -> None:
    """Every user of the machine could sign as the server; and a new server would be called a broken one."""
    key, yaml = data / "signing.key", data / "homeserver.yaml"
    key.chmod(0o644)
    result = ranvier("check-config", "--data", data)
    assert (result.exit_code, "every user of this machine can use" in result.output) == (0, True)
    key.unlink()
    yaml.write_text(yaml.read_text().replace("signing_key_path", "#signing_key_path"))
    result = ranvier("check-config", "--data", data)
    assert (result.exit_code, f"there is no {key}" in result.output) == (0, True)


def test_check_config_loads_the_files_of_the_databases_tls(data: Path) -> None:
    """A certificate with a mistyped path, or of another key, would be noticed when the server is to start."""
    for name in ("right", "other"):
        make_certificate(data, name)
    (data / "not.pem").write_text("nothing\n")
    config = data / "database.yaml"

    def check(**args: str) -> list[str]:
        config.write_text(f"database: {{args: {args}}}\n")
        said = ranvier("check-config", "--data", data, "--config", data).output
        return re.findall(r"error: database\.args\.(.*): cannot use .*/(.*?): ", said)

    own = {"sslcert": "right.pem", "sslkey": "right.key"}
    assert check(sslmode="verify-full", sslrootcert="right.pem", **own) == []
    assert check(sslmode="verify-full", sslrootcert="not.pem") == [("sslrootcert", "not.pem")]
    assert check(sslmode="require", sslrootcert="none.pem") == [("sslrootcert", "none.pem")]
    assert check(sslmode="prefer", sslrootcert="none.pem") == []
    assert check(**{**own, "sslkey": "none.key"}) == [("sslkey", "none.key")]
    assert check(**{**own, "sslkey": "other.key"}) == [("sslcert", "right.pem")]
    assert check(sslmode="disable", sslcert="none.pem") == []
    assert check(host="/run/postgresql", sslkey="none.key", sslcert="none.pem") == []
    assert check(host="/run/postgresql,localhost", sslkey="none.key") == [("sslkey", "none.key")]


def test_check_config_loads_the_certificate_of_listeners(data: Path) -> None:
    """A certificate that was renewed without its key would be found good, and the server not start."""
    for name in ("right", "other"):
        make_certificate(data, name)
    (data / "not.pem").write_text("nothing\n")
    config = data / "tls.yaml"

    def check(certificate: str, private_key: str, tls: bool = True) -> list[str]:
        config.write_text(
            f"listeners: [{{port: 8448, tls: {str(tls).lower()}}}]\n"
            f"tls_certificate_path: {certificate}\ntls_private_key_path: {private_key}\n"
        )
        said = ranvier("check-config", "--data", data, "--config", data).output
        return re.findall(r"error: (tls_.*): cannot (?:use|find) .*/(.*?): ", said)

    assert check("right.pem", "right.key") == []
    assert check("right.pem", "other.key") == [("tls_certificate_path", "right.pem")]
    assert check("not.pem", "right.key") == [("tls_certificate_path", "not.pem")]
    assert check("right.pem", ".") == [("tls_private_key_path", data.name)]
    assert check("none.pem", "right.key") == [("tls_certificate_path", "none.pem")]
    assert check("right.pem", "other.key", tls=False) == []


def test_check_config_loads_the_files_of_redis_tls(data: Path) -> None:
    """Workers whose certificate has a mistyped path would never find each other."""
    for name in ("right", "other"):
        make_certificate(data, name)
    config = data / "redis.yaml"

    def check(**values: object) -> list[str]:
        config.write_text(f"redis: {json.dumps({'enabled': True, 'use_tls': True, **values})}\n")
        said = ranvier("check-config", "--data", data, "--config", data).output
        return re.findall(r"error: redis\.(.*): cannot use .*/(.*?): ", said)

    own = {"certificate_file": "right.pem", "private_key_file": "right.key"}
    assert check(ca_file="right.pem", **own) == []
    assert check(ca_file="none.pem") == [("ca_file", "none.pem")]
    assert check(ca_file="right.key") == [("ca_file", "right.key")]
    assert check(**{**own, "private_key_file": "none.key"}) == [("private_key_file", "none.key")]
    assert check(**{**own, "private_key_file": "other.key"}) == [("certificate_file", "right.pem")]
    assert check(certificate_file="right.pem") == [("certificate_file", "right.pem")], "no key is in it"
    assert check(private_key_file="none.key") == [], "it is of no certificate"
    for unused in ({"enabled": False}, {"use_tls": False}, {"path": "redis.sock"}):
        assert check(ca_file="none.pem", **unused) == []


def test_check_config_does_not_wait_for_a_key_that_is_no_file(data: Path) -> None:
    """Who named a pipe by mistake would wait for ever, and be told nothing."""
    path = data / "signing.key"
    path.unlink()
    os.mkfifo(path)
    result = subprocess.run(
        [sys.executable, "-m", "ranvier.cli", "check-config", "--data", str(data)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert result.returncode == 1
    assert f"cannot use {path}: it is no regular file" in result.stderr


def test_check_config_tells_each_error_once(data: Path) -> None:
    """An administrator would look for a second mistake where there is none."""
    (data / "more.yaml").write_text("redis: {enabled: true, use_tls: true, port: 1, port: 2}\n")
    result = ranvier("check-config", "--data", data, "--config", data)
    assert result.output.count("redis.port: given twice") == 1
    assert "1 error" in result.output


def make_certificate(folder: Path, name: str) -> None:
    """Write a certificate and its key."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=example.org",
         "-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.pem")],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize(
    "command", [("up",), ("check-config",), ("register-user", "alice", "--password", "x")]
)
def test_a_data_folder_without_configuration_is_not_taken_for_a_new_server(
    tmp_path: Path, command: Sequence[str]
) -> None:
    """A lost configuration file would silently give a server with another name and key on the same data."""
    (tmp_path / "postgres").mkdir()
    result = ranvier(*command, "--data", tmp_path)
    assert result.exit_code == 1
    assert "homeserver.yaml" in result.output
    assert not (tmp_path / "signing.key").exists()


@pytest.mark.parametrize("command", ["up", "worker", "check-config", "status"])
def test_a_folder_that_cannot_be_looked_into_is_named(tmp_path: Path, command: str) -> None:
    """Who is not the server's user, and asks all the same, would be shown a page of traceback."""
    folder = tmp_path / ("x" * 300)  # to ask whether that is there is an error, as with a closed one
    result = ranvier(command, "--data", folder)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert str(folder) in result.output


def test_a_server_does_not_change_its_name(data: Path) -> None:
    """All users and rooms of the old name would be orphans."""
    result = ranvier("up", "--data", data, "--server-name", "other.org")
    assert result.exit_code == 2
    assert "cannot be changed" in result.output


def test_a_named_signing_key_that_is_missing_is_not_made_anew(data: Path) -> None:
    """A mistyped path would give the server a new identity that others do not trust."""
    (data / "signing.key").unlink()
    result = ranvier("up", "--data", data)
    assert result.exit_code == 1
    assert "signing.key" in result.output


def test_a_lost_signing_key_is_not_made_again_by_what_makes_a_configuration(data: Path) -> None:
    """Who follows the advice to make one would have a server that others do not trust."""
    (data / "signing.key").unlink()
    assert ranvier("generate-config", "--data", data).exit_code == 1
    assert not (data / "signing.key").exists()


def test_a_worker_makes_no_signing_key(tmp_path: Path) -> None:
    """The workers of another machine would sign with a key of their own, and nobody would be told."""
    (tmp_path / "homeserver.yaml").write_text("server_name: example.org\nredis: {enabled: true}\n")
    result = ranvier("worker", "--data", tmp_path)
    assert result.exit_code == 1
    assert f"there is no signing key {tmp_path / 'signing.key'}" in result.output
    assert not (tmp_path / "signing.key").exists()


def test_what_cannot_be_written_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the disk was full an empty key would lie, and no start would come to its end ever after."""

    def no_space(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    result = ranvier("generate-config", "--data", tmp_path / "data")
    assert result.exit_code == 1
    assert "No space left on device" in result.output
    assert list((tmp_path / "data").iterdir()) == []


def test_a_configuration_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the commands that make one would send to the other, once there is space again."""
    fsync, done = os.fsync, list[int]()

    def little_space(descriptor: int) -> None:
        if done:
            raise OSError(errno.ENOSPC, "No space left on device")
        done.append(descriptor)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", little_space)
    assert ranvier("generate-config", "--data", tmp_path / "data").exit_code == 1
    monkeypatch.setattr(os, "fsync", fsync)
    assert ranvier("generate-config", "--data", tmp_path / "data").exit_code == 0


def test_the_port_option_moves_the_first_tcp_listener(data: Path) -> None:
    """Two servers could not run beside each other without editing files."""
    config = with_port(load_config(data, []), 8123)
    assert [listener.port for listener in config.listeners] == [8123]
    (data / "homeserver.yaml").write_text("server_name: a\nlisteners: [{path: a.sock}]\n")
    added = with_port(load_config(data, []), 8123).listeners
    assert [(listener.port, listener.path) for listener in added] == [(0, data / "a.sock"), (8123, None)]


def test_the_greeting_says_where_to_go_and_what_to_type(data: Path) -> None:
    """A newcomer would have a running server and not know what next."""
    text = greeting(load_config(data, []), data, [])
    assert "http://localhost:8008" in text
    assert f"ranvier register-user --data {data} --admin NAME" in text


def test_what_an_administrator_can_mend_is_said_in_a_sentence(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A port that is in use would give a page of traceback."""

    def run(*_: object, **__: object) -> None:
        raise ExceptionGroup("tasks", [ExceptionGroup("inner", [OSError("the port 8008 is in use")])])

    monkeypatch.setitem(sys.modules, "ranvier.processes.server", SimpleNamespace(run=run))
    result = ranvier("up", "--data", data)
    assert result.exit_code == 1
    assert result.output.endswith("Error: the port 8008 is in use\n")
