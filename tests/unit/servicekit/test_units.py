import pytest
from hypothesis import given
from hypothesis import strategies as st

from servicekit.units import format_size, parse_duration, parse_rate, parse_size


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("512", 512),
        ("64K", 64 << 10),
        ("1.5GiB", 3 << 29),
        ("20MB", 20_000_000),
        ("20 mib", 20 << 20),
        (" 1T ", 1 << 40),
        ("7B", 7),
    ],
)
def test_sizes_mean_what_coreutils_says(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "text", ["", "MiB", "-1", "1 2", "1.2.3", "1X", "0x10", "\u0661", "1K\nx", "inf", "nan"]
)
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size; write bytes or a number with K"):
        parse_size(text)


@given(st.integers(0, 1 << 60), st.sampled_from(["", "K", "M", "G", "KiB", "MB"]))
def test_a_whole_number_with_a_suffix_is_exact_or_close(number: int, suffix: str) -> None:
    factor = {"": 1, "K": 1024, "M": 1 << 20, "G": 1 << 30, "KiB": 1024, "MB": 1_000_000}[suffix]
    assert parse_size(f"{number}{suffix}") == pytest.approx(number * factor, rel=1e-12)


def test_whole_sizes_are_exact_however_large() -> None:
    assert parse_size("9007199254740993") == 9007199254740993


@pytest.mark.parametrize("text", ["20MiB/s", "20MiB", " 20MiB/s "])
def test_a_rate_may_leave_out_the_second(text: str) -> None:
    assert parse_rate(text) == 20 << 20


@pytest.mark.parametrize(
    ("text", "duration_s"),
    [("1.5", 1.5), ("250ms", 0.25), ("10m", 600), ("2h", 7200), ("1d", 86400), ("3 s", 3)],
)
def test_durations(text: str, duration_s: float) -> None:
    assert parse_duration(text) == duration_s


@pytest.mark.parametrize("text", ["", "-1s", "1w", "s", "1 m s", "1\n2"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1_468_006, "1.4 MiB"), (5 << 50, "5120.0 TiB")],
)
def test_sizes_for_people(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text
