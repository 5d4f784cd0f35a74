import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.assertions import Assertion, AssertionInvalid


def holds(text: str, *, status: int = 0, stdout: str = "", stderr: str = "") -> bool:
    return Assertion.parse(text).holds(status=status, stdout=stdout, stderr=stderr)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("status == 0", True),
        ("status != 0", False),
        ("status === 0", True),
        ("status == '0'", True),
        ("status === '0'", False),
        ("stdout.indexOf('go1.24') != -1 || stderr.indexOf('go1.24') != -1", True),
        ('stdout.trim().indexOf("go") == 0', True),
        ('stdout == "go1.24\\n"', True),
        ("stderr.length == 0", True),
        ("stdout.length == 7", True),
        ("!(status == 1) && stdout.startsWith('go')", True),
        ("status == 0 && stdout.endsWith('x')", False),
        ('stdout.includes("1.24") ;', True),
        ("status - 1 < 0", True),
        ("-status <= +0", True),
        ("stdout + stderr == 'go1.24\\u000a'", True),
        ("'b' > 'a'", True),
        ("'\\x41\\'' == \"A'\"", True),
        ("stdout.toUpperCase().lastIndexOf('GO') == 0", True),
        ("true || stdout.length", True),
    ],
)
def test_says_what_javascript_would_say(text: str, *, expected: bool):
    assert holds(text, stdout="go1.24\n") is expected


def test_lengths_and_positions_count_utf16_units():
    assert holds("stdout.length == 3 && stdout.indexOf('b') == 2", stdout="\N{GRINNING FACE}b")


def test_trims_what_javascript_takes_for_space():
    assert holds("stdout.trim() == 'a'", stdout="\ufeff \u2028a\n")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "status ==",
        "(status == 0",
        "status == 0)",
        "process.exit(1)",
        "stdout.constructor",
        "status = 0",
        "stdout.replace('a', 'b')",
        "stdout['length']",
        "`x`",
        "1 == 1 1",
        "stdout.indexOf",
        "window",
        "'unterminated",
        "0x10 == 16",
        "stdout.length()",
        "(" * 500 + "1" + ")" * 500,
        "!" * 5000 + "true",
    ],
)
def test_refuses_what_is_not_in_the_language(text: str):
    with pytest.raises(AssertionInvalid):
        Assertion.parse(text)


@pytest.mark.parametrize("text", ["status", "stdout", "status.length == 1", "stdout.indexOf('a', 'b') == 0"])
def test_a_value_that_is_no_boolean_is_an_error(text: str):
    with pytest.raises(AssertionInvalid):
        holds(text)


@given(st.text(max_size=80))
def test_any_text_is_read_or_refused(text: str):
    with contextlib.suppress(AssertionInvalid):
        Assertion.parse(text).holds(status=0, stdout="a", stderr="")


_words = st.sampled_from(
    [
        "status",
        "stdout",
        "stderr",
        "==",
        "!=",
        "(",
        ")",
        ".trim()",
        ".indexOf(",
        "'a'",
        "0",
        "-1",
        "&&",
        "||",
        "!",
        ".",
    ]
)


@given(st.lists(_words, max_size=20))
def test_any_words_of_the_language_are_read_or_refused(words: list[str]):
    with contextlib.suppress(AssertionInvalid):
        Assertion.parse(" ".join(words)).holds(status=1, stdout="a", stderr="b")
