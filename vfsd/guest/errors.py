"""What can go wrong around a guest, as two exceptions; the message is a sentence a user can act on."""


class GuestError(Exception):
    """The guest could not be started, or was lost. `report` holds log extracts, ready to print, or is empty."""

    def __init__(self, message: str, report: str = "") -> None:
        super().__init__(message)
        self.report = report

    def __str__(self) -> str:
        return f"{self.args[0]}\n{self.report}" if self.report else str(self.args[0])


class TimeLimitError(GuestError):
    """A command took longer than it was given; every process of its session has been killed, and the guest goes on."""
