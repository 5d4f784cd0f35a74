"""Test results as JUnit XML, which every CI reads: a suite for each image, a case for each test; pure."""

from collections.abc import Sequence
from xml.etree import ElementTree as ET

from builder.chunk_tests import TestResult

_XML_UNSAFE = {code: "?" for code in range(32) if code not in {9, 10, 13}} | {0xFFFE: "?", 0xFFFF: "?"}


def junit_xml(results: Sequence[TestResult]) -> bytes:
    """Characters that XML 1.0 cannot hold are shown as ``?``."""
    root = ET.Element("testsuites")
    suites: dict[str, list[TestResult]] = {}
    for result in results:
        suites.setdefault(result.case.image, []).append(result)
    for image, members in suites.items():
        suite = ET.SubElement(
            root,
            "testsuite",
            name=image,
            tests=str(len(members)),
            failures=str(sum(bool(member.failure) for member in members)),
            skipped=str(sum(bool(member.not_run) for member in members)),
        )
        for member in members:
            _case(suite, member)
    document: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return document


def _case(suite: ET.Element, result: TestResult) -> None:
    name = result.case.test.description.translate(_XML_UNSAFE)
    case = ET.SubElement(
        suite, "testcase", classname=result.case.chunk, name=name, time=f"{result.duration_s:.3f}"
    )
    if result.not_run:
        ET.SubElement(case, "skipped", message=result.not_run)
    if result.failure:
        text = result.failure.translate(_XML_UNSAFE).encode("utf-8", "replace").decode()
        ET.SubElement(case, "failure", message=text.splitlines()[0]).text = text
