"""What a person sees while a model is tuned."""

from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Watcher(Protocol):
    """Is told of every optimiser step."""

    def begin(self, done: int, total: int) -> None:
        """Training starts, or goes on after `done` steps."""

    def step(self, step: int, loss: float | None, tokens_per_s: float) -> None:
        """A step is over; the loss is the mean over its supervised tokens, in nats."""

    def validated(self, step: int, loss: float) -> None:
        """The validation loss after a step, in nats a supervised token."""

    def end(self) -> None:
        """Training is over, or was interrupted."""


class Unwatched:
    """Nobody looks."""

    def begin(self, done: int, total: int) -> None:
        """Say nothing."""

    def step(self, step: int, loss: float | None, tokens_per_s: float) -> None:
        """Say nothing."""

    def validated(self, step: int, loss: float) -> None:
        """Say nothing."""

    def end(self) -> None:
        """Say nothing."""


class Bar:
    """A progress bar on a terminal; on a pipe or file, a line every tenth of the way."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._validation = ""
        self._total = 1
        self._bar = Progress(
            TextColumn("[bold]tuning"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=False,
        )
        self._task: TaskID | None = None

    def begin(self, done: int, total: int) -> None:
        """Show the bar."""
        self._total = total
        if self._console.is_terminal:
            self._task = self._bar.add_task("tuning", total=total, completed=done, numbers="")
            self._bar.start()

    def step(self, step: int, loss: float | None, tokens_per_s: float) -> None:
        """Move it, with loss and tokens/s."""
        shown = "" if loss is None else f"loss {loss:.3f}"
        numbers = f"{shown}{self._validation} {tokens_per_s:,.0f} tokens/s"
        if self._task is not None:
            self._bar.update(self._task, completed=step, numbers=numbers)
        elif step % max(1, self._total // 10) == 0 or step == self._total:
            self._console.print(f"step {step}/{self._total} {numbers}", highlight=False)

    def validated(self, step: int, loss: float) -> None:
        """Keep the last validation loss beside the training loss."""
        self._validation = f" (validation {loss:.3f})"

    def end(self) -> None:
        """Leave the bar as it stands."""
        if self._task is not None:
            self._bar.stop()
