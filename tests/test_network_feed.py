"""What clients are told of the journal: the bytes of its records, once they are durable, the same for all."""

from pathlib import Path

import pytest
from fedzo_server import feed as feed_module
from fedzo_server.feed import Feed
from helpers import make_genesis

from fedzo.coordinator import Plan, Purpose
from fedzo.journal import ClientReport, Commit, Enrolment, Journal, Record
from fedzo.journal.codec import encode_record
from fedzo.journal.file import record_hash
from fedzo.methods import MethodReport, MethodRound, get_method
from fedzo.v1 import rounds_pb2 as pb
from fedzo.wire.steps import decode_steps


@pytest.fixture
def journal(tmp_path: Path):
    with Journal.create(tmp_path / "journal", make_genesis()) as journal:
        yield journal


def commit(genesis, number: int) -> Record:
    reports = tuple(ClientReport(client, 4, 2.5 + number, (0.25,)) for client in range(2))
    lines = [MethodReport(r.client, r.examples, r.projected_gradients) for r in reports]
    entries = get_method(genesis.rules.method).aggregate(MethodRound(genesis, number), 1e-3, lines)
    return Record(number, Commit(entries, 1e-3, reports))


def append(journal: Journal, feed: Feed, record: Record) -> None:
    feed.prepare(record)
    journal.append(record)
    feed.appended()


def plan_at(position: int) -> Plan:
    return Plan(
        purpose=Purpose.TRAIN,
        round=1,
        position=position,
        record_hash=bytes(32),
        cohort=(0, 1),
        learning_rate=1e-3,
        attest=False,
        deadline_s=60.0,
    )


def told(feed: Feed, position: int, plan: Plan | None = None) -> pb.ServerMessage:
    return pb.ServerMessage.FromString(feed.news(position, plan).content)


def followed(journal: Journal, feed: Feed) -> list[tuple[bytes, bytes]]:
    """(payload, record hash) of every record, from message to message."""
    found: list[tuple[bytes, bytes]] = []
    while len(found) < feed.position:
        found += decode_steps(journal.contents.genesis, told(feed, len(found)).steps)
    return found


def test_a_record_that_is_prepared_is_told_only_when_it_is_durable(journal):
    feed, record = Feed(journal), Record(0, Enrolment(0, ("anna", "bertl")))
    feed.prepare(record)
    assert feed.position == 0
    assert not told(feed, 0).steps
    journal.append(record)
    feed.appended()
    assert followed(journal, feed) == [(encode_record(record), journal.record_hash)]


def test_a_plan_comes_with_the_last_step_before_it(journal, monkeypatch):
    feed = Feed(journal)
    for number in range(1, 5):
        append(journal, feed, commit(journal.contents.genesis, number))
    plan = plan_at(4)
    assert told(feed, 0, plan).HasField("plan")
    assert len(told(feed, 0, plan).steps) == 4
    monkeypatch.setattr(feed_module, "MESSAGE_BYTES", 1)
    feed = Feed(journal)
    first = feed.news(0, plan)
    assert (first.position, first.planned) == (1, False), "there is more to follow before it"
    assert not told(feed, 0, plan).HasField("plan")
    assert told(feed, 3, plan).HasField("plan")


def test_all_at_one_place_are_told_the_same_bytes_and_a_greeting_before_them_is_one_message_with_them(journal):
    feed = Feed(journal)
    append(journal, feed, commit(journal.contents.genesis, 1))
    news = feed.news(0, plan_at(1))
    assert feed.news(0, plan_at(1)).content is news.content
    assert feed.news(1, plan_at(1)).content != news.content
    own = pb.ServerMessage(answers=[pb.Answer(outcome=pb.Answer.OUTCOME_ACCEPTED, purpose=pb.PURPOSE_TRAIN, round=1)])
    whole = told(feed, 0, plan_at(1))
    whole.answers.extend(own.answers)
    assert whole.SerializeToString(deterministic=True) == own.SerializeToString() + news.content


def test_records_that_are_no_longer_kept_are_sent_as_they_were_written(journal, monkeypatch):
    monkeypatch.setattr(feed_module, "KEPT_STEPS", 5)
    monkeypatch.setattr(feed_module, "MESSAGE_BYTES", 300)
    feed, genesis = Feed(journal), journal.contents.genesis
    for number in range(1, 51):
        append(journal, feed, commit(genesis, number))
    expected = [encode_record(record) for record in journal.contents.records]
    assert [payload for payload, _ in followed(journal, feed)] == expected
    forms = [step.WhichOneof("content") for position in range(50) for step in feed.steps_from(position)[:1]]
    assert forms == ["payload"] * 45 + ["commit"] * 5
    assert [payload for payload, _ in followed(journal, Feed(journal))] == expected


def test_a_payload_is_sent_as_it_was_written_also_by_another_encoder(journal):
    other = encode_record(commit(journal.contents.genesis, 1)) + b"\xf8\x07\x01"  # a field that fedzo does not know
    journal.append_copies([(other, record_hash(journal.record_hash, other))])
    assert encode_record(journal.contents.records[0]) != other
    assert followed(journal, Feed(journal)) == [(other, journal.record_hash)]
