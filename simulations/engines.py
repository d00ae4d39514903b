"""The engines of `fedzo simulate`, loaded when they are asked for: that of Flower needs packages that others do not."""

import os
from importlib.util import find_spec
from typing import Protocol

from fedzo.errors import ConfigError
from fedzo.journal import Journal
from fedzo.run_directory import RunDirectory

from .federation import Federation
from .options import SimulateOptions
from .setup import Setting
from .simulator import Progress, Simulator, Watcher

ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""What Flower and Ray read when they are imported: nothing is reported to anyone, and Ray starts as it is installed."""


class Engine(Protocol):
    """One run, by some means; what is left in the run directory is the same by all."""

    def run(self) -> None:
        """Run until the journal has its end and the replica is there."""


class EngineType(Protocol):
    """Makes an engine; arguments as `Simulator`."""

    def __call__(
        self,
        options: SimulateOptions,
        setting: Setting,
        journal: Journal,
        run: RunDirectory,
        progress: Progress,
        watch: Watcher,
    ) -> Engine:
        """The engine of one run."""


def get_engine(name: str) -> EngineType:
    """An engine by its name in the options.

    Raises:
        ConfigError: it needs a package that is not installed.
    """
    if name == "inline":
        return Simulator
    if name == "processes":
        return Federation
    for module in ("flwr", "ray"):
        if find_spec(module) is None:
            raise ConfigError(
                f"engine 'flower' needs {module}, which is not installed: "
                "pip install -c constraints.txt '.[simulation]'"
            )
    os.environ |= ENVIRONMENT
    from .ray_federation import RayFederation  # noqa: PLC0415

    return RayFederation
