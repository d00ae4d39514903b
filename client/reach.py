"""Trying again: calls that go on until they succeed, the server refuses, or patience ends."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc

from fedzo.errors import HandshakeError, ServerUnreachableError

from .connection import Backoff

Result = TypeVar("Result")
REFUSALS = frozenset(
    {
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)
"""What trying again does not mend."""


class Reach:
    """Reaches one server, again and again.

    Args:
        address: for messages.
        patience_s: seconds without the server after which it gives up.
        stop: set when nothing should be tried any more.
        say: told when the server is lost, and why.
    """

    def __init__(self, address: str, patience_s: float, stop: asyncio.Event, say: Callable[[str], None]) -> None:
        self._address = address
        self._patience_s = patience_s
        self._stop = stop
        self._say = say
        self._backoff = Backoff()
        self._last_s = time.monotonic()
        self._said = ""

    def reached(self) -> None:
        """The server answered."""
        self._backoff.reset()
        self._last_s = time.monotonic()
        self._said = ""

    async def until_done(self, call: Callable[[], Awaitable[Result]]) -> Result | None:
        """The result of a call, tried until it gives one; None where it was stopped.

        Raises:
            HandshakeError: the server refused.
            ServerUnreachableError: patience ended.
        """
        while not self._stop.is_set():
            try:
                return await call()
            except grpc.aio.AioRpcError as error:
                if error.code() in REFUSALS:
                    raise HandshakeError(f"{self._address}: {error.details()}") from error
                await self.pause(f"{error.details()}")
            except TimeoutError:
                await self.pause("no answer in time")
        return None

    async def pause(self, reason: str) -> None:
        """Wait before the next try; raises ServerUnreachableError when patience ended."""
        if time.monotonic() - self._last_s > self._patience_s:
            raise ServerUnreachableError(
                f"{self._address}: no server for {self._patience_s:g} seconds ({reason}); start it, or wait longer "
                "with --patience"
            )
        if reason != self._said:
            self._say(f"without the server, trying again for {self._patience_s:g} s (--patience): {reason}")
            self._said = reason
        try:
            async with asyncio.timeout(self._backoff.next_s()):
                await self._stop.wait()
        except TimeoutError:
            return
