"""The conformance suite: what every sandbox of this project must do, one property a case.

Use it on any :class:`~agent_r1.sandbox.base.Executor`: the embedded one, our service through
our client, or a SandboxFusion server through the same client::

    report = run_conformance(executor)
    assert not report.failures, report.text()

    @pytest.mark.parametrize("case", cases(), ids=str)      # one test per property
    def test_conformance(case, executor):
        case.check(executor)

A case that a wire protocol cannot express is skipped with the reason: pass what the other
side can do as ``can`` (``SANDBOX_FUSION`` for its servers).
"""

from agent_r1.sandbox.conformance.cases import (
    EVERYTHING,
    SANDBOX_FUSION,
    Case,
    Feature,
    Outcome,
    Report,
)
from agent_r1.sandbox.conformance.suite import cases, run_conformance

__all__ = [
    "EVERYTHING",
    "SANDBOX_FUSION",
    "Case",
    "Feature",
    "Outcome",
    "Report",
    "cases",
    "run_conformance",
]
