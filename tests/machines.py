"""Two machines on one, of Linux's namespaces: a network, a hostname, processes, /tmp and /dev/shm of their own each.

They share the processors and the files, and are joined by one cable. They end with the process that made them, however
that ends: the first process of a machine waits for the end of its standard input, the others are killed with it, and
the system removes a network without processes.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
NAMESPACES = ("--mount", "--uts", "--ipc", "--net", "--pid")
ADDRESSES = {"node-1": "10.77.0.1", "node-2": "10.77.0.2"}
START = """
set -e
hostname "$1"
ip link set lo up
mount --make-rprivate /
mount -t tmpfs tmpfs /mnt
hosts="$2"; shift 2
for place; do mkdir -p "/mnt$place"; mount --bind "$place" "/mnt$place"; done
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /dev/shm
for place; do mkdir -p "$place"; mount --bind "/mnt$place" "$place"; done
echo "$hosts" > /mnt/hosts
mount --bind /mnt/hosts /etc/hosts
echo ready
exec cat
"""


def unavailable_reason() -> str:
    """Why there cannot be two machines here; "" where there can be."""
    if platform.system() != "Linux" or os.geteuid() != 0:
        return "two machines are namespaces of Linux, which root alone may make"
    missing = [command for command in ("ip", "unshare", "nsenter", "mount") if shutil.which(command) is None]
    if missing:
        return f"two machines need the commands {', '.join(missing)}"
    attempt = subprocess.run(["unshare", *NAMESPACES, "--fork", "true"], capture_output=True, text=True, check=False)
    return attempt.stderr.strip()


@dataclass(frozen=True)
class Machine:
    """A machine: its address, and the number that its first process has outside."""

    address: str
    process: int

    def start(self, *words: object, **options: Any) -> subprocess.Popen[str]:
        """Start a command on it, in the folder /. options: those of subprocess.Popen."""
        inside = ["nsenter", "--target", str(self.process), *NAMESPACES, "--", *map(str, words)]
        return subprocess.Popen(inside, **{"text": True, **options})

    def call(self, *words: object, **options: Any) -> str:
        """Carry out a command on it, and return what it printed; CalledProcessError where it fails."""
        process = self.start(*words, **{"stdout": subprocess.PIPE, **options})
        out, _ = process.communicate()
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, list(map(str, words)), out)
        return out

    def plug(self, state: str) -> None:
        """Set its end of the cable "up" or "down"; with one end down nothing passes, and nobody is told."""
        self.call("ip", "link", "set", "cable", state)

    def mount_small(self, folder: Path, size: str) -> None:
        """Give it a disk of its own of so many bytes at `folder`, which the other machine goes on to see as it is."""
        self.call("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder)

    def mount_full(self, folder: Path, size: str) -> None:
        """Let it see the files of `folder`, and write no more than so many bytes there, which it alone sees."""
        parts = [f"/mnt{folder}.{name}" for name in ("disk", "disk/new", "disk/work")]
        self.call("mkdir", "-p", parts[0])
        self.mount_small(Path(parts[0]), size)
        self.call("mkdir", *parts[1:])
        layers = f"lowerdir={folder},upperdir={parts[1]},workdir={parts[2]}"
        self.call("mount", "-t", "overlay", "-o", layers, "overlay", folder)


@contextmanager
def two_machines(shared: Path) -> Iterator[tuple[Machine, Machine]]:
    """Two machines that share the folder `shared`, limbeck's and Python's, inside a `with` block."""
    places = [
        str(place) for place in (shared, ROOT, Path(sys.prefix)) if place == shared or str(place).startswith("/tmp/")
    ]
    hosts = "\n".join(["127.0.0.1 localhost", *(f"{address} {name}" for name, address in ADDRESSES.items())])
    with ExitStack() as stack:
        machines = []
        for name, address in ADDRESSES.items():
            words = ["unshare", *NAMESPACES, "--fork", "--kill-child", "--mount-proc"]
            words += ["sh", "-c", START, "sh", name, hosts, *places]
            parent = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            stack.enter_context(parent)  # closes its input, at which it ends, and waits
            assert parent.stdout is not None
            if parent.stdout.readline() != "ready\n":
                raise OSError(f"{name} does not start")
            child = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()[0]
            machines.append(Machine(address, int(child)))
        first, second = machines
        ends = ["cable", "netns", str(first.process), "type", "veth", "peer", "cable", "netns", str(second.process)]
        subprocess.run(["ip", "link", "add", *ends], check=True)
        for machine in machines:
            machine.call("ip", "address", "add", f"{machine.address}/24", "dev", "cable")
            machine.plug("up")
        yield first, second
