"""The OCI conformance suites against the local namespace.

``oci-conformance`` is the main program of github.com/opencontainers/distribution-spec/conformance, and
``oci-conformance-v1.test`` the test program that stood there before it; scripts/components builds both. What
they ask is restated in tests/component/test_facade_local.py for machines without Go.
"""

import asyncio
import subprocess
from pathlib import Path

import pytest

from tests.support.components import program
from tests.support.facade import facade_process

SUITES = {
    "oci-conformance": {
        "OCI_TLS": "disabled",
        "OCI_REPO1": "local/conformance/one",
        "OCI_REPO2": "local/conformance/two",
        "OCI_VERSION": "1.1",
        "OCI_RESULTS_DIR": ".",
    },
    "oci-conformance-v1.test": {
        "OCI_NAMESPACE": "local/conformance/one",
        "OCI_CROSSMOUNT_NAMESPACE": "local/conformance/two",
        "OCI_TEST_PULL": "1",
        "OCI_TEST_PUSH": "1",
        "OCI_TEST_CONTENT_DISCOVERY": "1",
        "OCI_TEST_CONTENT_MANAGEMENT": "1",
    },
}


@pytest.mark.parametrize(
    ("suite", "variables"),
    [pytest.param(*item, marks=pytest.mark.component(item[0])) for item in SUITES.items()],
    ids=SUITES,
)
async def test_conformance_suite_passes(tmp_path: Path, suite: str, variables: dict[str, str]) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text("[facade.local]\nenabled = true\n")

    def run() -> subprocess.CompletedProcess[str]:
        with facade_process(tmp_path / "facade", "--config", settings) as facade:
            addressed = (
                {"OCI_ROOT_URL": facade.url}
                if "OCI_NAMESPACE" in variables
                else {"OCI_REGISTRY": facade.address}
            )
            return subprocess.run(
                [program(suite)],
                env={**addressed, **variables},
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=100,
                check=False,
            )

    done = await asyncio.to_thread(run)
    assert done.returncode == 0, done.stdout[-4000:]
