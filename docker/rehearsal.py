"""Start what docker-compose.yml says, in its order, with its commands, users, files and health checks, without Docker.

    sudo .venv/bin/python docker/rehearsal.py                      profile cpu; about 3 minutes on 2 cores
    sudo .venv/bin/python docker/rehearsal.py --state DIR          where environments and logs go

Each service runs in namespaces of its own (docker/stand_in.py) with the packages of its image's lock file alone. A
search of two trials on 60 synthetic images is sent through the head; its champion is served and scored. Nothing is left
running.
Needs Linux, root, iproute2, PostgreSQL's programs and uv (in .venv).
"""

import argparse
import json
import os
import secrets
import shlex
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

# Bare, from this script's own folder: `docker` is the name of a package on PyPI.
from shipped import Image, read_compose, read_image, seconds, start_order
from stand_in import Bridge, Container, call

ROOT = Path(__file__).resolve().parents[1]
POSTGRES = Path("/usr/lib/postgresql")
SEARCH = (
    "python /app/tune/search.py --search.ray-address ray-head:6379 --preset quick --search.trials 2 "
    "--search.finalists 1 --schedule.epochs 2 --data.size 32 --data.train-size 32 --space.backbone tiny_cnn "
    "--space.loss bce asl --out /srv/tailacc/runs/tune/rehearsal"
)
# That the stand-in confines as the service says: nothing to write but /tmp, no root, no capability.
CONFINED = (
    "sh -c 'touch /tmp/x && ! touch /x && ! touch /usr/x && test $(id -u) != 0 && "
    'grep -q "^CapEff:.0000000000000000$" /proc/self/status\''
)
# What the PostgreSQL image's own entry script does at the first start.
ENTRY = """set -eu
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    initdb --pgdata "$PGDATA" --username "$POSTGRES_USER" --pwfile "$POSTGRES_PASSWORD_FILE" \\
        --auth-local trust --auth-host scram-sha-256 --encoding UTF8 --locale C.UTF-8
    echo "listen_addresses = '*'" >> "$PGDATA/postgresql.conf"
    echo "host all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"
    pg_ctl --pgdata "$PGDATA" --wait --options "-c listen_addresses=''" start
    createdb --username "$POSTGRES_USER" "$POSTGRES_DB"
    pg_ctl --pgdata "$PGDATA" --wait stop
fi
exec "$@"
"""


