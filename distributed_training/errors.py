"""The error tree. The type says whose fault it is; the message says what was expected."""


class DistributedTrainingError(Exception):
    """Root of every error this project raises on purpose."""


class ConfigError(DistributedTrainingError, ValueError):
    """The user's input is wrong: a flag, a file, a manifest. Entry points print it and exit with `exit_code`."""

    exit_code = 2


class NotRegisteredError(ConfigError):
    """The hotkey has no uid on the subnet. The message holds the command that registers it."""

    exit_code = 3


class LocalFault(DistributedTrainingError):
    """Our own trouble: disk, memory, clock, data source. Never an observation about a peer."""


class OutOfMemory(LocalFault):
    """This machine or its accelerator has too little memory for what was tried. `retry`: less will be tried next."""

    def __init__(self, message: str, *, retry: bool) -> None:
        super().__init__(message)
        self.retry = retry


class StateDiverged(LocalFault):
    """Our state is not the majority's: what is left is to recompute it, or to join again."""


class SlicesMissing(StateDiverged):
    """Nobody gave us what counts: our state cannot be brought forward."""


class DataUnavailable(LocalFault):
    """A page could not be read or does not hash to what the page manifest says."""


class ChainFault(LocalFault):
    """The chain could not be reached or answered something we cannot read."""


class ChainUnreachable(ChainFault):
    """Nobody answered: an outage, which ends. The same call may work later."""


class ChainRefused(ChainFault):
    """The chain refused a write; `code` is the SDK's error code value (`rate_limited`, `not_registered`...)."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class PeerFault(DistributedTrainingError):
    """A peer sent or did something that the protocol forbids."""


class WireError(PeerFault, ValueError):
    """Foreign bytes that do not decode: wrong length, tag, digest or a non-finite number."""


class NetworkFault(DistributedTrainingError):
    """Nobody's fault that we can name: a connection broke, nothing came in time."""


class DeadlineMissed(NetworkFault):
    """A read, a write or a whole exchange did not end in the time it had."""
