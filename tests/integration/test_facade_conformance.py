"""The OCI conformance suites against the local namespace, where their programs are on the PATH.

``oci-conformance`` is the main program of github.com/opencontainers/distribution-spec/conformance, and
``oci-conformance-v1.test`` that directory at tag v1.1.1; scripts/components builds both. What they ask is
restated in tests/component/test_facade_local.py for machines without Go.
"""

import asyncio
import shutil
import subprocess
from pathlib import Path

import pytest

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


@pytest.mark.parametrize(("program", "variables"), SUITES.items(), ids=SUITES)
async def test_conformance_suite_passes(tmp_path: Path, program: str, variables: dict[str, str]) -> None:
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not on the PATH; it is built with Go")
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
                [found],
                env={**addressed, **variables},
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=100,
                check=False,
            )

    done = await asyncio.to_thread(run)
    assert done.returncode == 0, done.stdout[-4000:]
