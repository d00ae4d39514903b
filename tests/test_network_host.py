"""The server as a process: killed, stopped, resumed, on a full disk, and what it tells those who ask."""

import resource
import signal
import time
from dataclasses import replace

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from journals import payloads_of
from network import CALL_S, HandClient, Hosted, both, status_text, wait_until

from fedzo.journal import Commit
from fedzo.v1 import rounds_pb2 as pb
from fedzo.v1.rounds_pb2_grpc import RoundsStub
from fedzo.wire.steps import decode_steps

ACCEPTED = pb.Answer.OUTCOME_ACCEPTED
REFUSED = pb.Answer.OUTCOME_REFUSED
Code = grpc.StatusCode


# ── the server's end ────────────────────────────────────────────────────────────────────────────────


def test_killed_in_a_round_it_plans_the_same_round_again(host):
    hosted = host(rounds=6)
    anna, bertl = both(hosted)
    for number in range(1, 6):
        plan = anna.plan()
        assert (plan.round, plan.position) == (number, number)
        anna.take_part(plan)
        before = hosted.contents.hashes
        hosted.process.kill()
        assert hosted.contents.hashes == before
        hosted.start()
        anna, bertl = (HandClient(hosted, client.name, at=client) for client in (anna, bertl))
        assert replace(anna.plan(), cohort=()) == replace(plan, cohort=()), "same number, same position"
        bertl.plan()
        anna.take_part(plan)
        bertl.take_part(plan)
    assert [record.round for record in hosted.contents.records[1:]] == [1, 2, 3, 4, 5]
    assert all(isinstance(record.body, Commit) for record in hosted.contents.records[1:])


def test_a_resumed_run_waits_for_its_clients_only_for_a_while(host):
    hosted = host()
    anna, _ = both(hosted)
    anna.plan()
    hosted.process.kill()
    hosted.gather_s = 0.5
    hosted.start()
    started = time.monotonic()
    anna = HandClient(hosted, "anna", at=anna)
    assert anna.plan().round == 1
    assert time.monotonic() - started < 10
    assert hosted.status().asked == 1


def test_a_run_that_has_ended_is_resumed_to_say_so_and_changes_nothing(host):
    hosted = host(rounds=2)
    clients = both(hosted)
    for _ in range(2):
        for client, plan in [(client, client.plan()) for client in clients]:
            client.take_part(plan)
    assert hosted.process.wait() == 0
    before = (hosted.path / "journal").read_bytes()
    resumed = hosted.start()
    assert resumed.wait() == 0
    assert (
        "the run has ended at position 4, round 2, no digest agreed; clients that come late are served" in resumed.said
    )
    assert (hosted.path / "journal").read_bytes() == before


def test_killed_at_any_moment_no_record_that_was_told_is_lost_and_none_is_twice(host):
    hosted = host(rounds=100_000, clients=1)
    anna = HandClient(hosted, "anna")
    for delay_s in (0.0, 0.003, 0.01, 0.03, 0.05, 0.08):
        end = time.monotonic() + delay_s
        while time.monotonic() < end:
            anna.take_part()
        hosted.process.kill()
        anna.stream.drop()  # one that was not connected yet would join the next server beside its successor
        assert hosted.contents.hashes[: len(anna.hashes)] == anna.hashes
        hosted.start()
        anna = HandClient(hosted, "anna", at=anna)
        anna.take_part()
    rounds = [record.round for record in hosted.contents.records if isinstance(record.body, Commit)]
    assert rounds == list(range(1, len(rounds) + 1))


