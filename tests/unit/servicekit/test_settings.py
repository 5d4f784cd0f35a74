import dataclasses
from pathlib import Path

import pytest

from servicekit import settings as s
from servicekit.secrets import Secret


@dataclasses.dataclass(frozen=True)
class _Local:
    enabled: bool = s.setting(s.BOOLEAN, False, "Whether.")
    cache_bytes: int = s.setting(s.SIZE, 1 << 20, "How much.")


@dataclasses.dataclass(frozen=True)
class _Settings:
    local: _Local
    level: str = s.setting(s.one_of("info", "debug"), "info", "How loud.")
    listen: tuple[str, int] = s.setting(s.host_port(default_port=80), ("127.0.0.1", 80), "Where.")
    upstreams: tuple[str, ...] = s.setting(s.STRINGS, (), "From where.")
    password: Secret = s.setting(s.SECRET, Secret(""), "Shh.")


def _load(text: str, tmp_path: Path, environ: dict[str, str] | None = None, **flags: object) -> _Settings:
    file = tmp_path / "settings.toml"
    file.write_text(text)
    return s.load(_Settings, "facade", file=file, environ=environ or {}, flags=flags)


def test_defaults_hold_when_nothing_is_given() -> None:
    assert s.load(_Settings, "facade", environ={}) == _Settings(_Local())


def test_flag_wins_over_variable_over_file(tmp_path: Path) -> None:
    text = '[facade]\nlevel = "debug"\nlisten = ":1"\n[facade.local]\ncache_bytes = "1K"\nenabled = true\n'
    environ = {"LAPSTRAKE_FACADE_LISTEN": "h:2", "LAPSTRAKE_FACADE_LOCAL_CACHE_BYTES": "2K"}
    found = _load(text, tmp_path, environ, **{"local.cache_bytes": "3K"})
    assert found == _Settings(_Local(enabled=True, cache_bytes=3072), level="debug", listen=("h", 2))


def test_every_problem_is_reported_at_once(tmp_path: Path) -> None:
    text = '[facade]\nlevel = "loud"\ntypo = 1\n[facade.local]\ncache_bytes = "big"\n'
    with pytest.raises(s.SettingsInvalid) as caught:
        _load(text, tmp_path, {"LAPSTRAKE_FACADE_LISTEN": "h:port"})
    problems = "\n".join(sorted(caught.value.problems))
    assert len(caught.value.problems) == 4
    for part in (
        "facade.level",
        "one of info, debug",
        "facade.typo: unknown",
        "cache_bytes",
        "LAPSTRAKE_FACADE_LISTEN",
    ):
        assert part in problems


def test_a_section_that_nobody_reads_is_a_problem_and_a_neighbours_is_not(tmp_path: Path) -> None:
    with pytest.raises(
        s.SettingsInvalid, match=r"facades: unknown section; known are builder, content, facade$"
    ):
        _load("[facades]\n[content]\nstore = 3\n", tmp_path)


def test_a_problem_with_a_secret_does_not_show_it(tmp_path: Path) -> None:
    with pytest.raises(s.SettingsInvalid) as caught:
        _load('[facade]\npassword = ["hunter2"]\n', tmp_path)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("text", ["not toml", "facade = 1", "[facade]\nlocal = 3"])
def test_a_file_that_cannot_be_used_is_a_problem(text: str, tmp_path: Path) -> None:
    with pytest.raises(s.SettingsInvalid):
        _load(text, tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(s.SettingsInvalid, match=r"absent\.toml: No such file"):
        s.load(_Settings, "facade", file=tmp_path / "absent.toml", environ={})


def test_descriptions_name_the_variables() -> None:
    described = {item.key: item.variable for item in s.describe(_Settings, "facade")}
    assert described["facade.local.cache_bytes"] == "LAPSTRAKE_FACADE_LOCAL_CACHE_BYTES"
    assert list(described) == [
        "facade.local.enabled",
        "facade.local.cache_bytes",
        "facade.level",
        "facade.listen",
        "facade.upstreams",
        "facade.password",
    ]
