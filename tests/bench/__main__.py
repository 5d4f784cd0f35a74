"""``python -m tests.bench [--only WORD] [--full] [--json FILE]``: every benchmark, as a table and as JSON."""

import argparse
import dataclasses
import importlib
import json
import os
import platform
import sys
from pathlib import Path

from servicekit.logging import configure_logging
from tests.bench import scratch
from tests.bench.harness import Bench, Result, run, table


def _found(word: str) -> list[Bench]:
    names = sorted(path.stem for path in Path(__file__).parent.glob("bench_*.py"))
    modules = [importlib.import_module(f"tests.bench.{name}") for name in names]
    return [
        bench for module in modules for bench in module.benches() if word in f"{module.__name__} {bench.name}"
    ]


def _document(results: list[Result]) -> dict[str, object]:
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "kernel": platform.release()}
    return {
        "machine": machine,
        "results": [{**dataclasses.asdict(item), "met": item.is_met} for item in results],
    }


def main() -> int:
    """The exit status tells of broken benchmarks only: a bound that is not met is in the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="those whose area or name contains this word")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--full", action="store_true", help="also what takes long (a million files ...)")
    asked = parser.parse_args()
    configure_logging(level="warning")
    if asked.full:
        os.environ["LAPSTRAKE_BENCH_FULL"] = "1"
    for left in scratch.sweep():
        print(f"removed {left}, which a killed run had left", file=sys.stderr)
    results: list[Result] = []
    for bench in _found(asked.only):
        print(f"{bench.name} ...", file=sys.stderr, end=" ", flush=True)
        results.append(result := run(bench))
        print(result.left_out if result.ratio is None else f"{result.ratio:.3f}", file=sys.stderr, flush=True)
    print(table(results))
    if asked.json is not None:
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        asked.json.write_text(json.dumps(_document(results), indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
