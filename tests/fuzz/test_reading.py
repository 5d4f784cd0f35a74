"""A short run of each fuzzer from real archives; ``make fuzz`` goes on for longer."""

import importlib.util
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from content.backup import BackupRequest, back_up
from content.keys import Workspace
from content.objects.directory import DirectoryObjectStore
from tests.support.trees import make_tree

W = Workspace("someone", "project")
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris is not installed: pip install -e .[fuzz]"
)


async def _corpus(tmp_path: Path) -> Path:
    """Tars of four writers, and an index."""
    tree = make_tree(tmp_path / "tree", files=4)
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    store = DirectoryObjectStore(tmp_path / "store")
    snapshot = (await back_up(BackupRequest(tree, W), store)).snapshot
    for key in (snapshot.tar_key, snapshot.index_key):
        (corpus / key.rpartition("/")[2]).write_bytes((store.root / "objects" / key).read_bytes())
    names = ["hard-1", "symlink", "fifo", "empty-dir"]
    for form, more in {"gnu": ["-S", "sparse"], "pax": ["-S", "sparse"], "ustar": [], "v7": []}.items():
        kept = [name for name in names if (form, name) != ("v7", "fifo")]
        tar = ["tar", f"--format={form}", "-cf", corpus / f"{form}.tar", "-C", tree, *kept, *more]
        subprocess.run(tar, check=True, capture_output=True)
    with tarfile.open(corpus / "python.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        archive.add(tree / "read-only", "read-only")
    return corpus


@pytest.mark.parametrize("what", ["tar", "rebuild", "index"])
async def test_no_bytes_make_a_reader_fail_otherwise_than_it_says(tmp_path: Path, what: str) -> None:
    corpus = await _corpus(tmp_path)
    options = ["-runs=4000", "-max_total_time=3", "-rss_limit_mb=1024", "-timeout=10", "-seed=1"]
    fuzzer = [sys.executable, "-m", "tests.fuzz.reading", what, *options, f"-artifact_prefix={tmp_path}/"]
    done = subprocess.run([*fuzzer, corpus], capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr[-4000:]
