"""Must a report count? What a client sent is held against what it was asked for, before anything is made of it."""

from collections.abc import Sequence
from math import isfinite

from fedzo.coordinator.calibration import calibration_directions
from fedzo.coordinator.messages import PROJECTED_GRADIENT_LIMIT, Plan, Purpose, Report
from fedzo.coordinator.range_guard import RANGE_LIMIT
from fedzo.errors import ProtocolError
from fedzo.journal.records import Genesis, Rules

DIGEST_BYTES = 32


def check_report(genesis: Genesis, plan: Plan, report: Report) -> None:
    """Raises ProtocolError for a report that does not hold what the plan asks for, wherever it was made."""
    if plan.attest:
        _check_attestation(len(genesis.manifest), report)
    if not 0 <= report.examples < 2**63:
        raise ProtocolError(f"{report.examples} examples; expected a count")
    if report.metric is not None and not isfinite(report.metric):
        raise ProtocolError(f"the metric is {report.metric}; it must be finite")
    if report.diverged or plan.purpose is Purpose.ATTEST:
        return
    if not isfinite(report.loss):
        raise ProtocolError(f"the loss is {report.loss}; it must be finite")
    if plan.purpose is Purpose.TRAIN:
        _check_scalars(genesis.rules, report)
    if plan.purpose is Purpose.CALIBRATE:
        _check_calibration(genesis.rules, report)


def _check_attestation(tensors: int, report: Report) -> None:
    if report.state_digest is None or report.maxima is None:
        raise ProtocolError("the plan asks for a state digest and maxima; the report has none")
    if len(report.state_digest) != DIGEST_BYTES or len(report.maxima) != tensors:
        raise ProtocolError(
            f"a digest of {len(report.state_digest)} bytes and {len(report.maxima)} maxima; expected "
            f"{DIGEST_BYTES} and {tensors}"
        )
    if not all(0 <= most <= RANGE_LIMIT for most in report.maxima):
        raise ProtocolError("a maximum lies outside 0 to 2^30, where no state can be")


def _check_scalars(rules: Rules, report: Report) -> None:
    expected = rules.directions * rules.local_steps
    if len(report.projected_gradients) != expected:
        raise ProtocolError(f"{len(report.projected_gradients)} projected gradients; the plan asks for {expected}")
    _check_within(report.projected_gradients)
    _check_examples(report, rules.batch_size * rules.local_steps)


def _check_within(scalars: Sequence[float]) -> None:
    for k, scalar in enumerate(scalars):
        if not abs(scalar) <= PROJECTED_GRADIENT_LIMIT:
            raise ProtocolError(f"projected gradient {k} is {scalar}; it must lie within ±{PROJECTED_GRADIENT_LIMIT:g}")


def _check_calibration(rules: Rules, report: Report) -> None:
    count, scalars = calibration_directions(rules), report.projected_gradients
    if len(scalars) != 2 * count or not all(map(isfinite, scalars)):
        raise ProtocolError(f"{len(scalars)} slopes and curvatures; the plan asks for {2 * count}, all finite")
    _check_within(scalars[:count])
    _check_examples(report, rules.batch_size)


def _check_examples(report: Report, most: int) -> None:
    if not 1 <= report.examples <= most:
        raise ProtocolError(f"{report.examples} examples; the plan asks for 1 to {most}")
