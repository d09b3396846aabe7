"""A stand-in for a container, from Linux namespaces: enough to start a service of docker-compose.yml as it would be.

It has its own network address, a root of its own that is read-only where the service says so, its user without any
capability, the service's volumes, secrets and tmpfs, and only the packages and files that its image would have. What it
does not have: the image's own system (the host's /usr and /etc stand for it), limits of memory and CPU, `init`.
Needs root, in a network and mount namespace of the caller's own.
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shipped import Image

# The user of the image; PostgreSQL asks for the name of the one that it runs as.
_PASSWD = "root:x:0:0::/tmp:/bin/sh\ntailacc:x:{uid}:{gid}::/tmp:/bin/sh\n"


def call(*command: str | Path) -> None:
    """Run a command of the system. Raises `CalledProcessError` where it fails."""
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)


class Bridge:
    """A network of the compose file: 10.77.`number`.0/24, which ends on this machine."""

    def __init__(self, number: int, internal: bool) -> None:
        self.device, self.internal, self._number, self._used = f"net{number}", internal, number, 1
        call("ip", "link", "add", self.device, "type", "bridge")
        call("ip", "address", "add", f"10.77.{number}.1/24", "dev", self.device)
        call("ip", "link", "set", self.device, "up")

    @property
    def gateway(self) -> str:
        """Where a way out would begin. Ray finds a node's own address by the route to it."""
        return f"10.77.{self._number}.1"

    def address(self) -> str:
        """A new one."""
        self._used += 1
        return f"10.77.{self._number}.{self._used}"