def test_a_server_behind_one_of_its_clients_stops_and_says_so(host):
    hosted = host()
    anna, bertl = both(hosted)
    for client, plan in ((anna, anna.plan()), (bertl, bertl.plan())):
        client.take_part(plan)
    anna.plan()
    bertl.plan()
    hosted.process.kill()
    journal = hosted.path / "journal"
    whole = journal.read_bytes()
    hosted.start().kill()
    journal.write_bytes(whole[: hosted.contents.valid_bytes - last_frame_bytes(hosted)])
    before = hosted.start() and journal.read_bytes()
    code, details = HandClient(hosted, "anna", at=anna).stream.error()
    assert code is Code.UNAVAILABLE
    assert "client 'anna' holds record" in details
    assert "at position 2, which this journal lacks (it ends at position 1)" in details
    newcomer = HandClient(hosted, "carla")
    assert newcomer.stream.error() == (code, details), "nobody is planned with any more"
    assert f"HALTED: {details}" in status_text(hosted)
    assert health(hosted) == health_pb2.HealthCheckResponse.NOT_SERVING
    assert "halted: client 'anna' holds record" in hosted.process.said
    assert journal.read_bytes() == before
    hosted.process.kill()
    journal.write_bytes(whole)
    hosted.start()
    anna, bertl = (HandClient(hosted, client.name, at=client) for client in (anna, bertl))
    assert anna.plan().round == 2, "with the journal restored the run goes on"


def last_frame_bytes(hosted: Hosted) -> int:
    return len(payloads_of(hosted.path / "journal")[-1]) + 40


def test_a_record_of_another_branch_stops_the_server_too(host):
    hosted = host()
    both(hosted)[0].plan()
    code, details = HandClient(hosted, "bertl", position=1, record_hash=b"\7" * 32).stream.error()
    assert code is Code.UNAVAILABLE
    assert "holds record 0707070707070707… at position 1" in details


def test_a_torn_tail_is_cut_off_and_said_and_damage_is_an_error(host, nursery):
    hosted = host()
    for client, plan in [(client, client.plan()) for client in both(hosted)]:
        client.take_part(plan)
    wait_until(lambda: hosted.contents.position == 2, "the commit")
    hosted.process.kill()
    journal = hosted.path / "journal"
    whole = journal.read_bytes()
    journal.write_bytes(whole + whole[-50:-20])
    assert "cut off" not in hosted.process.said
    torn = journal.read_bytes()
    journal.write_bytes(torn[: len(whole) - 7])
    assert "cut off" in hosted.start().said
    assert hosted.contents.position == 1
    hosted.process.kill()
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 1
    journal.write_bytes(damaged)
    refused = nursery.start("server", "--resume", "--out", hosted.path, "--listen", hosted.address, "--insecure")
    assert refused.wait() == 1
    assert "is damaged" in refused.said
    assert journal.read_bytes() == damaged


def test_a_full_disk_stops_the_server_and_the_journal_is_as_it_was(host):
    hosted = host(rounds=200, clients=1)
    anna = HandClient(hosted, "anna")
    for _ in range(20):
        anna.take_part()
    plan = anna.plan()
    metrics = hosted.path / "metrics.jsonl"
    wait_until(lambda: metrics.read_bytes().count(b"\n") == plan.position, "the last record's line")
    before = hosted.journal_bytes
    resource.prlimit(hosted.process.pid, resource.RLIMIT_FSIZE, (len(before) + 10, len(before) + 10))
    anna.stream.send(anna.report(plan))
    assert hosted.process.wait() == 1
    assert "could not be written (File too large); the file is as it was before" in hosted.process.said
    assert hosted.journal_bytes == before
    hosted.start()
    anna = HandClient(hosted, "anna", at=anna)
    assert anna.take_part(plan).outcome == ACCEPTED


def test_clients_that_are_gone_in_the_middle_of_a_word_disturb_nobody(host):
    hosted = host(rounds=200, quorum=2)
    anna, bertl = both(hosted)
    for _ in range(25):
        plan = anna.plan()
        bertl.plan()
        bertl.stream.send(bertl.report(plan))
        bertl.stream.drop()
        bertl = HandClient(hosted, "bertl", at=bertl)
        anna.take_part(plan)
        bertl.stream.send(bertl.report(plan))
    assert hosted.contents.position >= 25


