"""docker-compose.yml, its Dockerfile, .env.example and docs/deployment.md agree with each other and with the code.

Docker does not run here: that the services start is shown by docker/rehearsal.py.
"""

import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
# By path: `docker` is the name of a package on PyPI, so docker/ is none.
SHIPPED = runpy.run_path(str(ROOT / "docker/shipped.py"))

RAW: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
COMPOSE: dict[str, Any] = SHIPPED["read_compose"](ROOT, {})
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = sorted(name for name, service in SERVICES.items() if "build" in service)
GUIDE = (ROOT / "docs/deployment.md").read_text()


def words_of(name: str) -> list[str]:
    command = SERVICES[name]["command"]
    return shlex.split(command) if isinstance(command, str) else list(command)


def errors_of(compose: dict[str, Any]) -> list[str]:
    """What the Compose Specification's schema has against it."""
    from jsonschema.validators import validator_for

    schema = json.loads((ROOT / "tests/house/compose-spec.json").read_text())
    return [
        f"{error.json_path}: {error.message}" for error in validator_for(schema)(schema).iter_errors(compose)
    ]


def test_compose__is_valid_by_the_specification() -> None:
    assert errors_of(RAW) == []
    assert errors_of(COMPOSE) == []


@pytest.mark.parametrize("breach", [{"restrat": "always"}, {"ports": 5000}, {"healthcheck": {"tset": []}}])
def test_compose__the_schema_sees_a_breach(breach: dict[str, Any]) -> None:
    broken = COMPOSE | {"services": SERVICES | {"serve": SERVICES["serve"] | breach}}
    assert len(errors_of(broken)) >= 1


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_compose__profile_is_complete(profile: str) -> None:
    members = {name for name, item in SERVICES.items() if profile in item.get("profiles", [profile])}
    gpu = "-gpu" if profile == "gpu" else ""
    assert members == {"postgres", "mlflow", "ray-head", f"ray-worker{gpu}", f"serve{gpu}"}
    for name in members:
        assert set(SERVICES[name].get("depends_on", {})) <= members
        devices = SERVICES[name]["deploy"]["resources"].get("reservations", {}).get("devices")
        assert bool(devices) == name.endswith("-gpu")


def test_compose__services_wait_for_health() -> None:
    order = SHIPPED["start_order"](SERVICES)
    assert order[:3] == ["postgres", "mlflow", "ray-head"]
    conditions = [on["condition"] for item in SERVICES.values() for on in item.get("depends_on", {}).values()]
    assert set(conditions) == {"service_healthy"}


