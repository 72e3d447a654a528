"""Synapse in its worker form: main, one event persister, two generic workers, Redis, nginx before them."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from bench.proc import ProcessTree
from bench.servers.base import HOST, START_TIMEOUT_S, answers, environment, free_port
from bench.servers.synapse import Synapse

PROGRAMS = ("redis-server", "nginx")
"""What is run beside Synapse, and is no part of its package."""

_GENERIC = ("generic1", "generic2")
_PERSISTER = "persister1"

# Which requests generic workers may take, from Synapse's documentation of workers (those that are measured).
_SYNC = r"^/_matrix/client/(r0|v3)/sync$"
_GENERIC_PATHS = (
    r"^/_matrix/client/(api/v1|r0|v3|unstable)/(rooms/.*/(send|state|join|messages|members|context)"
    r"|join/|createRoom|user/.*/filter)"
)


class SynapseWorkers(Synapse):
    """Synapse from PyPI with `matrix-synapse[redis]`, spread by nginx; Redis is on a UNIX socket."""

    name = "synapse-workers"
    title = "Synapse, main + 3 workers"

    def __init__(self, folder: Path, python: str) -> None:
        super().__init__(folder, python)
        self._main_port, self._replication_port = free_port(), free_port()
        self.worker_ports = {name: free_port() for name in (*_GENERIC, _PERSISTER)}
        self._persister_replication_port = free_port()
        self._helpers: list[subprocess.Popen[bytes]] = []
        self._workers: dict[str, subprocess.Popen[bytes]] = {}
        # The path of a socket is limited to about 100 bytes, which a work folder may exceed.
        self._redis_folder = Path(tempfile.mkdtemp(prefix="bench-redis-"))

    def start(self) -> None:
        """Start Redis, nginx, main and, once main has made its tables, the workers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write_nginx()
        redis = ["redis-server", "--port", "0", "--unixsocket", self._redis_socket]
        self._run_helper([*redis, "--save", "", "--dir", str(self._redis_folder)])
        self._run_helper(["nginx", "-p", str(self.folder), "-e", "nginx-error.log", "-c", "nginx.conf"])
        super().start()
        for name in self.worker_ports:
            self._start_worker(name)
        deadline = time.monotonic() + START_TIMEOUT_S
        for name, port in self.worker_ports.items():
            while not (answers(port) if name != _PERSISTER else _listens(port)):
                if self._workers[name].poll() is not None or time.monotonic() > deadline:
                    log = (self.folder / f"{name}.log").read_text()[-3000:]
                    raise RuntimeError(f"{name} does not start:\n{log}")
                time.sleep(0.2)

    def stop(self) -> None:
        """Stop the workers, then main and PostgreSQL, then nginx and Redis."""
        for process in self._workers.values():
            _end(process)
        super().stop()
        for process in self._helpers:
            _end(process)
        shutil.rmtree(self._redis_folder, ignore_errors=True)

    def tree(self) -> ProcessTree:
        """Return all processes; nginx and Redis count as the server's, as Ranvier's front and Redis do."""
        assert self._process is not None
        started = [self._process, *self._workers.values(), *self._helpers]
        return ProcessTree(tuple(process.pid for process in started), self.postgres_pids())

    def live_workers(self) -> dict[str, int]:
        """Return the process IDs of the workers, by name."""
        return {name: process.pid for name, process in self._workers.items()}

    @property
    def _redis_socket(self) -> str:
        return str(self._redis_folder / "redis.sock")

    def _run_helper(self, command: list[str]) -> None:
        with (self.folder / f"{command[0]}.log").open("ab") as log:
            self._helpers.append(
                subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder)
            )

    def _start_worker(self, name: str) -> None:
        client = _listener(self.worker_ports[name], "client")
        listeners = [client]
        if name == _PERSISTER:
            listeners.append(_listener(self._persister_replication_port, "replication"))
        settings = {
            "worker_app": "synapse.app.generic_worker",
            "worker_name": name,
            "worker_listeners": listeners,
            "worker_log_config": str(self.folder / "log.yaml"),
        }
        path = self.folder / f"{name}.yaml"
        path.write_text(json.dumps(settings, indent=1))
        command = [self._python, "-m", "synapse.app.generic_worker"]
        command += ["-c", str(self.folder / "homeserver.yaml"), "-c", str(path)]
        with (self.folder / f"{name}.log").open("ab") as log:
            self._workers[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=environment(),
            )

    def _settings(self) -> dict[str, object]:
        main = _listener(self._main_port, "client")
        return super()._settings() | {
            "listeners": [main, _listener(self._replication_port, "replication")],
            "redis": {"enabled": True, "path": self._redis_socket},
            "worker_replication_secret": "bench",
            "instance_map": {
                "main": {"host": HOST, "port": self._replication_port},
                _PERSISTER: {"host": HOST, "port": self._persister_replication_port},
            },
            "stream_writers": {"events": [_PERSISTER]},
        }

    def _write_nginx(self) -> None:
        servers = "\n".join(f"server {HOST}:{self.worker_ports[name]};" for name in _GENERIC)
        passing = 'proxy_http_version 1.1; proxy_set_header Connection ""; proxy_read_timeout 120s;'
        (self.folder / "nginx.conf").write_text(
            f"""daemon off; worker_processes 1; pid nginx.pid;
events {{ worker_connections 1024; }}
http {{
access_log off; client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
uwsgi_temp_path uwsgi; scgi_temp_path scgi; keepalive_requests 1000000; keepalive_timeout 600s;
upstream main {{ server {HOST}:{self._main_port}; keepalive 64; }}
upstream by_user {{ hash $http_authorization consistent; {servers} keepalive 64; }}
upstream by_path {{ hash $uri consistent; {servers} keepalive 64; }}
server {{
listen {HOST}:{self.port}; {passing}
location ~ {_SYNC} {{ proxy_pass http://by_user; }}
location ~ "{_GENERIC_PATHS}" {{ proxy_pass http://by_path; }}
location / {{ proxy_pass http://main; }}
}} }}
"""
        )


def _listener(port: int, resource: str) -> dict[str, object]:
    resources = [{"names": [resource], "compress": False}]
    return {"type": "http", "port": port, "bind_addresses": [HOST], "resources": resources}


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
