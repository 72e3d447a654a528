"""Compare what is there with what should be, and list what is to be done about it."""

from __future__ import annotations

import itertools
import secrets
import ssl
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from ranvier.config.database import DatabaseConfig, read_database, read_redis
from ranvier.config.generate import SHARED_SECRET_NAME, SIGNING_KEY_NAME, signing_key_file
from ranvier.config.load import read_roles
from ranvier.config.problems import Problems
from ranvier.config.reader import Section
from ranvier.config.server import read_server
from ranvier.config.yaml_files import read_files
from ranvier.deploy import config_files, nginx, record, system_files
from ranvier.deploy.actions import (
    Action,
    DeployError,
    MakeFolder,
    MoveFile,
    PutFile,
    PutSecret,
    RemoveFile,
    Run,
    SetRights,
)
from ranvier.deploy.record import Record
from ranvier.deploy.settings import MAIN, Settings
from ranvier.deploy.system import System, other_program, own_release
from ranvier.deploy.target import Rights, Target, fingerprint
from ranvier.http.route import Route
from ranvier.wire.members import CLIENT_ROLES

_ROOT_FOLDER: Final = Rights("root", "root", 0o755)
_ROOT_FILE: Final = Rights("root", "root", 0o644)
UNITS: Final = Path("/etc/systemd/system")
_LOCAL_HOSTS: Final = ("/", "localhost", "127.")


@dataclass
class Plan:
    """What is to be done, in order, and what is to be told.

    ``changed`` are the paths of files that are not in use yet as they will be. ``last`` remembers that they
    are, once they are, so that a run that failed half way is taken up by the next; ``served`` remembers that
    nginx uses its own. ``waiting`` are those whose program is not installed or not to use them yet. ``undo``
    has what makes a file as it was, also before runs that did not come to their end, as far as that is known.
    ``wanted`` has the fingerprint of each file that is not left to a person. ``removed`` are workers that
    are no longer wanted, ``stop_s`` is how long systemd gives each worker to finish. ``connections`` is how
    many all workers together may have to PostgreSQL on this machine.
    """

    actions: list[Action] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    changed: set[Path] = field(default_factory=set)
    last: list[Action] = field(default_factory=list)
    served: list[Action] = field(default_factory=list)
    waiting: set[Path] = field(default_factory=set)
    undo: dict[Path, Action] = field(default_factory=dict)
    wanted: dict[str, str] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)
    stop_s: int = 0
    connections: int = 0
    restart_redis: bool = False
    reload_nginx: bool = False

    def wants(self, path: Path, content: str) -> bool:
        """Tell whether a file will have this text, and not a person's."""
        return self.wanted.get(str(path)) == fingerprint(content)


