"""Settings of the builder: the section ``builder``, ``LAPSTRAKE_BUILDER_*``, or flags."""

import os
from dataclasses import dataclass
from pathlib import Path

from servicekit.settings import BOOLEAN, DURATION, INTEGER, PATH, one_of, setting

ENGINES = ("auto", "buildah", "buildkit")


@dataclass(frozen=True, slots=True)
class BuilderSettings:
    state_dir: Path = setting(
        PATH,
        Path("~/.cache/lapstrake/builder").expanduser(),
        "What is kept between runs and can be made again: engine storage, unpacked layers, test results.",
    )
    engine: str = setting(one_of(*ENGINES), "auto", "What builds Dockerfiles; auto takes what is installed.")
    jobs: int = setting(INTEGER, os.cpu_count() or 1, "How many chunks are built, or tests run, at a time.")
    source_date_epoch: int = setting(
        INTEGER, 0, "Seconds since 1970: no file of a layer is newer, and images say they were made then."
    )
    test_timeout: float = setting(DURATION, 300.0, "How long one test may run.")
    annotate_cid: bool = setting(
        BOOLEAN, False, "Whether images say under which CID each layer is in IPFS; see docs/ipfs.md."
    )
