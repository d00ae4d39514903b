"""The server: what comes through a real socket counts once, or is refused by name and changes nothing."""

import time

import grpc
import pytest
from fedzo_client.reach import REFUSALS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from network import CALL_S, HandClient, Stream, both, status_text, wait_until

from fedzo.coordinator import Purpose
from fedzo.journal import Commit, Enrolment
from fedzo.v1 import rounds_pb2 as pb

ACCEPTED = pb.Answer.OUTCOME_ACCEPTED
REFUSED = pb.Answer.OUTCOME_REFUSED
Code = grpc.StatusCode


# ── rounds ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_from_enrolment_to_end(host):
    hosted = host(rounds=3, evaluate_every=3, attest_every=2)
    clients = both(hosted)
    for position in range(1, 7):
        for client, plan in [(client, client.plan()) for client in clients]:
            assert plan.position == position
            assert client.take_part(plan).outcome == ACCEPTED
    for client in clients:
        assert client.stream.error() == (Code.OK, "")
    assert hosted.process.wait() == 0
    kinds = [type(record.body).__name__ for record in hosted.contents.records]
    assert kinds == ["Enrolment", "Evaluation", "Commit", "Commit", "Commit", "Evaluation", "End"]
    assert hosted.contents.records[0].body == Enrolment(0, ("anna", "bertl"))
    assert hosted.contents.records[3].state_digest == bytes(32)


def test_records_that_clients_are_sent_are_those_of_the_journal(host):
    hosted = host(rounds=5, directions=3)
    clients = both(hosted)
    for _ in range(4):
        for client, plan in [(client, client.plan()) for client in clients]:
            client.take_part(plan)
    clients[0].plan()
    assert clients[0].hashes == hosted.contents.hashes


def test_who_reports_last_is_told_all_that_follows_in_one_message(host):
    hosted = host()
    anna, bertl = both(hosted)
    for number in range(1, 6):
        anna.take_part()
        bertl.stream.send(bertl.report(bertl.plan()))
        message = bertl.read()
        assert [(answer.outcome, answer.round) for answer in message.answers] == [(ACCEPTED, number)]
        assert [step.commit.round for step in message.steps] == [number]
        assert message.plan.round == number + 1


def test_that_a_report_counts_is_told_also_while_the_round_goes_on(host):
    hosted = host()
    anna, _ = both(hosted)
    anna.stream.send(anna.report(anna.plan()))
    message = anna.read()
    assert [answer.outcome for answer in message.answers] == [ACCEPTED]
    assert not message.steps
    assert hosted.contents.position == 1, "the round is under way"


def test_a_run_starts_only_with_the_clients_that_it_starts_with(host):
    hosted = host(clients=2)
    first = HandClient(hosted, "anna")
    assert first.read().HasField("welcome")
    assert hosted.contents.position == 0
    assert "waiting for 1 more clients" in status_text(hosted)
    HandClient(hosted, "bertl")
    assert first.plan().round == 1


def test_a_round_ends_at_its_deadline_without_the_client_that_is_silent(host):
    hosted = host(deadline_s=0.5)
    anna, _ = both(hosted)
    started = time.monotonic()
    anna.take_part()
    assert anna.plan().round == 2
    assert time.monotonic() - started > 0.4
    assert [report.client for report in hosted.contents.records[1].body.reports] == [0]


def test_a_client_that_floods_the_server_does_not_put_a_deadline_off(host):
    hosted = host(deadline_s=0.5)
    anna, bertl = both(hosted)
    plan = anna.plan()
    again = bertl.report(bertl.plan(), record_hash=bytes(32))
    anna.take_part(plan)
    end = time.monotonic() + CALL_S
    while hosted.contents.position < 2:
        assert time.monotonic() < end, "the deadline never came"
        for _ in range(100):
            bertl.stream.send(again)
    assert isinstance(hosted.contents.records[1].body, Commit)


