# SPDX-License-Identifier: Apache-2.0
"""Fuzz `explain`: any text is explained, or refused with an error of the program's own."""

from __future__ import annotations

from vmm_iova.diagnosis.diagnose import diagnose
from vmm_iova.diagnosis.error_lines import MOST_FAILURES, parse_reports
from vmm_iova.errors import IovaError
from vmm_iova.report.diagnosis import diagnosis_data, show_diagnosis


def one_input(data: bytes) -> None:
    """Explain a text, with and without the rarer causes, and as data.

    Raises:
        Exception: any but the program's own is a finding.
    """
    text = data.decode("utf-8", "replace")
    try:
        reports = parse_reports(text)
    except IovaError:
        return
    for report in reports:
        assert len(report.failures) <= MOST_FAILURES
        for failure in report.failures[:20]:
            found = diagnose(failure, report.clues)
            assert found.headline
            assert show_diagnosis(found, verbose=True)
            assert diagnosis_data(found)["verdict"] == found.headline or found.failure.name
