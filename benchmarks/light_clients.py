"""Clients without a model, for benchmarks: they answer every plan at once, and any number share a process."""

import asyncio
import time
from collections.abc import Callable, Sequence

import grpc

from fedzo.base.manifest import Manifest, TensorSpec
from fedzo.journal import Genesis, JournalContents, Rules, Task
from fedzo.noise import Distribution
from fedzo.v1 import rounds_pb2 as pb
from fedzo.v1.rounds_pb2_grpc import RoundsStub
from fedzo.wire.handshake import Join, encode_join

JOIN_TOGETHER = 100
ALL_S = 3600.0
"""Deadline of everything that is measured."""


def light_genesis(clients: int, rounds: int) -> Genesis:
    """A run in which all clients are asked for one scalar a round."""
    rules = Rules(
        method="distinct",
        rounds=rounds,
        cohort=clients,
        quorum=clients,
        deadline_s=ALL_S,
        directions=1,
        local_steps=1,
        batch_size=16,
        epsilon=2**30,
        learning_rate=1e-4,
        schedule="constant",
        evaluate_every=0,
        attest_every=0,
        guard_factor=0.0,
    )
    return Genesis(
        base_digest=bytes(32),
        manifest=Manifest((TensorSpec("weight", (10, 10), 29, 2**29),)),
        distribution=Distribution.RADEMACHER,
        run_seed=0,
        task=Task(name="lm", tokenizer_digest=bytes(32), max_length=128),
        rules=rules,
    )


async def run_all(clients: Sequence["LightClient"]) -> None:
    """From the first join to the run's end; they come in groups, as a crowd at once is more than gRPC takes."""
    for low in range(0, len(clients), JOIN_TOGETHER):
        await asyncio.gather(*(client.join() for client in clients[low : low + JOIN_TOGETHER]))
    await asyncio.gather(*(client.run() for client in clients))


class LightClient:
    """A session that reports without work; it takes the server's hashes on trust.

    Args:
        channel: to the server.
        name: of the client.
        contents: the journal at its start.
        token: of the client; empty where the server asks for none.
        watch: told the round of each training plan when it comes.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        name: str,
        contents: JournalContents,
        token: str = "",
        watch: Callable[[int], None] | None = None,
    ) -> None:
        self.plans_s: list[float] = []
        """When each training plan came."""
        self._watch = watch
        self._stub = RoundsStub(channel)
        self._call: grpc.aio.StreamStreamCall
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        genesis = contents.genesis
        self._join = Join(
            name=name,
            genesis_hash=contents.hashes[0],
            base_digest=genesis.base_digest,
            manifest_digest=genesis.manifest.digest(),
            tokenizer_digest=genesis.task.tokenizer_digest,
            task=genesis.task.name,
            position=0,
            record_hash=contents.hashes[0],
        )

    async def join(self) -> None:
        """Come in; returns when the server has said so."""
        self._call = self._stub.Session(timeout=ALL_S, metadata=self._metadata)
        await self._call.write(encode_join(self._join))
        assert (await self._call.read()).HasField("welcome")

    async def run(self) -> None:
        """Report until the run's end."""
        call, record_hash = self._call, self._join.record_hash
        while (message := await call.read()) is not grpc.aio.EOF:
            if message.steps:
                record_hash = message.steps[-1].record_hash
            if message.HasField("plan"):
                await call.write(pb.ClientMessage(report=self._report(message.plan, record_hash)))

    def _report(self, plan: pb.Plan, record_hash: bytes) -> pb.Report:
        report = pb.Report(purpose=plan.purpose, round=plan.round, record_hash=record_hash)
        if plan.purpose == pb.PURPOSE_TRAIN:
            self.plans_s.append(time.perf_counter())
            if self._watch is not None:
                self._watch(plan.round)
            report.examples, report.loss = 16, 2.5
            report.projected_gradients.append(0.25)
        if plan.attest:
            report.state_digest = bytes(32)
            report.maxima.append(1)
        return report