def test_a_late_report_is_refused_and_the_client_goes_on(host):
    hosted = host(deadline_s=0.5)
    anna, bertl = both(hosted)
    late = bertl.report(bertl.plan())
    anna.take_part()
    anna.plan()
    bertl.stream.send(late)
    answer = bertl.answer()
    assert (answer.outcome, answer.round) == (REFUSED, 1)
    assert "no train plan of round 1 is open" in answer.reason
    assert isinstance(hosted.contents.records[1].body, Commit)


# ── reports ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_report_sent_twice_counts_once_and_gets_the_first_answer_again(host):
    hosted = host()
    anna, bertl = both(hosted)
    plan = anna.plan()
    first = anna.take_part(plan)
    assert first.outcome == ACCEPTED
    assert anna.take_part(plan) == first
    assert anna.take_part(plan, loss=99.0) == first, "another content under the same key is the same report"
    bertl.take_part()
    anna.plan()
    assert anna.take_part(plan) == first, "also after its record"
    reports = hosted.contents.records[1].body.reports
    assert [(report.client, report.loss) for report in reports] == [(0, 2.5), (1, 2.5)]


def test_a_lost_reply_changes_nothing(host):
    hosted = host()
    anna, bertl = both(hosted)
    plan = anna.plan()
    anna.stream.send(anna.report(plan))
    wait_until(lambda: hosted.status().answered == 1, "the report to count")
    anna.stream.drop()
    anna = HandClient(hosted, "anna", at=anna)
    assert anna.take_part(plan).outcome == ACCEPTED
    bertl.take_part()
    assert anna.plan().round == 2
    assert len(hosted.contents.records[1].body.reports) == 2


def test_a_client_that_comes_back_within_its_round_is_asked_again(host):
    hosted = host()
    anna, bertl = both(hosted)
    plan = anna.plan()
    anna.stream.drop()
    wait_until(lambda: "anna left" in hosted.process.said, "anna to be gone")
    anna = HandClient(hosted, "anna", at=anna)
    assert anna.plan() == plan
    anna.take_part(plan)
    bertl.take_part()
    assert anna.plan().round == 2
    assert len(hosted.contents.records[1].body.reports) == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"record_hash": bytes(32)}, "evaluated at record 0000000000000000…, expected"),
        ({"round": 7}, "no train plan of round 7 is open; wait for the next plan"),
        ({"round": 2**32 - 1}, "no train plan of round 4294967295 is open"),
        ({"purpose": Purpose.EVALUATE}, "no evaluate plan of round 1 is open"),
        ({"purpose": Purpose.ATTEST}, "no attest plan of round 1 is open"),
        ({"projected_gradients": ()}, "0 projected gradients; the plan asks for 2"),
        ({"projected_gradients": (1.0,) * 3}, "3 projected gradients; the plan asks for 2"),
        ({"projected_gradients": (1.0, float("nan"))}, "projected gradient 1 is nan; it must lie within"),
        ({"projected_gradients": (float("inf"), 1.0)}, "projected gradient 0 is inf; it must lie within"),
        ({"projected_gradients": (0.0, -(2.0**21))}, "projected gradient 1 is -2097152.0; it must lie within"),
        ({"loss": float("nan")}, "the loss is nan; it must be finite"),
        ({"examples": 0}, "0 examples; the plan asks for 1 to 8"),
        ({"examples": 9}, "9 examples; the plan asks for 1 to 8"),
        ({"examples": 2**64 - 1}, "18446744073709551615 examples; expected a count"),
    ],
)
def test_a_bad_report_is_refused_with_the_reason_and_changes_nothing(shared_run, changes, said):
    hosted, (anna, _), plan = shared_run
    before, answered = hosted.journal_bytes, hosted.status().answered
    answer = anna.take_part(plan, **changes)
    assert answer.outcome == REFUSED
    assert said in answer.reason
    assert hosted.journal_bytes == before
    assert hosted.status().answered == answered == 0


