"""The progress of a training: the protocol of a watcher, and a bar for the terminal."""

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
    """An object that is told about every optimiser step."""

    def begin(self, done: int, total: int) -> None:
        """Take note that training starts, or goes on after `done` steps, of `total`."""

    def step(self, step: int, loss: float | None, tokens_per_s: float) -> None:
        """Take note of a step and its loss, in nats per supervised token."""

    def validated(self, step: int, loss: float) -> None:
        """Take note of the validation loss after a step, in nats per supervised token."""

    def end(self) -> None:
        """Take note that training is over or was interrupted."""


class Unwatched:
    """A watcher that ignores everything."""

    def begin(self, done: int, total: int) -> None:
        """Do nothing."""

    def step(self, step: int, loss: float | None, tokens_per_s: float) -> None:
        """Do nothing."""

    def validated(self, step: int, loss: float) -> None:
        """Do nothing."""

    def end(self) -> None:
        """Do nothing."""


class Bar:
    """A progress bar in a terminal; in a pipe or a file, a line after each tenth of the steps."""

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
        """Move the bar, and show the loss and the tokens per second."""
        loss_text = "" if loss is None else f"loss {loss:.3f}"
        numbers = f"{loss_text}{self._validation} {tokens_per_s:,.0f} tokens/s"
        if self._task is not None:
            self._bar.update(self._task, completed=step, numbers=numbers)
        elif step % max(1, self._total // 10) == 0 or step == self._total:
            self._console.print(f"step {step}/{self._total} {numbers}", highlight=False)

    def validated(self, step: int, loss: float) -> None:
        """Show the last validation loss beside the training loss from now on."""
        self._validation = f" (validation {loss:.3f})"

    def end(self) -> None:
        """Stop updating the bar and leave it on the screen."""
        if self._task is not None:
            self._bar.stop()
