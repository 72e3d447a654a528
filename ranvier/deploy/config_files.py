"""The files below ``/etc/ranvier``: what every process reads, and what one worker reads besides."""

from __future__ import annotations

from ranvier.deploy.settings import MAIN, Settings

_HOMESERVER = """\
# The configuration of a Ranvier homeserver; all its processes read it. The names are Synapse's.
# conf.d/*.yaml is read after this file, and workers/NAME.yaml after that by the worker NAME alone.
# `ranvier doctor` tells what is wrong. To have changes read:
# systemctl reload ranvier.service 'ranvier-worker@*'

# The name that user IDs and room aliases end with. It can never be changed.
server_name: "{server_name}"
public_baseurl: "{baseurl}"

# The key that the server signs with. Keep a copy: without it other servers no longer believe this one.
signing_key_path: "{config_dir}/signing.key"

# Who knows this secret may make accounts.
registration_shared_secret_path: "{config_dir}/registration_shared_secret"

# DEBUG, INFO, WARNING or ERROR.
log_level: INFO
"""
_REDIS = """\
# What makes a commit of one worker known to all others at once.
redis:
  enabled: true
  path: {redis_socket}
"""
_DATABASE = """\
# PostgreSQL on this machine, over its UNIX socket: the user is known by its name and needs no password.
database:
  name: psycopg2
  args:
    host: /run/postgresql
    user: "{user}"
    dbname: ranvier
    cp_max: 10
"""
_LISTENERS = """\
{comment}
{key}:
  - type: http
    path: {socket}
    mode: 0660
    resources:
      - names: [client, federation, media, health]
"""


def homeserver_yaml(settings: Settings) -> str:
    """Give the first ``homeserver.yaml``."""
    return _HOMESERVER.format(
        server_name=settings.server_name,
        baseurl=public_baseurl(settings),
        config_dir=settings.config_dir,
    )


def public_baseurl(settings: Settings) -> str:
    """Give the address that clients are told of."""
    scheme = "https" if settings.certificate is not None else "http"
    return f"{scheme}://{settings.public_name}/"


def redis_yaml(settings: Settings) -> str:
    """Give ``conf.d/redis.yaml``."""
    return _REDIS.format(redis_socket=settings.redis_socket)


def database_yaml(settings: Settings) -> str:
    """Give ``conf.d/database.yaml``."""
    return _DATABASE.format(user=settings.user)


def listeners_yaml(settings: Settings) -> str:
    """Give ``conf.d/listeners.yaml``: where the process answers that has no file of its own."""
    comment = "# Where ranvier.service answers the web server."
    return _listeners(settings, MAIN, "listeners", comment)


def worker_yaml(settings: Settings, name: str) -> str:
    """Give ``workers/NAME.yaml``."""
    comment = f'worker_name: "{name}"\n\n# Where this worker answers the web server.'
    return _listeners(settings, name, "worker_listeners", comment)


def _listeners(settings: Settings, name: str, key: str, comment: str) -> str:
    return _LISTENERS.format(
        comment=comment,
        key=key,
        socket=settings.socket(name),
    )
