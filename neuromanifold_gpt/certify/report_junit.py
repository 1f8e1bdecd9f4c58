"""JUnit XML: one test case for each interruption, for CI systems."""

from __future__ import annotations

import shlex
from pathlib import Path
from xml.etree import ElementTree

from neuromanifold_gpt.certify.certificate import Certificate
from neuromanifold_gpt.certify.report_terminal import interrupted_lines, verdict_text
from neuromanifold_gpt.certify.verdict import Verdict

# XML 1.0 has no control characters, not even escaped.
_PRINTABLE = {number: "�" for number in range(32) if chr(number) not in "\t\n\r"}


def write_junit(certificate: Certificate, path: Path) -> None:
    """Write the verdicts to ``path``; EXACT passes, NOT PROVEN is an error, all else fails."""
    command = _clean(shlex.join(certificate.settings.command.start))
    suite = ElementTree.Element("testsuite", name="neuromanifold certify", time=f"{certificate.duration_sec:.3f}")
    found = certificate.determinism
    if found is not None:
        case = ElementTree.SubElement(suite, "testcase", classname=command, name="undisturbed runs are equal")
        if not found.deterministic:
            failure = ElementTree.SubElement(case, "failure", message="NOT DETERMINISTIC")
            failure.text = _clean("\n".join(found.differing))
    for number, one in enumerate(certificate.interrupted, start=1):
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=command,
            name=_clean(f"{number}. {one.run.interruption}"),
            time=f"{one.run.duration_sec:.3f}",
        )
        verdict = one.judgement.verdict
        if verdict is not Verdict.EXACT:
            kind = "error" if verdict is Verdict.NOT_PROVEN else "failure"
            problem = ElementTree.SubElement(case, kind, message=_clean(verdict_text(one.judgement)))
            problem.text = _clean("\n".join(interrupted_lines(one)))
    for interruption in certificate.not_run:
        case = ElementTree.SubElement(suite, "testcase", classname=command, name=_clean(str(interruption)))
        ElementTree.SubElement(case, "error", message="NOT PROVEN: no time was left")
    suite.set("tests", str(len(suite)))
    suite.set("failures", str(sum(case.find("failure") is not None for case in suite)))
    suite.set("errors", str(sum(case.find("error") is not None for case in suite)))
    path.parent.mkdir(parents=True, exist_ok=True)
    ElementTree.ElementTree(suite).write(path, encoding="utf-8", xml_declaration=True)


def _clean(text: str) -> str:
    return text.translate(_PRINTABLE)
