"""The configuration: what is understood, what is refused, and what an administrator is told."""

from __future__ import annotations

import dataclasses
import importlib
import re
from pathlib import Path

import pytest
import yaml

from ranvier import config as config_package
from ranvier.config import Config, ConfigError, Problem, generate, generate_files, load
from ranvier.config.not_needed import UNNEEDED, UNSUPPORTED, WITHOUT_EFFECT
from ranvier.config.rate_limits import DEFAULTS, RateLimit
from ranvier.config.units import parse_duration_ms, parse_size_bytes
from ranvier.spec.signatures import SigningKey


def read(folder: Path, text: str) -> Config:
    """Load one file with a server name and ``text``."""
    file = folder / "homeserver.yaml"
    file.write_text(f"server_name: example.org\n{text}\n")
    return load([file])


def problems(folder: Path, text: str) -> tuple[Problem, ...]:
    """Give what is wrong with ``text``; its first line is line 2 of the file."""
    with pytest.raises(ConfigError) as caught:
        read(folder, text)
    return caught.value.problems


def test_the_generated_files_load_without_a_word(tmp_path: Path) -> None:
    """A newcomer's first configuration would not work, or greet with warnings."""
    for file in generate_files("example.org", tmp_path, port=8123):
        file.write()
    config = load([tmp_path / "homeserver.yaml"])
    assert config.warnings == ()
    assert config.server.server_name == "example.org"
    assert config.database is None
    assert [listener.port for listener in config.listeners] == [8123]
    assert config.registration.shared_secret
    assert config.keys.signing_key_path == tmp_path / "signing.key"
    key = SigningKey.parse((tmp_path / "signing.key").read_text())
    assert key.key_id.startswith("ed25519:a_")
    assert (tmp_path / "signing.key").stat().st_mode & 0o077 == 0
    with pytest.raises(FileExistsError):
        generate_files("example.org", tmp_path)[0].write()


def test_every_key_that_the_generated_file_proposes_is_understood(tmp_path: Path) -> None:
    """Taking the comment sign away from a proposed line would give an error or a warning."""
    # "#key:" and what is indented below it is a proposal, "# Sentence" a comment.
    text = re.sub(r"^#(?=[a-z]|  )", "", generate("example.org", tmp_path), flags=re.MULTILINE)
    secrets = ("signing.key", "registration_shared_secret", "database_password", "oidc_client_secret")
    for name in secrets:
        (tmp_path / name).write_text("secret")
    (tmp_path / "all.yaml").write_text(text)
    config = load([tmp_path / "all.yaml"])
    assert config.warnings == ()
    assert config.database is not None
    assert config.registration.requires_token
    assert config.server.support.contacts[0].matrix_id == "@admin:example.org"


def test_all_errors_are_told_together_with_file_line_key_and_what_was_expected(tmp_path: Path) -> None:
    """An administrator would mend one error only to meet the next, or not find its place."""
    found = problems(
        tmp_path,
        "public_baseurl: 12\n"
        "listeners:\n"
        "  - port: 99999\n"
        "    resources: [{names: [client, nonsense]}]\n"
        "session_lifetime: 5 minutes\n"
        "tail: {size: 1.5G}\n",
    )
    assert [(problem.line, problem.key) for problem in found] == [
        (2, "public_baseurl"),
        (4, "listeners.0.port"),
        (5, "listeners.0.resources.0.names"),
        (6, "session_lifetime"),
        (7, "tail.size"),
    ]
    assert all(problem.severity == "error" for problem in found)
    assert all(problem.file == str(tmp_path / "homeserver.yaml") for problem in found)
    assert "from 1 to 65535" in found[1].message
    assert "30s, 5m" in found[3].message
    assert str(found[1]).startswith(f"{tmp_path}/homeserver.yaml:4: error: listeners.0.port: expected")


