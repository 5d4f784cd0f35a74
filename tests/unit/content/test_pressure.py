import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from content.io_limits import pressure
from content.io_limits.controller import Law, PressureController, next_rate, next_share
from content.io_limits.pressure import Reading
from content.metrics import IoMetrics
from content.rates import Buckets, Hold, Rates
from servicekit.metrics import Metrics

_LAW = Law()
_RATES = st.none() | st.floats(_LAW.floor_bytes_s, _LAW.ceiling_bytes_s)
_SHARES = st.none() | st.floats(_LAW.floor_share, 1)
_TEXT = "some avg10=1.00 avg60=0.10 avg300=0.00 total={}\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n"


@given(_SHARES, st.floats(0, 1))
def test_no_share_is_ever_below_the_floor_or_above_all(share, waiting) -> None:
    found = next_share(_LAW, share, waiting)
    assert found is None or _LAW.floor_share <= found <= 1


@given(_SHARES, st.floats(0.1001, 1), st.floats(0.1001, 1))
def test_the_longer_neighbours_wait_the_less_of_the_disk_is_left(share, one, other) -> None:
    held = [next_share(_LAW, share, waiting) for waiting in sorted((one, other))]
    assert held[0] is not None
    assert held[1] is not None
    assert held[0] >= held[1]
    assert held[0] <= (share or 1)


@pytest.mark.parametrize("cause", [0.3, 0.5, 1.0])
def test_one_look_is_enough_for_waiting_that_is_this_nodes_doing(cause) -> None:
    """Neighbours who wait in proportion to the share that is used, ``cause`` when it is all."""
    share = next_share(_LAW, None, cause)
    assert share is not None
    assert cause * share <= _LAW.target + 1e-9


def test_one_look_of_a_neighbour_that_only_waits_leads_to_the_floor() -> None:
    assert next_share(_LAW, None, 1.0) == _LAW.floor_share
    assert next_share(_LAW, _LAW.floor_share, 1.0) == _LAW.floor_share


@given(_RATES, st.floats(0, 1e10), st.floats(0, 1))
def test_no_rate_is_ever_below_the_floor_or_above_the_ceiling(rate, moved, waiting) -> None:
    found = next_rate(_LAW, rate, moved, waiting)
    assert found is None or found >= _LAW.floor_bytes_s


@given(_RATES, st.floats(0, 1e10), st.floats(0.1001, 1))
def test_waiting_neighbours_halve_what_is_used(rate, moved, waiting) -> None:
    found = next_rate(_LAW, rate, moved, waiting)
    assert found == max(_LAW.floor_bytes_s, min(rate if rate is not None else moved, moved) / 2)


def test_an_idle_node_is_not_limited_and_a_quiet_one_is_released() -> None:
    assert next_rate(_LAW, None, 1e9, 0.0) is None
    rate: float | None = float(_LAW.floor_bytes_s)
    looks = 0
    while rate is not None:
        rate = next_rate(_LAW, rate, 0, 0.05)
        looks += 1
    assert looks * _LAW.every_s < 15


def test_reading_on_a_quiet_node_is_released_within_seconds() -> None:
    assert next_share(_LAW, None, 0.0) is None
    share: float | None = _LAW.floor_share
    looks = 0
    while share is not None:
        share = next_share(_LAW, share, 0.05)
        looks += 1
    assert looks * _LAW.every_s < 6


async def test_all_jobs_of_a_node_share_what_is_left_of_the_disk() -> None:
    node = Buckets(Rates(write=1000))
    jobs = [Buckets(Rates(read=5), node=node) for _ in range(2)]
    node.hold(Hold(0.25, 500))
    assert [job.disk.rate_bytes_s for job in jobs] == [250_000, 250_000]
    assert jobs[0].disk is jobs[1].disk
    assert (node["write"].rate_bytes_s, node["read"].rate_bytes_s) == (500, None)
    assert jobs[0].held == Hold(0.25, 500)
    node.hold(Hold())
    assert (node.disk.rate_bytes_s, node["write"].rate_bytes_s, jobs[1].held) == (None, 1000, Hold())


def test_the_neighbour_that_waits_longest_decides() -> None:
    before = Reading(0, {"a": 100, "b": 50, "gone": 1})
    now = Reading(1_000_000_000, {"a": 100_100, "b": 200_050, "new": 900_000})
    assert pressure.share(before, now) == pytest.approx(0.2)
    assert pressure.share(now, now) == 0.0


def test_files_that_are_none_are_left_out(tmp_path: Path) -> None:
    for name, text in (("one", _TEXT.format(123)), ("two", "nothing"), ("three", "some avg10=0.0")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "io.pressure").write_text(text)
    found = pressure.read([f"{tmp_path}/*/io.pressure"])
    assert list(found.stalled_us.values()) == [123]


async def test_the_disk_work_of_a_node_follows_a_pressure_file(tmp_path: Path) -> None:
    """With the file written in place of the kernel: held while the total grows, released when it rests, and
    never above what was asked for.
    """
    file = tmp_path / "io.pressure"
    file.write_text(_TEXT.format(0))
    node = Buckets(Rates(write=64 << 20))
    law = Law(every_s=0.02, floor_bytes_s=1 << 20, ceiling_bytes_s=16 << 20)
    metrics = IoMetrics.on(Metrics())
    following = asyncio.create_task(PressureController([str(file)], node, law, metrics).run())
    total = 0
    async with asyncio.timeout(30):
        while node["write"].rate_bytes_s != law.floor_bytes_s:
            total += 1_000_000
            file.write_text(_TEXT.format(total))
            await asyncio.sleep(0.005)
        assert node.held == Hold(law.floor_share, law.floor_bytes_s)
        assert node.disk.rate_bytes_s == law.floor_share * 1e6
        assert (node["send"].rate_bytes_s, node["read"].rate_bytes_s, node.rates.write) == (
            None,
            None,
            64 << 20,
        )
        while node.held != Hold():
            await asyncio.sleep(0.005)
        assert (node["write"].rate_bytes_s, node.disk.rate_bytes_s) == (64 << 20, None)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


def test_this_kernels_own_file_is_understood() -> None:
    file = Path("/proc/pressure/io")
    if not file.exists():
        pytest.skip("this kernel has no pressure stall information")
    assert pressure.stalled_us(file.read_text()) >= 0