class Container:
    """One container of a service.

    Args:
        name: of the container.
        service: from the compose file, its variables replaced.
        image: what its image holds; None for an image that is not ours.
        packages: the environment with the image's packages; None for an image that is not ours.
        root: of the repository.
        state: folder for roots, volumes and logs.
        addresses: its address on each bridge.
        secrets: name -> file.
    """

    def __init__(
        self,
        name: str,
        service: Mapping[str, Any],
        image: Image | None,
        packages: Path | None,
        root: Path,
        state: Path,
        addresses: Mapping[Bridge, str],
        secrets: Mapping[str, Path],
    ) -> None:
        self.name, self.service, self.addresses = name, service, dict(addresses)
        self.log = state / "logs" / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._root = state / "roots" / name
        self._uid, self._gid = service["user"].split(":")
        self._folder = image.folder if image else "/"
        self._environment = {
            "PATH": f"{state / 'bin'}:/usr/local/bin:/usr/bin:/bin",
            **(image.environment if image else {"HOME": "/tmp"}),
            **{key: str(value) for key, value in service.get("environment", {}).items()},
        }
        self._lay_root(image, packages, root, state, secrets)
        self._connect()

    @property
    def address(self) -> str:
        """The one on the first of its networks."""
        return next(iter(self.addresses.values()))

    def _lay_root(
        self,
        image: Image | None,
        packages: Path | None,
        root: Path,
        state: Path,
        secrets: Mapping[str, Path],
    ) -> None:
        base, service = self._root, self.service
        base.mkdir(parents=True)
        call("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", base)
        for name in ("usr", "etc", "dev", "sys"):
            self._bind(Path("/", name), f"/{name}", read_only=name != "dev", recursive=True)
        for name in ("bin", "lib", "lib64", "sbin"):
            (base / name).symlink_to(os.readlink(f"/{name}"))
        for name in ("proc", "run", "var", "tmp"):
            (base / name).mkdir()
        (base / "var/run").symlink_to("../run")
        call("mount", "-t", "proc", "proc", base / "proc")
        size = service.get("shm_size", "64mb").removesuffix("b")
        call("mount", "-t", "tmpfs", "-o", f"mode=1777,size={size}", "tmpfs", base / "dev/shm")
        etc = state / "etc" / self.name
        etc.mkdir(parents=True)
        (etc / "passwd").write_text(_PASSWD.format(uid=self._uid, gid=self._gid))
        self._bind(etc / "passwd", "/etc/passwd", read_only=True)
        # Nobody answers there, and says so at once: names are in /etc/hosts. This host's own name server can't be
        # reached from here, and Ray's gRPC would wait for it until its time is up.
        (etc / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
        self._bind(etc / "resolv.conf", "/etc/resolv.conf", read_only=True)
        # Python itself, where this one lives: the environments point there.
        if not sys.base_prefix.startswith("/usr"):
            self._bind(Path(sys.base_prefix), sys.base_prefix, read_only=True)
        if packages:
            self._bind(packages, "/venv", read_only=True)
        for source, target in image.copies if image else ():
            self._bind(root / source, target, read_only=True)
        (base / self._folder[1:]).mkdir(parents=True, exist_ok=True)
        for volume in service.get("volumes", ()):
            self._mount_volume(volume, state)
        for secret in service.get("secrets", ()):
            self._bind(secrets[secret], f"/run/secrets/{secret}", read_only=True)
        for text in service.get("tmpfs", ()):
            target, _, options = text.partition(":")
            path = base / target[1:]
            path.mkdir(parents=True, exist_ok=True)
            # Docker's own defaults first.
            call("mount", "-t", "tmpfs", "-o", f"noexec,nosuid,nodev,{options}", "tmpfs", path)
        if image is None:
            self._bind(state / "bin", str(state / "bin"), read_only=True)
        if service.get("read_only"):
            call("mount", "-o", "remount,ro", base)

    def _mount_volume(self, volume: Any, state: Path) -> None:
        if isinstance(volume, dict):
            self._bind(Path(volume["source"]), volume["target"], volume.get("read_only", False))
            return
        name, target = volume.split(":")
        folder = state / "volumes" / name
        if not folder.exists():
            folder.mkdir(parents=True)
            if self.service.get("build"):
                os.chown(folder, int(self._uid), int(self._gid))
            else:
                folder.chmod(0o1777)  # as PostgreSQL's image leaves it, for a user like ours
        self._bind(folder, target, read_only=False)

    def _bind(self, source: Path, target: str, read_only: bool, recursive: bool = False) -> None:
        path = self._root / target[1:]
        if source.is_dir():
            path.mkdir(parents=True, exist_ok=True)
        elif not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        call("mount", "--rbind" if recursive else "--bind", source, path)
        if read_only:
            call("mount", "-o", "remount,bind,ro", path)

    def _connect(self) -> None:
        # A process that only holds the network namespace.
        self._holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        mine = os.readlink("/proc/self/ns/net")
        while os.readlink(f"/proc/{self._holder.pid}/ns/net") == mine:
            pass  # a few milliseconds
        inside = ("nsenter", f"--net=/proc/{self._holder.pid}/ns/net", "ip")
        call(*inside, "link", "set", "lo", "up")
        for bridge, address in self.addresses.items():
            near, far = f"{bridge.device}v{address.rpartition('.')[2]}", f"eth-{bridge.device}"
            call("ip", "link", "add", near, "type", "veth", "peer", "name", far)
            call("ip", "link", "set", far, "netns", str(self._holder.pid))
            call("ip", "link", "set", near, "master", bridge.device, "up")
            call(*inside, "address", "add", f"{address}/24", "dev", far)
            call(*inside, "link", "set", far, "up")
            if not bridge.internal:
                call(*inside, "route", "add", "default", "via", bridge.gateway)

    def know(self, hosts: Mapping[str, str]) -> None:
        """Give it the names (name -> address) that it can look up."""
        etc = self._root.parents[1] / "etc" / self.name
        new = not (etc / "hosts").exists()
        lines = "".join(f"{address} {name}\n" for name, address in hosts.items())
        (etc / "hosts").write_text("127.0.0.1 localhost\n" + lines)
        if new:
            call("mount", "--bind", etc / "hosts", self._root / "etc/hosts")

    def within(self, command: Sequence[str], **variables: str) -> list[str]:
        """The command line that runs `command` inside, as its user."""
        environment = [f"{key}={value}" for key, value in (self._environment | variables).items()]
        return [
            *("nsenter", f"--net=/proc/{self._holder.pid}/ns/net", "chroot", str(self._root), "setpriv"),
            *(f"--reuid={self._uid}", f"--regid={self._gid}", "--clear-groups", "--no-new-privs"),
            *("--bounding-set=-all", "--inh-caps=-all"),
            *("env", "--ignore-environment", f"--chdir={self._folder}", *environment, *command),
        ]

    def start(self) -> None:
        """Start the service's command, its output to the log."""
        command = self.service["command"]
        words = shlex.split(command) if isinstance(command, str) else command
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.within([*self.service.get("entrypoint", ()), *words]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def ill(self, timeout: float) -> str:
        """What the service's health check complains of; "" where it passes."""
        test = self.service["healthcheck"]["test"][1:]
        try:
            done = subprocess.run(
                self.within(test), capture_output=True, text=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired:
            return f"no answer in {timeout:g} s"
        lines = (done.stdout + done.stderr).strip().splitlines()
        return "" if done.returncode == 0 else lines[-1] if lines else f"exit code {done.returncode}"
