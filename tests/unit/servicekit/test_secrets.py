import copy
import dataclasses
import json
import pickle

import pytest

from servicekit.redact import redact_url
from servicekit.secrets import Secret


@dataclasses.dataclass(frozen=True)
class _Settings:
    user: str
    password: Secret


def test_only_reveal_gives_it_away() -> None:
    settings = _Settings("u", Secret("hunter2"))
    shown = [
        repr(settings),
        str(settings.password),
        f"{settings.password}",
        "%s %r" % ((settings.password,) * 2),
    ]
    shown.append(repr(dataclasses.asdict(settings)))
    shown.append(json.dumps(dataclasses.asdict(settings), default=str))
    shown.append(repr(copy.deepcopy(settings)))
    assert not [text for text in shown if "hunter2" in text]
    assert settings.password.reveal() == "hunter2"


def test_is_never_pickled() -> None:
    with pytest.raises(TypeError):
        pickle.dumps(Secret("hunter2"))


def test_compares_by_value_and_is_false_when_empty() -> None:
    assert Secret("a") == Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert len({Secret("a"), Secret("a")}) == 1
    assert not Secret("")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://user:pw@host:5000/v2/x", "http://host:5000/v2/x"),
        ("http://host/v2/x?ns=docker.io&n=5", "http://host/v2/x?ns=docker.io&n=5"),
        (
            "http://host/x?X-Amz-Signature=abc&digest=sha256:1",
            "http://host/x?X-Amz-Signature=***&digest=sha256:1",
        ),
        ("http://host/x?token=#frag", "http://host/x?token=***"),
        ("http://[::1", "***"),
        ("not a url", "not a url"),
    ],
    ids=["userinfo", "known keys", "signature", "empty value and fragment", "unclosed address", "words"],
)
def test_urls_show_no_secret(url: str, shown: str) -> None:
    assert redact_url(url) == shown
