"""How a client reaches a server: channel, credentials, and how long it waits before it tries again."""

import random
from pathlib import Path

import grpc

from fedzo.errors import ConfigError
from fedzo.wire.loopback import is_loopback

from .options import ConnectionOptions

FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 5.0
RECEIVE_BYTES = 1 << 28
"""A roll-back of a long run is one large record."""
CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", RECEIVE_BYTES),
    ("grpc.use_local_subchannel_pool", 1),  # else a new channel inherits gRPC's own, longer delays
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
)
Metadata = tuple[tuple[str, str], ...]


def open_channel(options: ConnectionOptions) -> grpc.aio.Channel:
    """TLS, unless the server is on this machine and no authority is given."""
    if options.ca is None and is_loopback(options.address):
        return grpc.aio.insecure_channel(options.address, options=CHANNEL_OPTIONS)
    credentials = grpc.ssl_channel_credentials(
        root_certificates=_read(options.ca), private_key=_read(options.key), certificate_chain=_read(options.cert)
    )
    return grpc.aio.secure_channel(options.address, credentials, options=CHANNEL_OPTIONS)


def call_metadata(options: ConnectionOptions) -> Metadata:
    """What goes with every call.

    Raises:
        ConfigError: the token cannot be read.
    """
    token = _read(options.token)
    return () if token is None else (("authorization", f"Bearer {token.decode(errors='replace').strip()}"),)


class Backoff:
    """Delays that double, each drawn from its upper half, so that clients do not come back all at once."""

    def __init__(self) -> None:
        self._draw = random.Random()
        self._delay_s = FIRST_DELAY_S

    def reset(self) -> None:
        """The server was reached."""
        self._delay_s = FIRST_DELAY_S

    def next_s(self) -> float:
        """Seconds to wait before the next try."""
        delay_s = self._draw.uniform(self._delay_s / 2, self._delay_s)
        self._delay_s = min(2 * self._delay_s, LONGEST_DELAY_S)
        return delay_s


def _read(path: Path | None) -> bytes | None:
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