class Planner:
    """Make the plan of all files and folders for some settings."""

    def __init__(
        self,
        target: Target,
        settings: Settings,
        before: Record,
        routes: Sequence[Route],
        system: System | None = None,
        *,
        start: bool = True,
    ) -> None:
        self._target = target
        self._system = system
        self._start = start
        self._settings = settings
        self._before = before
        self._routes = routes
        self._made: dict[Path, Rights] = {}
        self.plan = Plan()

    def make(self) -> Plan:
        """Give the plan. Raises DeployError when what is there already tells that it would fail."""
        if self._system is not None:
            self._system.check_program(self._target, self._settings)
        self._parents(record.PATH)
        at = len(self.plan.actions)
        self._users()
        self._folders()
        self._configuration()
        self._redis()
        self._units()
        self.plan.connections = self._connections()
        self._nginx()
        gone = self._removed_workers()
        self._remember(at, gone)
        return self.plan

    # -- what is there ---------------------------------------------------------------------------------

    def _users(self) -> None:
        settings, target = self._settings, self._target
        programs = ((settings.redis_user, "Redis"), (settings.web_user, "the web server"))
        for user, what in programs:
            if not target.has_user(user):
                self.plan.notes.append(f"there is no user {user}: install {what}, then run this again")
        members = [settings.user, *(user for user, _ in programs if target.has_user(user))]
        self._file(Path("/etc/sysusers.d/ranvier.conf"), system_files.sysusers(settings, members))
        missing = [user for user in members if not target.is_member(user, settings.group)]
        if not missing and target.has_group(settings.group) and target.has_user(settings.user):
            return
        self.plan.restart_redis = settings.redis_user in missing
        self.plan.reload_nginx = settings.web_user in missing
        root = [] if target.is_machine else [f"--root={target.root}"]
        argv = ["systemd-sysusers", *root, "ranvier.conf"]
        self.plan.actions.append(Run(argv, f"make users and groups, with {', '.join(members)} in the group"))

    def _folders(self) -> None:
        settings = self._settings
        own = Rights(settings.user, settings.user, 0o750)
        readable = Rights("root", settings.user, 0o750)
        self._folder(settings.config_dir, readable)
        self._folder(settings.conf_d, readable)
        self._folder(settings.config_dir / "workers", readable)
        self._folder(settings.data_dir, own)
        self._file(Path("/etc/tmpfiles.d/ranvier.conf"), system_files.tmpfiles(settings))
        self._folder(settings.socket_dir, Rights(settings.user, settings.group, 0o2770))

    def _configuration(self) -> None:
        settings = self._settings
        secret = Rights("root", settings.user, 0o640)
        self._secret(SIGNING_KEY_NAME, _new_key, "a new signing key")
        self._secret(SHARED_SECRET_NAME, _new_secret, "a new random secret")
        files = {
            settings.homeserver_yaml: config_files.homeserver_yaml(settings),
            settings.conf_d / "database.yaml": config_files.database_yaml(settings),
            settings.conf_d / "listeners.yaml": config_files.listeners_yaml(settings),
            settings.redis_yaml: config_files.redis_yaml(settings),
        }
        for name in settings.workers:
            files[settings.worker_yaml(name)] = config_files.worker_yaml(settings, name)
        for path, content in files.items():
            self._file(path, content, secret, leave_edited=True)

    def _redis(self) -> None:
        settings = self._settings
        found = self._target.read_exposed(settings.redis_config)
        before, rights = found if found is not None else (None, _ROOT_FILE)
        known = self._system is None or self._system.has_service(settings.redis_service)
        if before is None or not known:
            missing = settings.redis_config if before is None else settings.redis_service
            self.plan.notes.append(f"there is no {missing}: install Redis, then run this again")
            self.plan.restart_redis = False
            return
        fragment = settings.redis_fragment
        drop_in = UNITS / f"{settings.redis_service}.d" / "ranvier.conf"
        self._file(fragment, system_files.redis_fragment(settings, before))
        self._file(drop_in, system_files.redis_drop_in(settings))
        content = system_files.with_include(before, str(fragment))
        self._file(settings.redis_config, content, rights, ours=False)
        if {fragment, drop_in, settings.redis_config} & self.plan.changed:
            self.plan.restart_redis = True
        added = self._found(fragment)
        if added is not None and self._unfinished(fragment, added[0]):
            self._undo_unfinished_redis(content, rights)
        self._former_redis()
        self._redis_password(before)

    def _redis_password(self, redis_config: str) -> None:
        """Tell when Redis asks for a password that the configuration does not have."""
        path = self._settings.redis_config
        known = read_redis(self._configured(MAIN))
        if system_files.has_directive(redis_config, "requirepass") and (known is None or not known.password):
            self.plan.notes.append(
                f"{path} has a requirepass, and workers hear nothing of each other without it: write it "
                f"into {self._settings.redis_yaml} as the password of redis"
            )

    def _undo_unfinished_redis(self, content: str, rights: Rights) -> None:
        """Let Redis's own file be as before the run that added the fragment and did not come to its end."""
        path, fragment = self._settings.redis_config, self._settings.redis_fragment
        plain = system_files.without_include(content, str(fragment))
        if system_files.includes(plain, str(fragment)):
            self.plan.undo.pop(fragment, None)  # a person included it, and Redis does not start without it
        else:
            self.plan.undo.setdefault(path, PutFile(path, plain, rights, content))

    def _former_redis(self) -> None:
        """Tell when the Redis of the run before still has the file that gives it the same socket."""
        former, settings = self._before.settings, self._settings
        if former is None or former.redis_config == settings.redis_config:
            return
        found = self._target.read_exposed(former.redis_config)
        if found is not None and system_files.includes(found[0], str(former.redis_fragment)):
            self.plan.notes.append(
                f"{former.redis_config} still includes {former.redis_fragment}, and two Redis would take one "
                f"socket: take that line out, restart {former.redis_service}, then {settings.redis_service}"
            )

    def _units(self) -> None:
        settings, drain_s = self._settings, self._drain_s()
        self.plan.stop_s = system_files.stop_s(drain_s)
        self._file(UNITS / "ranvier.target", system_files.target_unit(settings))
        self._file(UNITS / "ranvier.service", system_files.main_unit(settings, drain_s))
        self._file(UNITS / "ranvier-worker@.service", system_files.worker_unit(settings, drain_s))

    def _drain_s(self) -> int:
        """Give the longest ``drain_timeout`` that the configuration as it is gives a worker, in seconds."""
        configured = (read_server(self._configured(name)) for name in self._settings.names)
        longest_ms = max(server.drain_timeout_ms for server in configured)
        return -(-longest_ms // 1000)

    def _connections(self) -> int:
        """Give how many connections to PostgreSQL on this machine all workers together may have."""
        deployed = DatabaseConfig("/run/postgresql", 5432, self._settings.user, "ranvier")
        found = (read_database(self._configured(name)) or deployed for name in self._settings.names)
        return sum(it.max_connections for it in found if it.host.startswith(_LOCAL_HOSTS))

    def _configured(self, name: str) -> Section:
        """Give what a worker's configuration says as it is; what is wrong with it, the worker tells."""
        paths = [path for path in self._settings.config_paths(name) if self._target.rights(path)]
        problems = Problems()
        return Section(read_files([self._target.real(path) for path in paths], problems), problems)

    def _nginx(self) -> None:
        settings = self._settings
        upstream, server = settings.nginx_upstream, settings.nginx_site
        ipv6 = self._system is None or self._system.has_ipv6
        files = {
            upstream: nginx.upstream_file(settings, self._routes, self._for_clients()),
            server: nginx.server_file(settings, self._routes, ipv6=ipv6),
        }
        site_is_ours = not self._is_edited(server, files[server])
        if site_is_ours:
            self._check_certificate()
        if self._system is not None and not self._start:
            self.plan.waiting |= {upstream, server}
            self.plan.reload_nginx = False
            ours = [upstream, server] if site_is_ours else [upstream]
            if not all(self._before.uses(path, files[path]) for path in ours):
                self.plan.notes.append("nginx gets its files when this is run without --no-start")
            return
        self._file(upstream, files[upstream])
        self._file(server, files[server], leave_edited=True)
        self._compare_addresses()
        absent = self._absent_nginx()
        if absent is not None:
            self.plan.waiting |= {upstream, server}
            self.plan.notes.append(f"{absent}, then run this again")
            self.plan.reload_nginx = False
        elif {upstream, server} & self.plan.changed:
            self.plan.reload_nginx = True

    def _compare_addresses(self) -> None:
        """Tell when clients are told of another address than nginx's site has, by a person's edit."""
        settings = self._settings
        url, given_in = self._public_baseurl()
        told = urlsplit(url)
        if str(settings.nginx_site) in self.plan.wanted:
            has_tls, is_host = settings.certificate is not None, told.hostname == settings.public_name.lower()
        else:
            has_tls, is_host = nginx.has_tls(self._target.read(settings.nginx_site) or ""), True
        if is_host and (told.scheme == "https" or not has_tls):
            return
        address = f"{'https' if has_tls else 'http'}://{settings.public_name}/"
        self.plan.notes.append(
            f"clients are told of {told.geturl()}, and nginx's site is {address}: "
            f"write `public_baseurl: {address}` into {given_in}, and restart the workers"
        )

    def _public_baseurl(self) -> tuple[str, Path]:
        """Give the address that clients are told of, and the file that says so.

        It is as it would be after this run, and if a person had not taken it out.
        """
        ours, yaml = config_files.public_baseurl(self._settings), self._settings.homeserver_yaml
        configured = self._configured(MAIN)
        if not configured.has("public_baseurl"):
            return ours, yaml
        given_in = Path("/") / Path(configured.file_of("public_baseurl")).relative_to(self._target.root)
        if given_in == yaml and str(yaml) in self.plan.wanted:
            return ours, yaml
        return read_server(configured).public_baseurl or ours, given_in

    def _absent_nginx(self) -> str | None:
        """Say what keeps nginx from using its files on this machine, and what to do; None if nothing does."""
        where = f"its files wait in {self._settings.nginx_dir}"
        if self._system is None:
            return None
        if not self._system.has_nginx():
            return f"there is no nginx; {where}: install it"
        if not self._system.uses_nginx():
            enable = "`systemctl enable --now nginx`"
            return f"nginx is switched off and is left so; {where}: if it is to answer clients, {enable}"
        return None

    def _check_certificate(self) -> None:
        settings = self._settings
        if settings.certificate is None or settings.certificate_key is None:
            return
        certificate = self._target.real(settings.certificate)
        key = self._target.real(settings.certificate_key)
        try:
            for file in (certificate, key):
                file.read_bytes()  # tells which of them is missing, as the next line does not
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
        except OSError as error:
            names = f"{settings.certificate} with the key {settings.certificate_key}"
            raise DeployError(f"nginx cannot use {names}: {error}") from error

    def _for_clients(self) -> Sequence[str]:
        """Give the workers that the web server asks: all that the configuration does not give other roles."""
        roles = {name: read_roles(self._configured(name)) for name in self._settings.names}
        return [name for name in roles if set(CLIENT_ROLES) & set(roles[name])] or self._settings.names

    def _removed_workers(self) -> set[Path]:
        """Find the workers of earlier runs that are not wanted any more, and move their files away."""
        settings, before = self._settings, self._before
        known = list(before.settings.workers) if before.settings is not None else []
        paths = (Path(path) for path in sorted({*before.files, *before.begun}))
        known += [name for path in paths if (name := settings.worker_of(path)) and self._target.rights(path)]
        self.plan.removed = [name for name in dict.fromkeys(known) if name not in settings.workers]
        files = {settings.worker_yaml(name): name for name in self.plan.removed}
        for path, name in files.items():
            if self._target.rights(path) is not None:
                why = f"the worker {name} is no longer wanted"
                self.plan.last.append(MoveFile(path, self._free_name(path), why))
        return set(files)

    def _remember(self, at: int, gone: Container[Path]) -> None:
        """Remember what is about to be written, as the plan's step ``at``, and at the end what was.

        ``gone`` are the files that are moved away. A run that fails, or is killed, leaves files that the next
        one has to know as its own.
        """
        before = self._target.read(record.PATH)
        if any(isinstance(action, PutFile) for action in self.plan.actions):
            text = self._before.beginning(self.plan.wanted).encode()
            if text != before:
                self.plan.actions.insert(at, PutFile(record.PATH, text, _ROOT_FILE, before))
                before = text
        waiting = set(self.plan.waiting)
        if self._system is not None and self.plan.reload_nginx:
            waiting |= {path for path in self.plan.changed if path.parent == self._settings.nginx_dir}
        steps = ((self.plan.last, waiting), (self.plan.served, self.plan.waiting))
        for actions, unused in steps:
            end = self._before.ended(
                self._settings, self.plan.wanted, self._version(), waiting=unused, gone=gone
            )
            text = end.encode()
            if text != before:
                actions.append(PutFile(record.PATH, text, _ROOT_FILE, before))
            before = text
        former = record.FORMER_PATH
        if self._target.rights(former) is not None:
            self.plan.last.append(RemoveFile(former, f"it is {record.PATH} now"))

    def _version(self) -> str:
        """Give the release that workers run after a restart, as far as is known where it is not this one."""
        is_other = self._system is not None and other_program(self._settings) is not None
        return self._before.version if is_other and self._before.version else own_release()

    # -- single steps ----------------------------------------------------------------------------------

    def _file(
        self,
        path: Path,
        content: str,
        rights: Rights = _ROOT_FILE,
        *,
        leave_edited: bool = False,
        ours: bool = True,
    ) -> None:
        self._parents(path)
        found = self._found(path)
        current = found[0] if found is not None else None
        edited = self._is_edited(path, content)
        if edited and leave_edited:
            self.plan.notes.append(f"{path} was edited by hand and is left as it is")
            return
        if ours:
            self.plan.wanted[str(path)] = fingerprint(content)
            if not self._before.uses(path, content):
                self.plan.changed.add(path)
        if found is None or self._unfinished(path, found[0]):
            self.plan.undo[path] = RemoveFile(path, "it is not in use")
        elif current != content:
            self.plan.undo[path] = PutFile(path, *found, content)
        before = found[1] if found is not None else None
        if current == content and not self._is_exposed(path):
            self._rights(path, rights)
            return
        if current == content and before == rights:
            return
        copy_to = self._free_name(path) if edited else None
        self.plan.actions.append(PutFile(path, content, rights, current, copy_to, before))
        self.plan.changed.add(path)

    def _is_edited(self, path: Path, content: str) -> bool:
        """Tell whether a file has another text than this one, by a person. Raises ``OSError``."""
        found = self._found(path)
        return found is not None and found[0] != content and not self._before.wrote(path, found[0])

    def _found(self, path: Path) -> tuple[str, Rights] | None:
        """Give a file's text and rights; None if it is not there. Raises ``OSError``."""
        if self._is_exposed(path):
            return self._target.read_exposed(path)
        text, rights = self._target.read(path), self._target.rights(path)
        return (text, rights) if text is not None and rights is not None else None

    def _is_exposed(self, path: Path) -> bool:
        """Tell whether a file lies in Redis's folder, where Redis's user may put what they like."""
        return path.parent == self._settings.redis_config.parent

    def _unfinished(self, path: Path, text: str) -> bool:
        """Tell whether a file was written by runs alone that did not come to their end."""
        return str(path) not in self._before.files and self._before.wrote(path, text)

    def _secret(self, name: str, make: Callable[[], str], what: str) -> None:
        path = self._settings.config_dir / name
        rights = Rights("root", self._settings.user, 0o640)
        if self._target.rights(path) is not None:
            self._rights(path, rights)
        elif name != SIGNING_KEY_NAME or self._before.settings is None:
            self.plan.actions.append(PutSecret(path, rights, make, what))
        elif self._signs_with(path):
            raise DeployError(f"{path} is lost: bring it back from your copy; nobody trusts a new one")

    def _signs_with(self, path: Path) -> bool:
        """Tell whether the server that was deployed has this signing key, and not one elsewhere."""
        if self._target.rights(self._settings.homeserver_yaml) is None:
            return True
        return self._configured(MAIN).path("signing_key_path") == path

    def _folder(self, path: Path, rights: Rights) -> None:
        self._parents(path)
        before = self._made.get(path) or self._target.rights(path)
        self._made[path] = rights
        if before != rights:
            self.plan.actions.append(MakeFolder(path, rights, before))

    def _rights(self, path: Path, rights: Rights) -> None:
        before = self._target.rights(path)
        if before is not None and before != rights:
            self.plan.actions.append(SetRights(path, rights, before))

    def _parents(self, path: Path) -> None:
        for folder in reversed(path.parents):
            if folder not in self._made and self._target.rights(folder) is None:
                self.plan.actions.append(MakeFolder(folder, _ROOT_FOLDER, None))
                self._made[folder] = _ROOT_FOLDER

    def _free_name(self, path: Path) -> Path:
        names = (path.with_name(f"{path.name}.kept.{number}") for number in itertools.count(1))
        return next(name for name in names if self._target.rights(name) is None)


def _new_key() -> str:
    return signing_key_file(Path(SIGNING_KEY_NAME)).content


def _new_secret() -> str:
    return secrets.token_urlsafe(32) + "\n"
