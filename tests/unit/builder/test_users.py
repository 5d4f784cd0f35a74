"""Who USER is."""

from pathlib import Path

import pytest

from builder.errors import EngineUnavailable
from builder.users import resolve_user


def test_a_link_in_an_image_does_not_lead_to_the_hosts_users(tmp_path: Path):
    host, layer = tmp_path / "host", tmp_path / "layer"
    host.mkdir()
    layer.mkdir()
    (host / "passwd").write_text("somebody:x:77:77:::\n")
    (layer / "etc").symlink_to(host)
    with pytest.raises(EngineUnavailable, match="has no such name"):
        resolve_user("somebody", [layer])
