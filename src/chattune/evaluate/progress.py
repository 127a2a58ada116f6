"""The progress of an evaluation in the terminal."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from chattune.evaluate.replying import Progress as Watcher


@contextmanager
def shown(console: Console) -> Iterator[Watcher]:
    """Yield a function that shows how many replies there are and how long the rest will take.

    In a pipe or a file it is a line after each tenth of the replies.
    """
    if console.is_terminal:
        columns = [
            TextColumn("[bold]replies"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        ]
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("replies", total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    begin: list[tuple[float, int]] = []

    def line(done: int, total: int) -> None:
        begin.append((time.monotonic(), done))
        (start, first), (now, _) = begin[0], begin[-1]
        if done > first and (done % max(1, total // 10) == 0 or done == total):
            left = (now - start) / (done - first) * (total - done)
            console.print(
                f"{done} of {total} replies, about {left / 60:.1f} minutes left", highlight=False
            )

    yield line