def test_a_client_that_was_not_asked_is_refused(host):
    hosted = host(cohort=1)
    clients = both(hosted)
    wait_until(lambda: hosted.status().asked == 1, "the plan")
    for client in clients:
        client.stream.send(pb.ClientMessage(report=pb.Report(purpose=pb.PURPOSE_TRAIN, round=1)))
    reasons = [client.answer().reason for client in clients]
    assert sum("was not asked in round 1" in reason for reason in reasons) == 1
    assert hosted.status().answered == 0


def test_an_attestation_that_lacks_its_digest_is_refused_and_a_wrong_one_has_to_rebuild(host):
    hosted = host(clients=3, attest_every=1)
    clients = [HandClient(hosted, name) for name in ("anna", "bertl", "carla")]
    plans = [client.plan() for client in clients]
    assert plans[0].attest
    refusals = [
        ({"state_digest": None}, "asks for a state digest and maxima; the report has none"),
        ({"state_digest": b"short"}, "a digest of 5 bytes and 2 maxima; expected 32 and 2"),
        ({"maxima": (1,)}, "a digest of 32 bytes and 1 maxima"),
        ({"maxima": (1, 2**31)}, "a maximum lies outside 0 to 2^30"),
    ]
    for changes, said in refusals:
        answer = clients[0].take_part(plans[0], **changes)
        assert (answer.outcome, said in answer.reason) == (REFUSED, True)
    for client, plan, digest in zip(clients, plans, (bytes(32), b"\1" * 32, bytes(32)), strict=True):
        assert client.take_part(plan, state_digest=digest).outcome == ACCEPTED
    answer = clients[1].answer()
    assert answer.outcome == pb.Answer.OUTCOME_REBUILD
    assert "rebuild from base and journal" in answer.reason
    clients[0].plan()
    record = hosted.contents.records[1]
    assert record.state_digest == bytes(32)
    assert [report.client for report in record.body.reports] == [0, 2]


# ── hostile input ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"protocol_version": 2}, "protocol version 2; this server follows version 1: install the same fedzo"),
        ({"numerics_version": 0}, "numerics version 0; this server follows version 1: install the same fedzo"),
        ({"base_digest": bytes(32)}, "base digest 0000000000000000…, the run has 0001020304050607…: give the client"),
        ({"manifest_digest": b""}, "manifest digest …, the run has"),
        ({"tokenizer_digest": bytes(32)}, "tokenizer digest 0000000000000000…, the run has 2021222324252627…: give"),
        ({"genesis_hash": bytes(32)}, "journal's genesis 0000000000000000…, the run has"),
        ({"task": "classification"}, "task 'classification', the run has 'lm'"),
        ({"name": "x" * 65}, "expected 1 to 64 printable characters"),
        ({"record_hash": b""}, "a record hash of 0 bytes; expected 32"),
    ],
)
def test_a_client_of_another_kind_is_refused_by_name(shared_run, changes, said):
    hosted, _, _ = shared_run
    before = hosted.journal_bytes
    stranger = HandClient(hosted, **({"name": "carla"} | changes))
    code, details = stranger.stream.error()
    assert code is Code.FAILED_PRECONDITION
    assert said in details
    assert hosted.journal_bytes == before
    assert {client.name for client in hosted.status().clients} == {"anna", "bertl"}


@pytest.mark.parametrize(
    ("first", "said"),
    [
        (b"\xff\xff\xff", "no ClientMessage"),
        (b"", "the first message is None; expected a join"),
        (pb.ClientMessage(report=pb.Report(round=1)).SerializeToString(), "'report'; expected a join"),
        (b"\x0a\x05\x1a\x03\xff\xfe\xfd", "no ClientMessage"),
        (b"\x0a\x7f" + bytes(10), "no ClientMessage"),
    ],
    ids=["garbage", "nothing in it", "a report", "a name that is not UTF-8", "cut short"],
)
def test_a_first_message_that_is_no_join_is_refused(shared_run, first, said):
    hosted, _, _ = shared_run
    stream = Stream(hosted.address)
    stream.send(first)
    code, details = stream.error()
    assert code in (Code.INVALID_ARGUMENT, Code.FAILED_PRECONDITION)
    assert said in details


