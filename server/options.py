"""The options of `fedzo server`, on the command line and in its TOML file alike."""

from dataclasses import dataclass
from typing import Annotated

from fedzo.errors import ConfigError
from fedzo.options.checks import MOST, require_address, require_range
from fedzo.options.run import RunOptions
from fedzo.wire.loopback import is_loopback

PLACES = ("model", "tls_cert", "tls_key", "tls_ca", "tokens", "evaluate_on")
"""Options that may name a file or directory."""
HOSTING = (
    *("listen", "tls_cert", "tls_key", "tls_ca", "tokens", "insecure", "gather", "linger"),
    *("evaluate_on", "text_field"),
)
"""Options that say how a run is hosted, not what it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions(RunOptions):
    """What a server runs with."""

    listen: Annotated[str, "Where to listen, HOST:PORT; port 0 takes a free one and says which."] = "127.0.0.1:8470"
    tls_cert: Annotated[str, "Certificate of the server, PEM; `fedzo certs` makes one."] = ""
    tls_key: Annotated[str, "Its private key, PEM."] = ""
    tls_ca: Annotated[str, "Authority, PEM; clients must show a certificate of it, with their name in it."] = ""
    tokens: Annotated[str, "File of the clients' names and token hashes; clients must give their token."] = ""
    insecure: Annotated[bool, "No TLS and no tokens; only where --listen is loopback."] = False
    gather: Annotated[
        float, "Seconds that a resumed run waits for all its clients before it goes on without the missing ones."
    ] = 10.0
    linger: Annotated[float, "Seconds that the server stays when the run has ended, for clients that come late."] = 10.0
    evaluate_on: Annotated[
        str, "Keep the weights too, check with them what clients attest, and evaluate them on these rows."
    ] = ""
    text_field: Annotated[str, "Field of those rows that holds the text."] = "text"

    def __post_init__(self) -> None:
        """Raises ConfigError, naming the option."""
        RunOptions.__post_init__(self)
        require_range("gather", self.gather, 0.0, MOST)
        require_range("linger", self.linger, 0.0, MOST)
        require_address("option listen", self.listen)
        if self.insecure:
            self._check_insecure()
        elif not (self.tls_cert and self.tls_key):
            raise ConfigError(
                "options --tls-cert and --tls-key must be given (`fedzo certs` makes both); on one machine alone, "
                "--insecure does without"
            )
        elif not (self.tokens or self.tls_ca):
            raise ConfigError("option --tokens or --tls-ca must be given, so that clients have to say who they are")

    def _check_insecure(self) -> None:
        if not is_loopback(self.listen):
            raise ConfigError(f"option insecure: {self.listen} is not loopback; anyone could join. Give TLS and tokens")
        if self.tls_cert or self.tls_key or self.tls_ca or self.tokens:
            raise ConfigError("option insecure is given together with TLS or tokens; leave one of them out")
