"""Write a first configuration: a commented ``homeserver.yaml``, a signing key and a secret."""

from __future__ import annotations

import os
import secrets
import string
from dataclasses import dataclass
from pathlib import Path

from ranvier.spec.unpadded_base64 import encode_base64

CONFIG_NAME = "homeserver.yaml"
SIGNING_KEY_NAME = "signing.key"
SHARED_SECRET_NAME = "registration_shared_secret"
DEFAULT_PORT = 8008

_TEMPLATE = """\
# The configuration of a Ranvier homeserver. The names are Synapse's, so what you know of one holds for both.
# `ranvier check-config` tells what is wrong with this file, line by line. Paths begin at this file's folder.

# The name that user IDs and room aliases end with. It can never be changed.
server_name: "{server_name}"

# Where clients reach the server from outside, usually through a reverse proxy with TLS.
#public_baseurl: "https://matrix.example.org/"

# Where the server answers. Behind a reverse proxy on this machine, set x_forwarded so that it learns the
# clients' addresses; a UNIX socket has `path` and `mode` in place of `port` and `bind_addresses`.
listeners:
  - type: http
    port: {port}
    bind_addresses: ["127.0.0.1"]
    x_forwarded: false
    resources:
      - names: [client, federation, media]

# Without this section Ranvier runs a PostgreSQL of its own in {data_dir}.
#database:
#  name: psycopg2
#  args:
#    host: /run/postgresql
#    user: ranvier
#    dbname: ranvier
#    password_path: database_password
#    cp_max: 10

# The key that the server signs with. Keep a copy: without it other servers no longer believe this one.
signing_key_path: "{signing_key}"

# Who knows this secret may make accounts: `ranvier register-user` needs none, other tools do.
registration_shared_secret_path: "{shared_secret}"

# Let people make accounts themselves, with a token that you give them. Off unless you say so.
#enable_registration: true
#registration_requires_token: true

# Let people log in with the accounts of a company (OpenID Connect); it needs public_baseurl. See docs/sso.md.
#oidc_providers:
#  - idp_id: company
#    idp_name: Company
#    issuer: "https://id.example.org/realms/company"
#    client_id: matrix
#    client_secret_path: oidc_client_secret
#    user_mapping_provider:
#      config:
#        localpart_template: "{{{{ user.preferred_username }}}}"
#        display_name_template: "{{{{ user.name }}}}"

# How long a refreshable access token lives, and how long people stay logged in without using the server.
#refreshable_access_token_lifetime: 5m
#session_lifetime: 60d

# What a new password must have.
#password_config:
#  policy:
#    enabled: true
#    minimum_length: 10

# Make new private rooms encrypted: all, invite (private ones), or off.
#encryption_enabled_by_default_for_room_type: invite

# Show who is online. It costs traffic in large rooms.
#presence:
#  enabled: true

# How much one user may do; Synapse's other rc_* names and defaults hold as well.
#rc_message:
#  per_second: 0.2
#  burst_count: 10

# Whom users may turn to (/.well-known/matrix/support).
#well_known_support:
#  contacts:
#    - role: m.role.admin
#      matrix_id: "@admin:{server_name}"

# DEBUG, INFO, WARNING or ERROR.
log_level: INFO
"""


@dataclass(frozen=True)
class GeneratedFile:
    """A file to be written, with its permission bits."""

    path: Path
    mode: int
    content: str

    def write(self) -> None:
        """Write the file, all of it or none. Raises ``OSError``, ``FileExistsError`` where one is there."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        file = os.fdopen(os.open(self.path, flags, self.mode), "w", encoding="utf-8")
        try:
            with file:
                file.write(self.content)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            self.path.unlink()
            raise


def generate(server_name: str, data_dir: Path, *, port: int = DEFAULT_PORT) -> str:
    """Give the text of a commented ``homeserver.yaml``; the files that it names stand beside it."""
    return _TEMPLATE.format(
        server_name=server_name,
        port=port,
        data_dir=data_dir,
        signing_key=SIGNING_KEY_NAME,
        shared_secret=SHARED_SECRET_NAME,
    )


def generate_files(server_name: str, data_dir: Path, *, port: int = DEFAULT_PORT) -> list[GeneratedFile]:
    """Give all that a first configuration consists of; ``homeserver.yaml`` is the last."""
    return [
        signing_key_file(data_dir / SIGNING_KEY_NAME),
        GeneratedFile(data_dir / SHARED_SECRET_NAME, 0o600, secrets.token_urlsafe(32) + "\n"),
        GeneratedFile(data_dir / CONFIG_NAME, 0o640, generate(server_name, data_dir, port=port)),
    ]


def signing_key_file(path: Path) -> GeneratedFile:
    """Make a new signing key: ``ed25519 a_xxxx <seed in Base64>``, the form that every homeserver reads."""
    alphabet = string.ascii_letters + string.digits
    version = "a_" + "".join(secrets.choice(alphabet) for _ in range(4))
    seed = encode_base64(secrets.token_bytes(32))
    return GeneratedFile(path, 0o600, f"ed25519 {version} {seed}\n")