class Rehearsal:
    """The services of one profile and what was seen of them."""

    def __init__(self, state: Path, profile: str) -> None:
        self.state = state
        self.rows: list[tuple[str, str, str, bool]] = []
        compose = read_compose(ROOT, {"DATA_DIR": str(state / "data"), "SECRETS_DIR": str(state / "secrets")})
        self.services: dict[str, Any] = {
            name: service
            for name, service in compose["services"].items()
            if profile in service.get("profiles", [profile])
        }
        self._secrets = {name: Path(item["file"]) for name, item in compose["secrets"].items()}
        self._networks = dict(compose["networks"])
        self.containers: dict[str, Container] = {}

    def prepare(self) -> None:
        """Environments from the locks, secrets, a tiny devkit; with the network of this machine."""
        for folder in ("roots", "volumes", "logs", "etc", "bin", "data", "secrets"):
            shutil.rmtree(self.state / folder, ignore_errors=True)
            (self.state / folder).mkdir(parents=True)
        owner = [int(part) for part in self.services["mlflow"]["user"].split(":")]
        for path in self._secrets.values():
            path.write_text(secrets.token_hex(32))
            path.chmod(0o400)
            os.chown(path, *owner)
        for name in sorted(
            {service["build"]["args"]["LOCK"] for service in self.services.values() if "build" in service}
        ):
            folder = self.state / "envs" / name
            uv = (sys.executable, "-m", "uv")
            if not folder.is_dir():
                call(*uv, "venv", "--quiet", "--relocatable", "--python", sys.executable, folder)
            # What pip does in the Dockerfile: wheels alone, hashes checked, and compiled (without that mlflow's import
            # takes three times as long, in every process).
            call(*uv, "pip", "sync", "--quiet", "--require-hashes", "--no-build", "--compile-bytecode",
                 "--python", folder / "bin/python", ROOT / "requirements" / f"{name}.txt")  # fmt: skip
            call(folder / "bin/python", ROOT / "docker/metadata.py", ROOT / "pyproject.toml")
        newest = max(POSTGRES.glob("*/bin"), key=lambda path: int(path.parent.name))
        for program in newest.iterdir():
            (self.state / "bin" / program.name).symlink_to(program)
        (self.state / "bin/entry.sh").write_text(ENTRY)
        from data.synthetic import write_devkit

        write_devkit(self.state / "data", 40, 20, seed=0)

    def create(self) -> None:
        """Networks and containers, none of them started."""
        call("ip", "link", "set", "lo", "up")
        bridges = {
            name: Bridge(number, bool(network.get("internal")))
            for number, (name, network) in enumerate(self._networks.items(), 1)
        }
        for name in start_order(self.services):
            service = self.services[name]
            image: Image | None = None
            packages = None
            if "build" in service:
                image = read_image(ROOT, service["build"]["target"])
                packages = self.state / "envs" / service["build"]["args"]["LOCK"]
            else:
                service = service | {"entrypoint": ["sh", str(self.state / "bin/entry.sh")]}
            replicas = int(service.get("deploy", {}).get("replicas", 1))
            for number in range(1, replicas + 1):
                label = name if replicas == 1 else f"{name}-{number}"
                addresses = {
                    bridges[network]: bridges[network].address()
                    for network in service.get("networks", ["default"])
                }
                self.containers[label] = Container(
                    label, service, image, packages, ROOT, self.state, addresses, self._secrets
                )  # fmt: skip
        for container in self.containers.values():
            container.know(
                {
                    name: other.addresses[bridge]
                    for name, other in self.containers.items()
                    for bridge in container.addresses
                    if bridge in other.addresses
                }
            )

    def note(self, what: str, command: str, seen: str, good: bool) -> None:
        """Add a row to the table and print it."""
        self.rows.append((what, command, seen, good))
        print(f"{'ok  ' if good else 'FAIL'}  {what:<22} {seen}", flush=True)

    def up(self, name: str) -> bool:
        """Start a container and wait for its health check to pass."""
        container = self.containers[name]
        check = container.service["healthcheck"]
        patience = seconds(check["start_period"]) + check["retries"] * seconds(check["interval"])
        began = time.monotonic()
        container.start()
        trouble = "not asked yet"
        while trouble and time.monotonic() - began < patience:
            if container.process is None or container.process.poll() is not None:
                trouble = f"it ended; see {container.log}"
                break
            time.sleep(1)
            trouble = container.ill(seconds(check["timeout"]))
        took = time.monotonic() - began
        seen = f"not healthy after {took:.0f} s: {trouble}" if trouble else f"healthy after {took:.0f} s"
        self.note(name, str(container.service["command"]), seen, not trouble)
        return not trouble

    def without_champion(self) -> None:
        """The server before there is a model: it should end with code 2 and say why."""
        container = self.containers["serve"]
        container.start()
        code = container.process.wait(120) if container.process else None
        last = container.log.read_text().strip().splitlines()[-1]
        self.note("serve, no champion yet", "", f"exit code {code}: {last}", code == 2)

    def hosts(self) -> None:
        """Which Host headers MLflow answers."""
        address = self.containers["mlflow"].address
        path = "/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default"
        for host, wanted in (
            ("mlflow:5000", 200),
            ("localhost:5000", 200),
            ("127.0.0.1:5000", 200),
            ("evil.example", 403),
        ):
            request = urllib.request.Request(f"http://{address}:5000{path}", headers={"Host": host})
            try:
                with urllib.request.urlopen(request, timeout=10) as answer:
                    code = answer.status
            except urllib.error.HTTPError as error:
                code = error.code
            self.note(f"Host: {host}", "", f"mlflow answers {code}", code == wanted)

    def execute(self, what: str, container: str, command: str, timeout: float) -> bool:
        """Run a command in a container, as `docker compose exec` does."""
        began = time.monotonic()
        log = self.state / "logs" / f"{what.replace(' ', '-')}.log"
        with log.open("wb") as output:
            code = subprocess.run(
                self.containers[container].within(shlex.split(command)),
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, timeout=timeout, check=False,
            ).returncode  # fmt: skip
        took = time.monotonic() - began
        self.note(
            what,
            command,
            f"exit code {code} after {took:.0f} s{'' if code == 0 else f'; see {log}'}",
            code == 0,
        )
        return code == 0

    def score(self) -> None:
        """Score the devkit's val images through the server, from outside."""
        out = self.state / "scores.parquet"
        for path in self.state.glob("scores*"):
            path.unlink()
        server = f"{self.containers['serve'].address}:8001"
        command = f"python serve/client.py score --server {server} --images {self.state / 'data'} --out {out}"
        done = subprocess.run(
            [sys.executable, *shlex.split(command)[1:]], cwd=ROOT, capture_output=True, text=True, check=False
        )
        last = (done.stderr + done.stdout).strip().splitlines()[-1]
        self.note(
            "client", command, f"exit code {done.returncode}: {last}", done.returncode == 0 and out.is_file()
        )

    def artifacts(self) -> None:
        """Whether what was logged lies on the volume and its record in PostgreSQL."""
        files = list((self.state / "volumes/artifacts").rglob("*.onnx"))
        self.note("artifacts", "", f"{len(files)} ONNX file(s) on the volume `artifacts`", bool(files))

    def down(self) -> None:
        """Stop all, the last first, by SIGTERM as Docker does."""
        for name, container in reversed(self.containers.items()):
            process = container.process
            if process is None or process.poll() is not None:
                continue
            began = time.monotonic()
            grace = seconds(container.service["stop_grace_period"])
            process.terminate()
            try:
                code = process.wait(grace)
            except subprocess.TimeoutExpired:
                process.kill()
                self.note(f"stop {name}", "", f"killed after {grace:.0f} s", False)
                continue
            # `ray start --block` ends with 1 on SIGTERM. What counts is that it ends, and in time.
            self.note(f"stop {name}", "", f"exit code {code} after {time.monotonic() - began:.0f} s", True)

    def run(self) -> bool:
        """The whole rehearsal; False where something was not as it should be."""
        self.create()
        try:
            early = [name for name in self.containers if not name.startswith("serve")]
            if all(self.up(name) for name in early):
                for name in early:
                    self.execute(f"confined {name}", name, CONFINED, 60)
                self.hosts()
                self.without_champion()
                if self.execute("search", "ray-head", SEARCH, 900):
                    self.artifacts()
                    if self.up("serve"):
                        self.score()
        finally:
            self.down()
        good = all(row[3] for row in self.rows)
        table = [dict(zip(("what", "command", "seen", "good"), row, strict=True)) for row in self.rows]
        (self.state / "rehearsal.json").write_text(json.dumps(table, indent=2))
        print(f"{'rehearsed' if good else 'NOT as it should be'}; logs and rehearsal.json in {self.state}")
        return good


def main(arguments: list[str]) -> int:
    """Prepare, go into namespaces of our own, and run; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--state", type=Path, default=ROOT / "runs/rehearsal", help="environments, volumes, logs"
    )
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    rehearsal = Rehearsal(options.state.absolute(), "cpu")
    if options.inside:
        return 0 if rehearsal.run() else 1
    if os.geteuid() != 0:
        print("error: namespaces need root: sudo .venv/bin/python docker/rehearsal.py", file=sys.stderr)
        return 2
    rehearsal.prepare()
    # A process namespace too: whatever was started ends with this.
    spaces = ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
    os.execvp("unshare", [*spaces, sys.executable, __file__, "--state", str(options.state), "--inside"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