def test_told_to_stop_it_drains(host):
    hosted = host()
    anna, bertl = both(hosted)
    anna.take_part()
    hosted.process.signal(signal.SIGTERM)
    code, details = anna.stream.error()
    assert code is Code.UNAVAILABLE
    assert "the server is stopping; reconnect when it is back" in details
    assert hosted.process.wait() == 0
    assert "stopped at position 1" in hosted.process.said
    hosted.start()
    anna, bertl = (HandClient(hosted, client.name, at=client) for client in (anna, bertl))
    anna.take_part()
    bertl.take_part()
    assert anna.plan().round == 2


def test_a_second_server_for_a_run_is_refused(host, nursery):
    hosted = host()
    second = nursery.start("server", "--resume", "--out", hosted.path, "--listen", "127.0.0.1:0", "--insecure")
    assert second.wait() == 1
    assert "another process is writing to it" in second.said
    other = nursery.start(
        "server", "--resume", "--out", host().path, "--listen", hosted.address, "--insecure", "--linger", 0
    )
    assert other.wait() == 1


# ── others who ask ──────────────────────────────────────────────────────────────────────────────────


def health(hosted: Hosted) -> int:
    with grpc.insecure_channel(hosted.address) as channel:
        request = health_pb2.HealthCheckRequest(service="fedzo.v1.Rounds")
        return health_pb2_grpc.HealthStub(channel).Check(request, timeout=CALL_S).status


def test_health_and_reflection_are_the_stock_services(shared_run):
    hosted, _, _ = shared_run
    assert health(hosted) == health_pb2.HealthCheckResponse.SERVING
    with grpc.insecure_channel(hosted.address) as channel:
        found = set(ProtoReflectionDescriptorDatabase(channel).get_services())
    assert {"fedzo.v1.Rounds", "grpc.health.v1.Health"} <= found


def test_status_says_how_the_run_stands(host):
    hosted = host()
    both(hosted)[0].take_part()
    text = status_text(hosted)
    assert "running" in text
    assert "round 0 of 40, position 1" in text
    assert "under way: train, 1 of 2 clients have answered" in text
    assert "anna  connected, at position 1" in text


def test_a_follower_gets_every_record_as_it_comes_and_then_the_end(host):
    hosted = host(rounds=3, linger_s=2.0)
    clients = both(hosted)
    genesis, hashes = hosted.contents.genesis, hosted.contents.hashes[:1]
    with grpc.insecure_channel(hosted.address) as channel:
        request = pb.FollowRequest(position=0, record_hash=hashes[0])
        stream = RoundsStub(channel).Follow(request, timeout=CALL_S)
        for purpose in ("train",) * 3 + ("attest",):
            plans = [client.plan() for client in clients]
            assert plans[0].purpose == purpose
            while len(hashes) <= plans[0].position:
                hashes += [digest for _, digest in decode_steps(genesis, next(stream).steps)]
            for client, plan in zip(clients, plans, strict=True):
                client.take_part(plan)
        for records in stream:
            hashes += [digest for _, digest in decode_steps(genesis, records.steps)]
    assert hashes == hosted.contents.hashes
    assert len(hashes) == 6


@pytest.mark.parametrize(("position", "digest"), [(99, bytes(32)), (0, bytes(32)), (2**63, b"")])
def test_a_follower_of_another_journal_is_told(shared_run, position, digest):
    with grpc.insecure_channel(shared_run[0].address) as channel:
        stream = RoundsStub(channel).Follow(pb.FollowRequest(position=position, record_hash=digest), timeout=CALL_S)
        with pytest.raises(grpc.RpcError) as error:
            next(stream)
    assert error.value.code() is Code.OUT_OF_RANGE
    assert "follow from position 0 and the genesis hash" in error.value.details()
