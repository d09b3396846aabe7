"""What can be placed, on paper; the real clusters are in test_cluster.py."""

import socket
from typing import Any

import pytest

from data.errors import InputError
from tune.placement import place, start_ray, worker_resources
from tune.presets import quick
from tune.space import SearchOptions


def machine(cpus: float, gpus: float = 0.0) -> dict[str, float]:
    return {"CPU": cpus, "GPU": gpus, "memory": 1e9}


@pytest.mark.parametrize(
    ("options", "machines", "slots"),
    [
        (SearchOptions(), [machine(2)], 2),
        (SearchOptions(cpus=2), [machine(3), machine(3)], 2),
        (SearchOptions(gpus=0.25), [machine(16, 1)], 4),
        (SearchOptions(gpus=0.5, cpus=4), [machine(16, 8)], 4),  # the CPUs are the narrower
        (SearchOptions(workers=2), [machine(2)], 1),
        (SearchOptions(workers=2), [machine(1), machine(1), machine(1)], 1),  # across machines
        (SearchOptions(workers=4, cpus=4, gpus=1), [machine(32, 8)] * 10, 20),
        (SearchOptions(cpus=8, gpus=1), [machine(32, 4), machine(64, 0)], 4),
    ],
)
def test_place__counts_what_fits_at_once(
    options: SearchOptions, machines: list[dict[str, float]], slots: int
) -> None:
    assert place(options, machines).slots == slots


def test_place__takes_a_gpu_where_there_is_one_unless_told() -> None:
    assert place(SearchOptions(), [machine(8, 2)]).worker["GPU"] == 1
    assert place(SearchOptions(gpus=0), [machine(8, 2)]).worker["GPU"] == 0
    assert place(SearchOptions(), [machine(8)]).worker["GPU"] == 0


@pytest.mark.parametrize(
    ("options", "machines", "message"),
    [
        (
            SearchOptions(cpus=999),
            [machine(2)],
            r"a trial's worker wants 999 CPUs and 0 GPUs on one machine, which none has: the machines have 2 CPUs "
            r"and 0 GPUs\. Lower --search\.cpus or --search\.gpus",
        ),
        (
            SearchOptions(workers=3, cpus=2),
            [machine(4), machine(1)],
            r"a trial wants 3 workers of 2 CPUs and 0 GPUs, but only 2 fit: the machines have 4 CPUs and 0 GPUs; "
            r"1 CPUs and 0 GPUs\. Lower --search\.workers",
        ),
        (SearchOptions(gpus=1), [machine(64)], "wants 1 CPUs and 1 GPUs on one machine, which none has"),
        (SearchOptions(), [], "the machines have nothing"),
    ],
)
def test_place__what_can_never_be_placed_is_named(
    options: SearchOptions, machines: list[dict[str, float]], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        place(options, machines)


def test_worker_resources__leave_room_for_the_watcher_of_a_group() -> None:
    placed = place(SearchOptions(workers=2), [machine(2)])
    asked = 2 * worker_resources(placed)["CPU"] + 0.01
    assert asked <= 2


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ray://127.0.0.1:10001", "takes HOST:PORT of the cluster's head or auto, but got ray://"),
        ("here", "takes HOST:PORT of the cluster's head or auto, but got here"),
    ],
)
def test_start_ray__an_address_of_another_kind_is_refused(address: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        start_ray(searching(address))


def test_start_ray__a_cluster_that_is_gone_is_not_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(
        InputError, match=rf"no Ray cluster answers at 127\.0\.0\.1:{port} .*ray start --head"
    ):
        start_ray(searching(f"127.0.0.1:{port}"))


def searching(address: str) -> Any:
    import dataclasses

    base = quick()
    return dataclasses.replace(base, search=dataclasses.replace(base.search, ray_address=address))
