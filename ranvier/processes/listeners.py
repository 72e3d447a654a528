"""What answers at the listeners of the configuration."""

from __future__ import annotations

from ranvier.config import Config
from ranvier.config.listeners import Listener as ListenerConfig
from ranvier.http.app import Application
from ranvier.http.listeners import Listener, ListenerSettings, TcpAddress, TlsFiles, UnixAddress


def http_listener(config: Config, wanted: ListenerConfig, application: Application) -> Listener:
    """Make what answers at one listener of the configuration."""
    tls = tls_files(config) if wanted.tls else None
    served = resources_of(wanted)
    return Listener(
        ListenerSettings(addresses=addresses_of(wanted), tls=tls),
        application.endpoint(served, x_forwarded=wanted.x_forwarded),
    )


def tls_files(config: Config) -> TlsFiles:
    """Give the certificate of the listeners that have TLS."""
    certificate, private_key = config.server.tls_certificate_path, config.server.tls_private_key_path
    assert certificate is not None, "checked when the configuration was read"
    assert private_key is not None, "checked when the configuration was read"
    return TlsFiles(certificate, private_key)


def addresses_of(wanted: ListenerConfig) -> tuple[TcpAddress | UnixAddress, ...]:
    """Give where a listener of the configuration is."""
    if wanted.path is not None:
        return (UnixAddress(wanted.path, wanted.mode),)
    return tuple(TcpAddress(host, wanted.port) for host in wanted.bind_addresses)


def resources_of(wanted: ListenerConfig) -> list[str]:
    """Give the resources of a listener that this release has endpoints for."""
    known: tuple[str, ...] = ("client", "metrics", "health", "console")
    served = [name for name in known if name in wanted.resources]
    if "console" in served:  # a browser may come in through a tunnel
        return ["console_metrics" if name == "metrics" else name for name in served]
    if "client" in served:
        served.append("admin")  # the same as console for whoever has an administrator's access token
    return served
