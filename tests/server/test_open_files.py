"""How many connections a server can have."""

from __future__ import annotations

import subprocess
import sys

_SCRIPT = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 200))
from ranvier.processes.open_files import allow_many_files
allow_many_files()
allow_many_files()
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def test_a_server_may_open_as_many_files_as_its_machine_allows() -> None:
    """Started from a shell, it would refuse the thousandth client."""
    done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["200", "200"]
