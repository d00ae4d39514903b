"""Everything goes wrong at once, and nothing is lost: kill -9 at random and at chosen moments, answers that never
arrive, reports that arrive twice, a client that sleeps past its deadline, and one that comes late.
"""

import random
import signal
import time

import fates
import pytest
from federation import Federation
from network import WAIT_S, Command, wait_until

from fedzo.journal import Commit, Enrolment, Void, read_journal

ROUNDS = 200
WAVES = 10
"""For every single wait, so that a busy machine is no failure."""


class Havoc:
    """Kills processes of a federation, brings them back, and keeps what their journals held when they died."""

    def __init__(self, federation: Federation, draw: random.Random) -> None:
        self.kills = 0
        self.moments: set[str] = set()
        """At which somebody died."""
        self._federation = federation
        self._draw = draw
        self._left_behind: list[bytes] = []
        """The whole frames of every journal at its process's death."""

    def wave(self, victims: list[str]) -> None:
        """Kill some now; kill each again at a moment that fate has chosen; then let them live."""
        for victim in victims:
            self._process(victim).kill()
            self._bury(victim)
        doomed = {victim: self._fate(victim) for victim in victims}
        for victim, fate in doomed.items():
            self._start(victim, fate)
        until_s = time.monotonic() + WAIT_S
        while doomed:
            for victim in [victim for victim in doomed if not self._process(victim).alive]:
                self._bury(victim, doomed.pop(victim))
                self._start(victim)
            assert time.monotonic() < until_s, f"fates that did not come: {doomed}"
            time.sleep(0.02)

    def check(self, journal: bytes) -> None:
        """Nothing that any process had made durable is missing from the run's journal, or different there."""
        for left in self._left_behind:
            assert journal.startswith(left)

    def _fate(self, victim: str) -> str:
        moment = self._draw.choice(fates.SERVER if victim == "server" else fates.CLIENT)
        return f"{moment}:{1 if moment == 'state' else self._draw.randint(1, 3)}"

    def _process(self, victim: str) -> Command:
        found = self._federation
        return found.server if victim == "server" else found.clients[int(victim)]

    def _start(self, victim: str, fate: str = "") -> None:
        if victim == "server":
            self._federation.start_server(fate=fate)
        else:
            self._federation.start_client(int(victim), fate=fate)

    def _bury(self, victim: str, fate: str = "") -> None:
        found = self._federation
        directory = found.run if victim == "server" else found.directory(int(victim))
        process = self._process(victim)
        assert not process.log.with_suffix(".exit").exists(), process.said
        self.kills += 1
        self.moments.add(fate.partition(":")[0])
        if not (directory / "journal").exists():
            return
        content, contents = (directory / "journal").read_bytes(), read_journal(directory / "journal")
        self._left_behind.append(content[: contents.valid_bytes])
        if fate.startswith("append"):
            assert contents.torn_bytes, "the end of a frame is missing"
        if fate.startswith("state"):
            assert not (directory / "replica.state").read_bytes()[16], "the state file is dirty"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1])
def test_whatever_is_killed_lost_or_repeated_whenever_all_end_with_the_state_of_the_journal(federation, seed):
    draw = random.Random(seed)
    options = {"directions": 4, "quorum": 3, "deadline": 5, "gather": 5, "eval-every": 20, "attest-every": 5}
    found = federation(rounds=ROUNDS, proxied=True, **options).start()
    havoc = Havoc(found, draw)
    for turn in range(WAVES):
        found.wait_for_position(4 + 14 * turn)
        for _ in range(2):
            found.proxies[draw.randrange(4)].answers_to_lose += 1
            found.proxies[draw.randrange(4)].reports_to_repeat += 1
        time.sleep(draw.uniform(0, 0.3))
        havoc.wave(draw.sample(["server", "0", "1", "2", "3"], k=2))
    wait_until(lambda: found.round >= 150, "round 150")
    found.start_client(4)
    sleeper = draw.randrange(4)
    found.clients[sleeper].signal(signal.SIGSTOP)
    found.wait_for_position(found.position + 2)
    found.clients[sleeper].signal(signal.SIGCONT)
    found.finish()

    assert havoc.kills == 4 * WAVES
    assert havoc.moments == {"", *fates.CLIENT}
    havoc.check((found.run / "journal").read_bytes())
    assert sum(proxy.answers_lost for proxy in found.proxies.values()) >= WAVES
    assert sum(proxy.reports_repeated for proxy in found.proxies.values()) >= WAVES
    bodies = {r.round: r.body for r in read_journal(found.run / "journal").records if isinstance(r.body, Commit | Void)}
    check_rounds(found, bodies, sleeper)


def check_rounds(found: Federation, bodies: dict[int, Commit | Void], sleeper: int) -> None:
    """Each round ended once; the sleeper was missed in one and came back, and the newcomer took part."""
    records = read_journal(found.run / "journal").records
    assert [r.round for r in records if isinstance(r.body, Commit | Void)] == list(range(1, ROUNDS + 1))
    commits = {number: [r.client for r in body.reports] for number, body in bodies.items() if isinstance(body, Commit)}
    assert all(who == sorted(set(who)) for who in commits.values()), "a report counts once"
    assert len(commits) > ROUNDS // 2
    enrolments = [record.body for record in records if isinstance(record.body, Enrolment)]
    assert enrolments == [Enrolment(0, tuple(f"client-{k}" for k in range(4))), Enrolment(4, ("client-4",))]
    assert any(sleeper not in who for number, who in commits.items() if number > 120)
    assert any({sleeper, 4} <= set(who) for number, who in commits.items() if number > 150)
