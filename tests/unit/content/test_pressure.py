import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from content.io_limits import pressure
from content.io_limits.controller import Law, PressureController, next_rate
from content.io_limits.pressure import Reading
from content.metrics import IoMetrics
from content.rates import Buckets, Rates
from servicekit.metrics import Metrics

_LAW = Law()
_RATES = st.none() | st.floats(_LAW.floor_bytes_s, _LAW.ceiling_bytes_s)
_TEXT = "some avg10=1.00 avg60=0.10 avg300=0.00 total={}\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n"


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
    """With the file written in place of the kernel: squeezed while the total grows, released when it rests,
    and never above what was asked for.
    """
    file = tmp_path / "io.pressure"
    file.write_text(_TEXT.format(0))
    node = Buckets(Rates(read=64 << 20))
    law = Law(every_s=0.02, floor_bytes_s=1 << 20, ceiling_bytes_s=16 << 20)
    metrics = IoMetrics.on(Metrics())
    following = asyncio.create_task(PressureController([str(file)], node, law, metrics).run())
    total = 0
    async with asyncio.timeout(30):
        while node["read"].rate_bytes_s != law.floor_bytes_s:
            total += 1_000_000
            file.write_text(_TEXT.format(total))
            await asyncio.sleep(0.005)
        assert node["write"].rate_bytes_s == law.floor_bytes_s
        assert (node["send"].rate_bytes_s, node.rates.read) == (None, 64 << 20)
        while node["read"].rate_bytes_s != 64 << 20:
            await asyncio.sleep(0.005)
        assert node["write"].rate_bytes_s is None
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


def test_this_kernels_own_file_is_understood() -> None:
    file = Path("/proc/pressure/io")
    if not file.exists():
        pytest.skip("this kernel has no pressure stall information")
    assert pressure.stalled_us(file.read_text()) >= 0
