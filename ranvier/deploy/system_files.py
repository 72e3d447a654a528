"""The files of the system: users and folders, systemd's units, and what Redis is told."""

from __future__ import annotations

from collections.abc import Sequence

from ranvier.deploy.settings import MAIN, Settings

_FOLDERS = """\
# The sockets of Ranvier's workers and of its Redis. Whatever is made in the folder gets its group (the 2 of
# 2770), so that the web server may connect.
d {socket_dir} 2770 {user} {group} -
"""
_TARGET = """\
[Unit]
Description=Ranvier, a Matrix homeserver
Wants={services}

[Install]
WantedBy=multi-user.target
"""
_SERVICE = """\
[Unit]
Description=Ranvier, a Matrix homeserver ({described})
PartOf=ranvier.target
Wants=network-online.target {redis_service}
After=network-online.target postgresql.service {redis_service}

[Service]
Type=notify
NotifyAccess=main
User={user}
Group={user}
SupplementaryGroups={group}
UMask=0027
WorkingDirectory={data_dir}
ExecStart={program} worker --data {data_dir} {options}
ExecReload=/bin/kill -HUP $MAINPID
Restart=always
RestartSec=3
# What a worker ends with that was asked to restart at the page.
SuccessExitStatus=75
# The schema may have to be brought up to date first: broken off, that would begin anew for ever.
TimeoutStartSec=infinity
# The drain_timeout of the configuration, and some seconds. `ranvier deploy` writes it anew when that has
# changed.
TimeoutStopSec={stop_s}s
WatchdogSec=1min
LimitNOFILE=65536

NoNewPrivileges=yes
PrivateTmp=yes
PrivateDevices=yes
ProtectSystem=strict
ProtectHome={protect_home}
ProtectClock=yes
ProtectControlGroups=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
RestrictRealtime=yes
LockPersonality=yes
SystemCallArchitectures=native
ReadWritePaths={data_dir} {socket_dir}

[Install]
WantedBy=ranvier.target
"""
_REDIS = """\
# Redis answers on a UNIX socket only, for those who are in the group {group} of its folder.
port 0
{tls}unixsocket {redis_socket}
unixsocketperm 770
# A worker that stands still is let go before its messages fill the memory; it reads the database afterwards.
client-output-buffer-limit pubsub 64mb 16mb 30
# Nothing is kept: after a dump or a log that fails, as on a full disk, Redis would take no more writes.
save ""
appendonly no
"""
_REDIS_UNIT = """\
# Let Redis have its socket in Ranvier's folder, and start without it once Ranvier is gone.
[Unit]
After=systemd-tmpfiles-setup.service

[Service]
ReadWritePaths=-{socket_dir}
"""
_INCLUDE = """\

# For Ranvier; keep this line last.
include {path}
"""
_STOP_MARGIN_S = 30
_HOMES = ("/home/", "/root/", "/run/user/")


def sysusers(settings: Settings, members: Sequence[str]) -> str:
    """Give ``sysusers.d/ranvier.conf``: the server's user, and the group that shares the sockets' folder."""
    lines = [
        "# The user that Ranvier runs as, and the group of those who use the folder of its sockets.",
        f"g {settings.group} -",
        f'u {settings.user} - "Ranvier homeserver" {settings.data_dir} /usr/sbin/nologin',
        *(f"m {member} {settings.group}" for member in members),
    ]
    return "\n".join(lines) + "\n"


def tmpfiles(settings: Settings) -> str:
    """Give ``tmpfiles.d/ranvier.conf``: the folder of the sockets, made again at each boot."""
    return _FOLDERS.format(
        socket_dir=settings.socket_dir,
        user=settings.user,
        group=settings.group,
    )


def service_of(name: str) -> str:
    """Give the name of the unit that runs a worker."""
    return "ranvier.service" if name == MAIN else f"ranvier-worker@{name}.service"


def target_unit(settings: Settings) -> str:
    """Give ``ranvier.target``: all processes together."""
    return _TARGET.format(services=" ".join(service_of(name) for name in settings.names))


def main_unit(settings: Settings, drain_s: int) -> str:
    """Give ``ranvier.service``, the worker that has no file of its own; otherwise one like all others."""
    return _unit(settings, MAIN, "the first worker", drain_s)


def worker_unit(settings: Settings, drain_s: int) -> str:
    """Give the template ``ranvier-worker@.service``: the instance is the worker's name."""
    return _unit(settings, "%i", "worker %i", drain_s)


def stop_s(drain_s: int) -> int:
    """Give how many seconds systemd gives a worker to finish."""
    return drain_s + _STOP_MARGIN_S


def _unit(settings: Settings, name: str, described: str, drain_s: int) -> str:
    options = " ".join(f"--config-path {path}" for path in settings.config_paths(name))
    at_home = str(settings.program).startswith(_HOMES)
    return _SERVICE.format(
        described=described,
        redis_service=settings.redis_service,
        user=settings.user,
        group=settings.group,
        data_dir=settings.data_dir,
        socket_dir=settings.socket_dir,
        program=settings.program,
        stop_s=stop_s(drain_s),
        options=options,
        protect_home="read-only" if at_home else "yes",
    )


def redis_fragment(settings: Settings, redis_config: str) -> str:
    """Give the file that Redis's own configuration includes at its end, where it goes over all before.

    A Redis that was built without TLS does not know the directive, so it is there only if that is.
    """
    tls = "tls-port 0\n" if has_directive(redis_config, "tls-port") else ""
    return _REDIS.format(group=settings.group, redis_socket=settings.redis_socket, tls=tls)


def has_directive(redis_config: str, name: str) -> bool:
    """Tell whether Redis's configuration has a directive, which may be in capitals, outside of comments."""
    return any(line.split()[0].lower() == name for line in redis_config.splitlines() if line.strip())


def includes(redis_config: str, path: str) -> bool:
    """Tell whether Redis's configuration includes a file."""
    return f"include {path}" in (line.strip() for line in redis_config.splitlines())


def redis_drop_in(settings: Settings) -> str:
    """Give the addition to Redis's unit: Debian's may write to its own folders only."""
    return _REDIS_UNIT.format(socket_dir=settings.socket_dir)


def with_include(redis_config: str, fragment_path: str) -> str:
    """Give Redis's configuration with the fragment included at its end."""
    if includes(redis_config, fragment_path):
        return redis_config
    end = "" if not redis_config or redis_config.endswith("\n") else "\n"
    return f"{redis_config}{end}{_INCLUDE.format(path=fragment_path)}"


def without_include(redis_config: str, fragment_path: str) -> str:
    """Give Redis's configuration as it was before ``with_include`` changed it."""
    return redis_config.replace(_INCLUDE.format(path=fragment_path), "")