def test_a_stream_that_ends_before_its_join_is_refused(shared_run):
    stream = Stream(shared_run[0].address)
    stream.finish()
    assert stream.error() == (Code.INVALID_ARGUMENT, "the stream ended before a join came")


@pytest.mark.slow
def test_a_client_too_slow_to_join_is_told_to_try_again(shared_run):
    code, details = Stream(shared_run[0].address).error()
    assert (code, details) == (Code.DEADLINE_EXCEEDED, "no join came within 10 seconds")
    assert code not in REFUSALS


@pytest.mark.parametrize(
    ("message", "code", "said"),
    [
        (b"\xff\xff\xff", Code.INVALID_ARGUMENT, "no ClientMessage"),
        (bytes(1 << 16), Code.RESOURCE_EXHAUSTED, "larger than max"),
        (pb.ClientMessage(join=pb.Join()).SerializeToString(), Code.INVALID_ARGUMENT, "'join' where a report is"),
        (pb.ClientMessage(report=pb.Report(purpose=9)).SerializeToString(), Code.INVALID_ARGUMENT, "purpose 9 is unkn"),
    ],
    ids=["malformed", "oversized", "a second join", "a purpose of another version"],
)
def test_a_message_that_is_no_report_ends_the_session_and_changes_nothing(host, message, code, said):
    hosted = host()
    anna, bertl = both(hosted)
    plan = anna.plan()
    before = hosted.journal_bytes
    anna.stream.send(message)
    ended, details = anna.stream.error()
    assert (ended, said in details) == (code, True), details
    assert hosted.journal_bytes == before
    anna = HandClient(hosted, "anna", at=anna)
    assert anna.take_part().outcome == ACCEPTED, "it may come again"
    bertl.take_part()
    assert anna.plan().round == plan.round + 1


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    message=st.binary(max_size=200)
    | st.builds(
        lambda **fields: pb.ClientMessage(report=pb.Report(**fields)).SerializeToString(),
        purpose=st.integers(0, 5),
        round=st.integers(0, 3),
        record_hash=st.binary(max_size=40),
        examples=st.integers(0, 2**64 - 1),
        loss=st.floats(),
        projected_gradients=st.lists(st.floats(width=32), max_size=4),
        state_digest=st.binary(max_size=40),
        maxima=st.lists(st.integers(0, 2**32 - 1), max_size=4),
        diverged=st.booleans(),
    )
)
def test_whatever_a_client_says_nothing_changes(shared_run, message):
    hosted, (anna, _), _ = shared_run
    before = hosted.journal_bytes
    stranger = HandClient(hosted, "bertl", at=anna)
    stranger.stream.send(message)
    stranger.stream.finish()
    code, _ = stranger.stream.error()
    stranger.stream.drop()
    assert code in (Code.OK, Code.INVALID_ARGUMENT)
    assert hosted.journal_bytes == before
    assert hosted.status().answered == 0


@pytest.mark.slow
def test_a_client_that_reports_without_reading_is_sent_away(host):
    hosted = host()
    anna, _ = both(hosted)
    plan = anna.plan()
    refused = anna.report(plan, loss=float("nan"), record_hash=bytes(32)).SerializeToString()
    anna.stream.pause()
    for _ in range(200_000):
        anna.stream.send(refused)
    wait_until(lambda: "anna left" in hosted.process.said, "anna to be sent away")
    assert hosted.status().answered == 0


def test_a_name_that_joins_again_replaces_itself(host):
    hosted = host()
    anna, bertl = both(hosted)
    anna.plan()
    again = HandClient(hosted, "anna", at=anna)
    code, details = anna.stream.error()
    assert code is Code.ALREADY_EXISTS
    assert "'anna' has joined again from elsewhere; give every client a name of its own" in details
    again.take_part()
    bertl.take_part()
    assert again.plan().round == 2