WRONG = {
    "server_name": "server_name: 'bad name'",
    "rc_message.per_second": "rc_message: {per_second: fast}",
    "rc_login.address.burst_count": "rc_login: {address: {burst_count: -1}}",
    "default_room_version": "default_room_version: '99'",
    "database.name": "database: {name: sqlite3}",
    "database.args.cp_max": "database: {name: psycopg2, args: {cp_max: 1}}",
    "database.args.port": "database: {args: {port: a}}",
    "enable_registration": "enable_registration: true",
    "allow_guest_access": "allow_guest_access: 'yes'",
    "auto_join_rooms": "auto_join_rooms: [room]",
    "autocreate_auto_join_room_preset": "autocreate_auto_join_room_preset: private_chat",
    "refresh_token_lifetime": "session_lifetime: 1h\nrefresh_token_lifetime: 2h",
    "encryption_enabled_by_default_for_room_type": "encryption_enabled_by_default_for_room_type: some",
    "alias_creation_rules.0.action": "alias_creation_rules: [{user_id: '*'}]",
    "presence": "presence: true",
    "presence.idle_timeout": "presence: {idle_timeout: 30s}",
    "password_config.policy.minimum_length": "password_config: {policy: {minimum_length: true}}",
    "password_config.argon2.memory": "password_config: {argon2: {memory: 4K}}",
    "registration_shared_secret_path": "registration_shared_secret_path: missing",
    "trusted_key_servers.0.server_name": "trusted_key_servers: [{verify_keys: {}}]",
    "old_signing_keys.ed25519:a.key": "old_signing_keys: {'ed25519:a': {}}",
    "listeners": "listeners: [{port: 80, bind_addresses: [a]}, {port: 80, bind_addresses: [a]}]",
    "listeners.0.mode": "listeners: [{path: a.sock, mode: 660}]",
    "listeners.0.path": "listeners: [{path: a.sock, port: 80}]",
    "listeners.0.resources": "listeners: [{port: 80, resources: [{names: [console]}]}]",
    "listeners.1.resources": "listeners: [{port: 80}, {path: s, resources: [{names: [client, console]}]}]",
    "listeners.0.port": "listeners: [{type: http}]",
    "listeners.0.type": "listeners: [{type: ftp, port: 80}]",
    "tls_certificate_path": "listeners: [{port: 80, tls: true}]\ntls_private_key_path: homeserver.yaml\n"
    "tls_certificate_path: missing",
    "well_known_support.contacts.0.email_address": "well_known_support: {contacts: [{role: m.role.admin}]}",
    "log_level": "log_level: LOUD",
    "drain_timeout": "drain_timeout: -1",
    "redis.dbid": "redis: {enabled: true, dbid: x}",
}


@pytest.mark.parametrize("key", WRONG)
def test_a_wrong_value_is_an_error_at_its_key(tmp_path: Path, key: str) -> None:
    """A mistake would be taken silently, and the server would not do what its administrator wanted."""
    if key == "server_name":
        (tmp_path / "a.yaml").write_text(WRONG[key])
        with pytest.raises(ConfigError) as caught:
            load([tmp_path / "a.yaml"])
        found = caught.value.problems
    else:
        found = problems(tmp_path, WRONG[key])
    assert [problem.key for problem in found if problem.severity == "error"] == [key]
    assert found[0].line > 0


@pytest.mark.parametrize(
    "text", ["a: [", "- a\n- b", "\tx: 1", "a: !!python/object:os.system x", "a: &x [*x]"]
)
def test_what_is_no_mapping_in_yaml_is_an_error_and_never_a_crash(tmp_path: Path, text: str) -> None:
    """An administrator would get a traceback for a typing mistake."""
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError):
        load([tmp_path / "a.yaml"])


