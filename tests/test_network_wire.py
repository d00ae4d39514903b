"""What crosses the network: nothing is lost on the way, and a steady round stays within its bytes."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import MANIFEST, make_genesis
from hypothesis import given
from hypothesis import strategies as st
from journals import payloads_of

from fedzo.coordinator import Plan, Purpose, Report
from fedzo.errors import HandshakeError, JournalBehindError, JournalDamageError, ProtocolError
from fedzo.journal import ClientReport, Commit, Entry, Journal, JournalContents, Record, Void, read_journal
from fedzo.journal.codec import encode_record
from fedzo.journal.file import FIRST_PREVIOUS, record_hash
from fedzo.journal.genesis_codec import encode_genesis
from fedzo.methods import MethodReport, MethodRound, get_method, method_reports
from fedzo.v1 import rounds_pb2 as pb
from fedzo.wire.handshake import Join, check_join, decode_join, encode_join
from fedzo.wire.rounds import (
    Answer,
    Outcome,
    decode_answer,
    decode_plan,
    decode_report,
    encode_answer,
    encode_plan,
    encode_report,
    parse_client_message,
)
from fedzo.wire.steps import decode_steps, encode_step

UP_BYTES, UP_SCALAR_BYTES = 100, 8
DOWN_BYTES, DOWN_ENTRY_BYTES = 150, 16


def commit_record(genesis, clients: int, round_number: int = 1000) -> Record:
    """A committed round with scalars that have all their digits."""
    each = genesis.rules.directions
    scalars = np.random.default_rng(clients).normal(size=(clients, each)).astype(np.float32).tolist()
    reports = [ClientReport(c, 16, 2.5 + c / 7, tuple(scalars[c])) for c in range(clients)]
    lines = [MethodReport(r.client, r.examples, r.projected_gradients) for r in reports]
    entries = get_method("distinct").aggregate(MethodRound(genesis, round_number), 1e-3, lines)
    return Record(round_number, Commit(entries, 1e-3, tuple(reports)))


def step_of(genesis, record: Record, previous: bytes = bytes(32)) -> tuple[pb.Step, bytes]:
    payload = encode_record(record)
    return encode_step(genesis, record, payload, record_hash(previous, payload)), payload


@pytest.mark.parametrize("clients", [1, 8])
@pytest.mark.parametrize("scalars", [1, 10, 100])
def test_a_steady_round_stays_within_its_bytes(clients, scalars):
    genesis = make_genesis(directions=scalars, cohort=clients)
    record = commit_record(genesis, clients)
    step, payload = step_of(genesis, record)
    report = Report(
        purpose=Purpose.TRAIN,
        round=1001,
        client=7,
        record_hash=bytes(range(32)),
        examples=16,
        loss=2.345678,
        projected_gradients=record.body.reports[0].projected_gradients,
    )
    plan = Plan(
        purpose=Purpose.TRAIN,
        round=1001,
        position=1042,
        record_hash=bytes(32),
        cohort=tuple(range(clients)),
        learning_rate=1e-3,
        attest=False,
        deadline_s=60.0,
    )
    answer = encode_answer(Answer(Outcome.ACCEPTED, Purpose.TRAIN, 1000))
    up = encode_report(report).ByteSize()
    down = pb.ServerMessage(answers=[answer]).ByteSize()
    down += pb.ServerMessage(steps=[step], plan=encode_plan(plan)).ByteSize()
    print(f"{clients} clients, {scalars} scalars: {up} up, {down} down; the whole frame: {len(payload) + 40}")
    assert up <= UP_BYTES + UP_SCALAR_BYTES * scalars
    assert down <= DOWN_BYTES + DOWN_ENTRY_BYTES * len(record.entries)


@pytest.mark.parametrize("clients", [1, 3])
def test_a_commit_without_its_entries_becomes_the_same_payload(clients):
    genesis = make_genesis(directions=2, local_steps=3)
    record = commit_record(make_genesis(directions=6), clients)
    lines = [MethodReport(r.client, r.examples, r.projected_gradients) for r in record.body.reports]
    entries = get_method("distinct").aggregate(MethodRound(genesis, record.round), record.body.learning_rate, lines)
    record = replace(record, body=replace(record.body, entries=entries))
    step, payload = step_of(genesis, record)
    assert step.WhichOneof("content") == "commit"
    assert decode_steps(genesis, [step]) == [(payload, step.record_hash)]


@pytest.mark.parametrize(
    "record",
    [
        Record(1, Void("too few", (3,), diverged=False)),
        replace(commit_record(make_genesis(), 2), state_digest=bytes(range(32)), maxima=(1, 2)),
        Record(1, Commit((Entry(5, 7),), 0.5, (ClientReport(0, 1, 1.0, (0.5,)),))),
    ],
    ids=["void", "with a digest", "entries of another hand"],
)
def test_what_does_not_follow_from_reports_goes_whole(record):
    step, payload = step_of(make_genesis(), record)
    assert step.WhichOneof("content") == "payload"
    assert decode_steps(make_genesis(), [step]) == [(payload, step.record_hash)]


def test_a_commit_in_which_earlier_rounds_have_a_part_goes_whole():
    """The reports say nothing of them; a first round has none before it."""
    genesis = make_genesis(method="momentum", momentum_window=2, momentum_decay=0.5)
    method, previous = get_method("momentum"), commit_record(make_genesis(), 2)
    record = replace(previous, round=previous.round + 1)
    reports = method_reports(record.body.reports)
    kinds = {}
    for memory in ((), (previous,)):
        entries = method.aggregate(MethodRound(genesis, record.round, memory), record.body.learning_rate, reports)
        step, payload = step_of(genesis, replace(record, body=replace(record.body, entries=entries)))
        assert decode_steps(genesis, [step]) == [(payload, step.record_hash)]
        kinds[len(memory)] = step.WhichOneof("content")
    assert kinds == {0: "commit", 1: "payload"}


@pytest.mark.parametrize(
    "commit",
    [
        pb.CommitReports(round=1, clients=[0], examples=[1], losses=[1.0]),
        pb.CommitReports(round=1, clients=[0], examples=[], losses=[1.0], projected_gradients=[1.0]),
        pb.CommitReports(round=1, clients=[0], examples=[0], losses=[1.0], projected_gradients=[1.0]),
        pb.CommitReports(round=1, learning_rate=1, clients=[0], examples=[1], losses=[1], projected_gradients=[np.nan]),
        pb.CommitReports(
            round=1, learning_rate=1e300, clients=[0], examples=[1], losses=[1], projected_gradients=[1e9]
        ),
        pb.CommitReports(round=1, learning_rate=1, clients=[0], examples=[1], losses=[1], projected_gradients=[1e9]),
    ],
    ids=["no scalars", "no examples", "of nothing", "not a number", "too large", "beyond 64 bits"],
)
def test_reports_from_which_nothing_follows_are_refused(commit):
    with pytest.raises(ProtocolError):
        decode_steps(make_genesis(), [pb.Step(record_hash=bytes(32), commit=commit)])


def test_a_copy_has_the_bytes_of_its_original(tmp_path):
    original = Journal.create(tmp_path / "original", make_genesis())
    for number in range(1, 6):
        original.append(commit_record(original.contents.genesis, 2, number))
    payloads = payloads_of(original.path)
    with Journal.create_copy(tmp_path / "copy", payloads[0]) as copy:
        steps = list(zip(payloads[1:], original.contents.hashes[1:], strict=True))
        assert copy.append_copies(steps[:2]) == original.contents.records[:2]
        before = copy.path.read_bytes()
        with pytest.raises(JournalDamageError, match="nothing was appended"):
            copy.append_copies([steps[2], (steps[3][0], bytes(32))])
        with pytest.raises(JournalDamageError, match="nothing was appended"):
            copy.append_copies(steps[3:])
        assert copy.path.read_bytes() == before
        copy.append_copies(steps[2:])
    assert copy.path.read_bytes() == original.path.read_bytes()
    assert read_journal(copy.path).hashes == original.contents.hashes
    original.close()


@given(
    purpose=st.sampled_from(Purpose),
    round_number=st.integers(0, 2**32 - 1),
    digest=st.none() | st.binary(min_size=1, max_size=40),
    scalars=st.lists(st.floats(width=32, allow_nan=False)),
    maxima=st.none() | st.lists(st.integers(0, 2**32 - 1), min_size=1),
    diverged=st.booleans(),
)
def test_a_report_arrives_as_it_was_sent(purpose, round_number, digest, scalars, maxima, diverged):
    report = Report(
        purpose=purpose,
        round=round_number,
        client=3,
        record_hash=bytes(32),
        examples=9,
        loss=0.1,
        projected_gradients=tuple(scalars),
        state_digest=digest,
        maxima=None if maxima is None else tuple(maxima),
        diverged=diverged,
    )
    assert decode_report(parse_client_message(encode_report(report).SerializeToString()), 3) == report


@given(st.binary(max_size=200))
def test_bytes_of_any_kind_are_a_message_or_refused(data):
    try:
        message = parse_client_message(data)
        decode_report(message, 0)
    except ProtocolError:
        pass


@pytest.mark.parametrize("purpose", Purpose)
def test_a_plan_arrives_at_one_client(purpose):
    plan = Plan(
        purpose=purpose,
        round=3,
        position=4,
        record_hash=bytes(range(32)),
        cohort=(2,),
        learning_rate=0.1,
        attest=True,
        deadline_s=1.5,
    )
    assert decode_plan(encode_plan(plan), 2, bytes(range(32))) == plan


@pytest.mark.parametrize("outcome", Outcome)
def test_an_answer_arrives(outcome):
    answer = Answer(outcome, Purpose.TRAIN, 4, "why")
    assert decode_answer(encode_answer(answer)) == answer
    with pytest.raises(ProtocolError, match="outcome 0"):
        decode_answer(pb.Answer())


def contents() -> JournalContents:
    genesis = make_genesis()
    return JournalContents(genesis=genesis, hashes=[record_hash(FIRST_PREVIOUS, encode_genesis(genesis))])


def good_join(**changes) -> Join:
    known = contents()
    join = Join(
        name="anna",
        genesis_hash=known.hashes[0],
        base_digest=known.genesis.base_digest,
        manifest_digest=MANIFEST.digest(),
        tokenizer_digest=known.genesis.task.tokenizer_digest,
        task="lm",
        position=0,
        record_hash=known.hashes[0],
    )
    return replace(join, **changes)


def test_a_good_join_arrives_and_is_welcome():
    join = decode_join(encode_join(good_join()))
    assert join == good_join()
    check_join(join, contents())


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"protocol_version": 2}, "protocol version 2; this server follows version 1: install"),
        ({"numerics_version": 7}, "numerics version 7; this server follows version 1: install"),
        ({"base_digest": bytes(32)}, "base digest 0000000000000000…, the run has 00010203"),
        ({"manifest_digest": bytes(32)}, "manifest digest 0000000000000000…, .*transformers version"),
        ({"tokenizer_digest": b""}, "tokenizer digest …, .*give the client the tokenizer"),
        ({"genesis_hash": bytes(32)}, "journal's genesis 0000000000000000…, .*directory of its own"),
        ({"task": "classification"}, "task 'classification', the run has 'lm'"),
        ({"name": ""}, "name is ''; expected 1 to 64"),
        ({"name": "a\nb"}, "name is .*; expected 1 to 64"),
        ({"name": "a" * 65}, "expected 1 to 64"),
        ({"record_hash": b"short"}, "5 bytes; expected 32"),
    ],
)
def test_a_join_that_does_not_belong_is_refused_by_name(changed, said):
    with pytest.raises(HandshakeError, match=said):
        check_join(good_join(**changed), contents())


@pytest.mark.parametrize("changed", [{"position": 1}, {"position": 2**60}, {"record_hash": bytes(range(32))}])
def test_a_client_with_a_record_that_the_journal_lacks_is_not_overlooked(changed):
    with pytest.raises(JournalBehindError, match="committed records were lost"):
        check_join(good_join(**changed), contents())
