# SPDX-License-Identifier: Apache-2.0
"""A refusal or an error as JSON: what `-J` prints where there is no other answer."""

from __future__ import annotations

import json
from typing import Any

import vmm_iova
from vmm_iova.errors import EvidenceError, IovaError, PlanError
from vmm_iova.planning.describe import Reason
from vmm_iova.report.answer import answer_data
from vmm_iova.report.data import span
from vmm_iova.report.verdicts import refusal_answer


def error_document(error: IovaError, vm: dict[str, Any] | None = None) -> str:
    """Return a JSON document, `vmm-iova-error`; one newline at its end.

    Args:
        error: what was raised.
        vm: the definition that was asked for, with the change that would do.
    """
    root: dict[str, Any] = {
        "schema": {"name": "vmm-iova-error", "version": 1},
        "generator": f"vmm-iova {vmm_iova.__version__}",
        "exit_status": int(error.exit_code),
        "error": type(error).__name__,
        "message": error.message,
        "detail": error.detail,
        "hint": error.hint,
    }
    if isinstance(error, (PlanError, EvidenceError)):
        root |= answer_data(refusal_answer(error))
    if isinstance(error, PlanError):
        root["fixes"] = list(error.fixes)
        root["reasons"] = [_reason(item) for item in error.reasons if isinstance(item, Reason)]
    if vm is not None:
        root["vm"] = vm
    return json.dumps(root, indent=1) + "\n"


def _reason(reason: Reason) -> dict[str, Any]:
    return {
        "item": reason.item,
        "range": span(reason.range),
        "cause": reason.cause.text,
        "fits": f"{reason.fits:#x}",
    }