UNREADABLE = {
    "an impossible date": "public_baseurl: 2024-02-30",
    "no number": "admin_contact: x\nlog_level: !!int x",
    "an empty number": 'log_level: !!float ""',
    "no truth": "presence: {enabled: !!bool maybe}",
    "no moment": "log_level: !!timestamp x",
    "an unknown tag": "log_level: !thing x",
    "a number as digits without end": f"log_level: 0x{'f' * 5000}",
    "such a number as a text": f"default_room_version: 0x{'f' * 5000}",
    "a value that contains itself": "auto_join_rooms: &a [*a]",
    "NUL in a path": 'signing_key_path: "a\\0b"',
    "NUL in the path of a secret": 'registration_shared_secret_path: "a\\0b"',
    "NUL in a path of a section": 'listeners: [{path: "a\\0b"}]',
    "half a character": 'signing_key_path: "\\ud800"',
    "half a character in a list": 'auto_join_rooms: ["#\\ud800:a.org"]',
    "a merge of no mapping": "<<: 5",
    "a merge of no mapping in a section": "presence:\n  <<: 5",
    "a merge of no mapping in a list": "listeners:\n  - <<: [1]",
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_a_value_that_stands_for_nothing_is_an_error_in_its_line(tmp_path: Path, what: str) -> None:
    """A server that reads its configuration again would end, and check-config show a traceback."""
    found = problems(tmp_path, UNREADABLE[what])
    first = next(problem for problem in found if problem.severity == "error")
    assert first.file == str(tmp_path / "homeserver.yaml")
    assert first.line == 2 + UNREADABLE[what].count("\n")


@pytest.mark.parametrize("text", ["a: " + "[" * 2000, "a: " + "{a: " * 900 + "}" * 900, 'a: "\\UFFFFFFFF"'])
def test_a_file_that_goes_too_far_is_an_error(tmp_path: Path, text: str) -> None:
    """A server that reads its configuration again would end, and check-config show a traceback."""
    assert problems(tmp_path, text)[0].file == str(tmp_path / "homeserver.yaml")


def test_a_key_given_twice_is_an_error(tmp_path: Path) -> None:
    """One of the two values would silently win."""
    (twice,) = problems(tmp_path, "allow_guest_access: true\nallow_guest_access: false")
    assert (twice.line, twice.key) == (3, "allow_guest_access")
    assert "line 2" in twice.message
    (inner,) = problems(tmp_path, "presence:\n  enabled: true\n  enabled: false")
    assert inner.key == "presence.enabled"


def test_an_unknown_key_is_a_warning_with_the_name_that_was_meant(tmp_path: Path) -> None:
    """A misspelt setting would have no effect and nobody would know why."""
    config = read(tmp_path, "max_uplod_size: 1M\nrc_login: {adress: {per_second: 1}}")
    assert [(problem.severity, problem.key) for problem in config.warnings] == [
        ("warning", "max_uplod_size"),
        ("warning", "rc_login.adress"),
    ]
    assert "did you mean max_upload_size?" in config.warnings[0].message


def test_what_the_design_makes_pointless_is_accepted_and_said_to_be_unnecessary(tmp_path: Path) -> None:
    """An administrator who brings a configuration along could not start with it."""
    text = "\n".join(f"{key}: x" for key in (*UNNEEDED, *sorted(UNSUPPORTED)))
    config = read(tmp_path, text)
    assert {problem.key for problem in config.warnings if problem.severity == "note"} == set(UNNEEDED)
    assert {problem.key for problem in config.warnings if problem.severity == "warning"} == set(UNSUPPORTED)
    assert not UNNEEDED.keys() & UNSUPPORTED


def test_what_is_checked_and_has_no_effect_is_said_to_have_none(tmp_path: Path) -> None:
    """An administrator would believe that a setting works because nobody says that it does not."""
    values = dict.fromkeys(WITHOUT_EFFECT, "{}") | {
        "trusted_key_servers": "[{server_name: other.org}]",
        "key_refresh_interval": "1d",
        "admin_contact": "mailto:root@example.org",
        "max_upload_size": "1M",
        **{key: "1d" for key in WITHOUT_EFFECT if key.endswith("_retention_period")},
    }
    values |= {key: "true" for key in values if key.startswith(("allow_", "serve_", "suppress_"))}
    config = read(tmp_path, "\n".join(f"{key}: {value}" for key, value in values.items()))
    assert {problem.key: problem.severity for problem in config.warnings} == dict.fromkeys(
        WITHOUT_EFFECT, "warning"
    )
    nested = "rc_joins: {remote: {per_second: 1}}\ndatabase: {args: {cp_min: 2}}"
    assert [problem.key for problem in read(tmp_path, nested).warnings] == [
        "rc_joins.remote",
        "database.args.cp_min",
    ]


def test_a_listener_that_answers_nothing_is_pointed_out(tmp_path: Path) -> None:
    """An administrator would give a port to other servers and wonder why they get no answer."""
    listener = "listeners: [{{port: 8448, resources: [{{names: [{}]}}]}}]"
    for names, warned in (("federation", 1), ("media, keys", 1), ("client, federation", 0), ("health", 0)):
        assert len(read(tmp_path, listener.format(names)).warnings) == warned, names


# Fields of the configuration that only its own reading looks at.
_ONLY_READ = {"without_verification", "warnings", "any_alias", "file", "line", "found", "listens_apart"}
# Of keys that are said to have no effect, under the names that they have here.
_NO_EFFECT = WITHOUT_EFFECT.keys() | {"max_upload_size_bytes", "key_refresh_interval_ms", "expired_ts"}
_NO_EFFECT |= {"allow_lookup_over_federation"} | {f"{key}_ms" for key in WITHOUT_EFFECT}


def test_every_setting_is_used_or_said_to_have_no_effect() -> None:
    """A setting would be read, checked, and never looked at again, without anybody being told."""
    package = Path(config_package.__file__).parent
    source = "".join(
        path.read_text() for path in package.parent.rglob("*.py") if path.parent.name != "config"
    )
    used = set(re.findall(r"\.([a-z_0-9]+)\b", source))
    fields: set[str] = set()
    for path in package.glob("*.py"):
        module = importlib.import_module(f"ranvier.config.{path.stem}")
        for kind in vars(module).values():
            if isinstance(kind, type) and kind.__module__ == module.__name__:
                fields |= {field.name for field in getattr(kind, "__dataclass_fields__", {}).values()}
    assert len(fields) > 100
    assert fields - used - _ONLY_READ - _NO_EFFECT == set()
    quoted = set(re.findall(r'"(rc_[a-z_0-9.]+)"', source))
    unused = {name for name in DEFAULTS if name not in quoted}
    assert unused == {name for name in WITHOUT_EFFECT if name.startswith("rc_")} | {"rc_joins.remote"}


def test_later_files_replace_top_level_keys_of_earlier_ones(tmp_path: Path) -> None:
    """A conf.d folder would not go over homeserver.yaml, or in another order than its names say."""
    (tmp_path / "homeserver.yaml").write_text("server_name: a.org\nadmin_contact: first\nlog_level: DEBUG\n")
    folder = tmp_path / "conf.d"
    folder.mkdir()
    (folder / "20-b.yaml").write_text("admin_contact: third\n")
    (folder / "10-a.yaml").write_text("admin_contact: second\nmax_upload_size: 1K\n")
    (folder / "readme.txt").write_text("not: [yaml")
    config = load([tmp_path / "homeserver.yaml", folder])
    assert config.server.admin_contact == "third"
    assert config.server.max_upload_size_bytes == 1024
    assert config.server.log_level == "DEBUG"


def test_secrets_come_from_files_beside_the_configuration(tmp_path: Path) -> None:
    """A secret would have to stand in a file that many may read, or its line end would belong to it."""
    (tmp_path / "secret").write_text("s3cret\n")
    config = read(
        tmp_path, "registration_shared_secret_path: secret\ndatabase: {args: {password_path: secret}}"
    )
    assert config.registration.shared_secret == "s3cret"
    assert config.database is not None
    assert config.database.password == "s3cret"
    assert "s3cret" not in repr(config)
    found = problems(tmp_path, "registration_shared_secret_path: secret\nregistration_shared_secret: x")
    assert "not both" in found[0].message


def test_the_database_arguments_make_a_connection_uri(tmp_path: Path) -> None:
    """The server would not reach a database whose password has odd characters or which is on a socket."""
    config = read(
        tmp_path,
        "database: {args: {user: u@x, password: 'p/:@', dbname: d, host: /run/pg, cp_max: 20}}",
    )
    assert config.database is not None
    assert config.database.dsn() == "postgresql://u%40x:p%2F%3A%40@/d?host=%2Frun%2Fpg&port=5432"
    assert config.database.max_connections == 20


def test_the_files_of_the_databases_tls_lie_beside_the_configuration(tmp_path: Path) -> None:
    """A certificate that the README says how to name would not be found, under systemd at least."""
    database = read(
        tmp_path, "database: {args: {sslmode: verify-full, sslrootcert: ca.pem, sslkey: ''}}"
    ).database
    assert database is not None
    assert database.tls == (("sslmode", "verify-full"), ("sslrootcert", str(tmp_path / "ca.pem")))


def test_a_certificate_that_cannot_be_looked_at_is_named_with_all_else_that_is_wrong(tmp_path: Path) -> None:
    """One in a folder of root's would give a page of traceback, and nothing of the other mistakes."""
    nowhere = "x" * 300  # as what may not be looked at, it is an error to ask whether that is there
    text = (
        f"listeners: [{{port: 1, tls: true}}]\ntls_certificate_path: {nowhere}\ntls_private_key_path: key.pem"
    )
    assert [it.message for it in problems(tmp_path, text)] == [
        f"cannot find {tmp_path / nowhere}: File name too long",
        f"cannot find {tmp_path / 'key.pem'}: No such file or directory",
    ]


def test_listeners_as_synapse_writes_them(tmp_path: Path) -> None:
    """The server would answer in other places than its administrator said."""
    config = read(
        tmp_path,
        "listeners:\n"
        "  - {port: 8008, type: http, x_forwarded: true, bind_addresses: ['::1', '127.0.0.1'],\n"
        "     resources: [{names: [client, keys], compress: false}]}\n"
        "  - {path: run/main.sock, mode: 0660, resources: [{names: [client, federation]}]}\n"
        "  - {port: 9000, type: metrics, bind_addresses: ['127.0.0.1']}\n",
    )
    client, socket, metrics = config.listeners
    assert client.resources == {"client", "federation", "health"}
    assert client.x_forwarded
    assert client.bind_addresses == ("::1", "127.0.0.1")
    assert (socket.path, socket.mode) == (tmp_path / "run/main.sock", 0o660)
    assert metrics.resources == {"metrics", "health"}
    assert [problem.severity for problem in config.warnings] == ["note"]


@pytest.mark.parametrize(
    ("common", "own", "ports"),
    [
        ("listeners: [{port: 1}]", "", [1]),
        ("listeners: [{port: 1}]", "worker_name: w", []),
        ("", "worker_name: w", []),
        ("listeners: [{port: 1}]", "worker_name: w\nworker_listeners: []", []),
        ("listeners: [{port: 1}]", "worker_name: w\nworker_listeners: [{port: 2}]", [2]),
        ("listeners: [{port: 1}]", "worker_name: w\nlisteners: [{port: 3}]", [3]),
        ("listeners: [{port: 1}]\nworker_name: w", "", [1]),
        ("worker_name: w", "", [8008]),
    ],
)
def test_a_worker_with_a_file_of_its_own_answers_where_that_says(
    tmp_path: Path, common: str, own: str, ports: list[int]
) -> None:
    """Two processes of classic unit files would both listen on the first one's port, and one would fail."""
    (tmp_path / "worker.yaml").write_text(own)
    (tmp_path / "homeserver.yaml").write_text(f"server_name: example.org\n{common}\n")
    config = load([tmp_path / "homeserver.yaml", tmp_path / "worker.yaml"])
    assert [it.port for it in config.own_listeners] == ports
    told = [it.message for it in config.warnings if it.key == "worker_name"]
    assert bool(told) == (not ports and "worker_listeners" not in own), told


def test_sockets_that_ask_for_nothing_are_not_for_other_users(tmp_path: Path) -> None:
    """Any user of the machine could read and write as any user of the server."""
    listener = "worker_listeners: [{{path: a.sock, {}resources: [{{names: [{}]}}]}}]"
    (private,) = read(tmp_path, listener.format("", "replication")).worker.listeners
    (console,) = read(tmp_path, listener.format("", "console")).worker.listeners
    (public,) = read(tmp_path, listener.format("", "client")).worker.listeners
    assert (private.mode, console.mode, public.mode) == (0o600, 0o600, 0o666)
    for mode in ("0660", "0666", "0606"):
        (open_to_others,) = problems(tmp_path, listener.format(f"mode: {mode}, ", "replication"))
        assert open_to_others.key == "worker_listeners"
        assert "mode: 0600" in open_to_others.message
    secret = "\nworker_replication_secret: s"
    (shared,) = read(tmp_path, listener.format("mode: 0660, ", "replication") + secret).worker.listeners
    assert shared.mode == 0o660


def test_a_redis_that_is_not_enabled_is_pointed_out(tmp_path: Path) -> None:
    """An administrator would believe that workers hear each other through a Redis that nobody uses."""
    (warned,) = read(tmp_path, "redis: {path: /run/redis.sock}").warnings
    assert (warned.key, warned.line) == ("redis", 2)
    assert "enabled: true" in warned.message
    for text in (
        "redis: {enabled: true, path: a}",
        "redis: {enabled: false, path: a}",
        "redis:",
        "redis: {}",
    ):
        assert read(tmp_path, text).warnings == ()


def test_rate_limits_have_synapses_defaults_and_each_can_be_set(tmp_path: Path) -> None:
    """A server would let spammers through, or lock its users out, against its configuration."""
    text = yaml.safe_dump({"rc_message": {"per_second": 5}, "rc_invites": {"per_user": {"burst_count": 7}}})
    limits = read(tmp_path, text).rate_limits
    assert limits["rc_message"] == RateLimit(5, 10)
    assert limits["rc_invites.per_user"] == RateLimit(0.003, 7)
    assert limits["rc_joins.remote"] == DEFAULTS["rc_joins.remote"] == RateLimit(0.01, 10)
    assert "rc_admin_redaction" not in limits
    assert read(tmp_path, "rc_admin_redaction: {burst_count: 50}").rate_limits[
        "rc_admin_redaction"
    ] == RateLimit(0.2, 50)


def test_directory_rules_are_read_in_order_and_deny_in_the_end(tmp_path: Path) -> None:
    """Somebody could take an alias or publish a room who may not."""
    rooms = read(
        tmp_path,
        "alias_creation_rules:\n"
        "  - {user_id: '@bad:*', action: deny}\n"
        "  - {alias: '#pub-*:example.org', action: allow}\n",
    ).rooms
    allow = rooms.alias_creation_rules.allow
    assert allow("@a:example.org", "!r", ["#pub-x:example.org"])
    assert not allow("@bad:example.org", "!r", ["#pub-x:example.org"])
    assert not allow("@a:example.org", "!r", ["#x:example.org"])
    defaults = read(tmp_path, "").rooms
    assert defaults.alias_creation_rules.allow("@a:b", "!r", ["#x:b"])
    assert not defaults.room_list_publication_rules.allow("@a:b", "!r", [])


def test_off_is_a_word_where_a_word_is_asked_for(tmp_path: Path) -> None:
    """YAML reads a bare ``off`` as false, so the commonest spelling would be an error."""
    rooms = read(tmp_path, "encryption_enabled_by_default_for_room_type: off").rooms
    assert rooms.encrypted_presets == frozenset()
    rooms = read(tmp_path, "encryption_enabled_by_default_for_room_type: invite").rooms
    assert rooms.encrypted_presets == {"private_chat", "trusted_private_chat"}


def test_null_means_the_default_or_never(tmp_path: Path) -> None:
    """A key left empty would be an error, or refresh tokens could not be switched off."""
    config = read(tmp_path, "public_baseurl:\nrefreshable_access_token_lifetime: null\nlisteners:")
    assert config.server.public_baseurl is None
    assert config.sessions.refreshable_access_token_lifetime_ms is None
    assert len(config.listeners) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [("5m", 300_000), ("24h", 86_400_000), (1500, 1500), ("90s", 90_000), ("1y", 31_536_000_000)],
)
def test_durations(text: str | int, expected: int) -> None:
    """Lifetimes would be other than what was written."""
    assert parse_duration_ms(text) == expected


@pytest.mark.parametrize(("text", "expected"), [("50M", 52_428_800), ("1K", 1024), (7, 7), ("2G", 2 << 30)])
def test_sizes(text: str | int, expected: int) -> None:
    """Upload limits would be other than what was written."""
    assert parse_size_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "m", "-5m", "5q", "1.5h", True, None, "9" * 400, "1 h"])
def test_nonsense_is_no_duration(text: object) -> None:
    """A mistyped lifetime would be taken for something else."""
    with pytest.raises(ValueError):
        parse_duration_ms(text)


def test_the_configuration_cannot_be_changed_while_the_server_runs(tmp_path: Path) -> None:
    """Parts of the server could disagree about a setting."""
    config = read(tmp_path, "")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.server.server_name = "other"  # type: ignore[misc]