@pytest.mark.parametrize("name", SERVICES)
def test_service__is_confined_and_looked_after(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"].split(":")[0] not in ("0", "root")
    assert service["restart"] == "unless-stopped"
    assert {"test", "interval", "timeout", "retries", "start_period"} <= set(service["healthcheck"])
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory"}
    for port in service.get("ports", ()):
        assert port.startswith("127.0.0.1:")
    assert "privileged" not in service


@pytest.mark.parametrize("name", SERVICES)
def test_service__has_no_secret_in_its_environment(name: str) -> None:
    service = SERVICES[name]
    for key, value in service.get("environment", {}).items():
        if re.search("PASSWORD|TOKEN|SECRET|KEY", key):
            assert str(value).startswith("/run/secrets/")
            assert Path(value).name in service["secrets"]
    assert not any(re.search(r"://[^/\s]*:[^/\s]*@", word) for word in words_of(name))


def test_compose__the_data_base_is_seen_by_the_tracking_server_alone() -> None:
    assert COMPOSE["networks"]["database"]["internal"] is True
    assert SERVICES["postgres"]["networks"] == ["database"]
    assert [name for name, item in SERVICES.items() if "database" in item.get("networks", ())] == [
        "postgres",
        "mlflow",
    ]


def test_compose__the_tracking_server_answers_its_own_name() -> None:
    words = words_of("mlflow")
    hosts = words[words.index("--allowed-hosts") + 1].split(",")
    named = {
        item["environment"]["MLFLOW_TRACKING_URI"]
        for item in SERVICES.values()
        if "MLFLOW_TRACKING_URI" in item["environment"]
    }
    assert named == {"http://mlflow:5000"}
    assert "mlflow:5000" in hosts
    assert "*" not in hosts
    # SQLAlchemy 2.1 looks for psycopg 3 behind a bare postgresql://, and the lock has psycopg2.
    assert words[words.index("--backend-store-uri") + 1].startswith("postgresql+psycopg2://")


def test_compose__head_and_workers_are_alike() -> None:
    head, worker = SERVICES["ray-head"], SERVICES["ray-worker"]
    for key in ("image", "build", "environment", "volumes", "secrets", "user"):
        assert head[key] == worker[key]
    gpu = SERVICES["ray-worker-gpu"]
    assert gpu["volumes"] == head["volumes"]
    assert head["environment"].items() <= gpu["environment"].items()
    assert head["environment"]["RAY_AUTH_MODE"] == "token"


def test_environment__file_names_what_is_used() -> None:
    defaults = SHIPPED["read_defaults"](ROOT)
    used = SHIPPED["variables"](RAW)
    assert set(defaults) - {"COMPOSE_PROFILES"} == set(used)
    assert {name: defaults[name] for name, value in used.items() if value not in (None, defaults[name])} == {}
    assert used["DATA_DIR"] is None  # must be given: there is no data set to fall back on


def test_environment__a_variable_that_must_be_set_is_missed() -> None:
    with pytest.raises(KeyError, match="DATA_DIR is not set: set it in"):
        SHIPPED["interpolate"](RAW, {"DATA_DIR": ""})


def pins(name: str) -> dict[str, str]:
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    return dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", text, flags=re.MULTILINE))


@pytest.mark.parametrize("name", OURS)
def test_image__is_built_from_a_lock_and_not_as_root(name: str) -> None:
    build = SERVICES[name]["build"]
    image = SHIPPED["read_image"](ROOT, build["target"])
    assert image.user == "${UID}:${GID}"
    assert ":".join(build["args"][key] for key in ("UID", "GID")) == SERVICES[name]["user"]
    lock, everything = pins(build["args"]["LOCK"]), pins("dev")
    assert lock
    assert {package: version for package, version in lock.items() if everything.get(package) != version} == {}
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for source, _ in image.copies:
        assert (ROOT / source).exists()
        assert f"!{source}" in ignored or f"!{source}/" in ignored
    for word in (
        *words_of(name),
        *SERVICES[name].get("entrypoint", ()),
        *SERVICES[name]["healthcheck"]["test"],
    ):
        if word.startswith(("/app/", "/docker/")):  # the file is in the image
            assert any(word.startswith(target) for _, target in image.copies)
            assert (ROOT / word.removeprefix("/app/").removeprefix("/")).is_file()


def test_image__each_has_what_it_needs_and_serving_no_torch() -> None:
    assert {"torch", "ray", "grpcio"} & set(pins("serve-cpu")) == {"grpcio"}
    assert {"torch", "ray", "psycopg2-binary"} & set(pins("mlflow")) == {"psycopg2-binary"}
    assert {"torch", "ray", "optuna", "pytest", "ruff"} & set(pins("tune")) == {"torch", "ray", "optuna"}
    # The GPU's image is the CPU's and NVIDIA's libraries, which the Makefile leaves out by name.
    more = set(pins("serve")) - set(pins("serve-cpu"))
    assert more
    assert all(package.startswith("nvidia-") for package in more)
    assert not any(package.startswith("nvidia-") for package in pins("serve-cpu"))


def test_image__installs_only_what_has_the_right_hash() -> None:
    text = (ROOT / "docker/Dockerfile").read_text()
    installs = re.findall(r"pip install .*", text)
    assert len(installs) == 1
    assert "--require-hashes" in installs[0]
    assert "-r /tmp/lock.txt" in installs[0]
    assert "requirements/${LOCK}.txt" in text


@pytest.mark.parametrize("name", ["serve", "serve-gpu"])
def test_command__of_the_server_is_understood(name: str) -> None:
    import tyro

    from serve.config import ServerConfig

    words = words_of(name)
    assert words[:2] == ["python", "/app/serve/server.py"]
    config = tyro.cli(ServerConfig, args=words[2:])
    config.check()
    assert config.model == "models:/tailacc@champion"
    assert config.listen == "0.0.0.0:8001"
    # As the port that is published; who may reach it is said there.
    assert config.telemetry.metrics == "0.0.0.0:9100"
    assert SERVICES[name]["ports"][1].endswith(":9100")
    assert config.device == ("cuda" if name == "serve-gpu" else "cpu")


@pytest.mark.parametrize(
    ("module", "subcommand", "names"),
    [
        ("mlflow.cli", "server", ["mlflow"]),
        ("ray.scripts.scripts", "start", ["ray-head", "ray-worker", "ray-worker-gpu"]),
    ],
    ids=["mlflow", "ray"],
)
def test_command__options_exist(module: str, subcommand: str, names: list[str]) -> None:
    script = f"""
import importlib, json
group = importlib.import_module("{module}").cli
print(json.dumps([o for p in group.commands["{subcommand}"].params for o in p.opts]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    known = set(json.loads(done.stdout.splitlines()[-1]))
    for name in names:
        words = words_of(name)
        assert words[:2] == [module.split(".")[0], subcommand]
        assert {word for word in words if word.startswith("--")} <= known


def test_guide__its_searches_are_understood() -> None:
    from tune.options import parse_search

    text = GUIDE.replace("\\\n", " ")
    searches = re.findall(r"exec (?:-\S+ )*ray-head python /app/tune/search\.py (.*)", text)
    assert len(searches) >= 2
    for line in searches:
        arguments = shlex.split(line, comments=True)
        if "--resume" in arguments:
            arguments.remove("--resume")
        assert parse_search(arguments).search.ray_address == "ray-head:6379"


def test_guide__says_what_was_not_run() -> None:
    assert "never run under Docker" in GUIDE
    for name in (*SERVICES, *SHIPPED["read_defaults"](ROOT)):
        assert f"`{name}`" in GUIDE


def test_healthy__says_what_is_wrong(tmp_path: Path) -> None:
    for arguments, code in (
        (["http", "http://127.0.0.1:9/"], 1),
        (["grpc", "127.0.0.1:9"], 1),
        (["ftp", "x"], 2),
    ):
        done = subprocess.run(
            [sys.executable, str(ROOT / "docker/healthy.py"), *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code
        assert done.stderr
        assert "Traceback" not in done.stderr


def test_with_password__hands_it_on_and_shows_it_nowhere(tmp_path: Path) -> None:
    file = tmp_path / "postgres_password"
    file.write_text("two words\n")
    script = ["sh", str(ROOT / "docker/with_password.sh"), "sh", "-c", 'test "$PGPASSWORD" = "two words"']
    done = subprocess.run(
        script,
        env={"POSTGRES_PASSWORD_FILE": str(file), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_metadata__is_found_beside_the_packages(tmp_path: Path) -> None:
    # The server tells its callers the version, and our code is copied into the images rather than installed.
    import importlib.metadata
    import tomllib

    write = runpy.run_path(str(ROOT / "docker/metadata.py"))["write_metadata"]
    write(ROOT / "pyproject.toml", tmp_path)
    (found,) = importlib.metadata.distributions(name="tailacc", path=[str(tmp_path)])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert found.version == project["version"]
