"""Progress on stderr: a line a finished stage, a bar for the running one."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from harness.records import Stage

__all__ = ["ConsoleObserver"]


class _LeftColumn(TimeRemainingColumn):
    """The time left: as the job knows it, counted down since it said so, else from the steps."""

    def render(self, task: Task) -> Text:
        """The text of the column."""
        left_s = task.fields.get("left_s")
        if left_s is None:
            return super().render(task)
        seconds = max(0, round(left_s - (task.get_time() - task.fields["said_at"])))
        return Text(f"{seconds // 60}:{seconds % 60:02d} left", style="progress.remaining")


class ConsoleObserver:
    """An ``Observer`` that draws on stderr; a context manager, so that the bar always goes away."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(stderr=True, quiet=quiet, highlight=False)
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            _LeftColumn(),
            console=self._console,
            transient=True,
            disable=quiet or not self._console.is_terminal,
        )
        self._task: TaskID | None = None
        self._resumed = False
        self._stage = ""
        self._waiting: object = None

    def __enter__(self) -> "ConsoleObserver":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begin(self, stage: str, *, resumed: bool) -> None:
        """Show that ``stage`` runs."""
        self._resumed = resumed
        self._stage = stage
        self._drop()
        if resumed:
            return
        self._task = self._bar.add_task(stage, total=None)
        if self._bar.disable:
            self._console.print(f"… {stage}")

    def progress(self, done: int, total: int, *, left_s: float | None = None) -> None:
        """Move the bar of the running stage; ``left_s`` takes the place of the bar's own guess."""
        if self._task is not None:
            now = self._bar.get_time()
            self._bar.update(self._task, completed=done, total=total, left_s=left_s, said_at=now)

    def event(self, event: dict[str, object]) -> None:
        """Say beside the bar what the board is doing; what delays it gets a line."""
        kind = event.get("kind")
        if kind == "reconnect":
            self.warn(f"the connection to the board broke; trying again ({event.get('reason')})")
        elif kind == "retry":  # of a job, which the session repeats, or of a step within one
            reason = event.get("reason")
            self.warn(str(event.get("what")) if reason is None else f"{reason}; running it again")
        elif kind == "conditions":
            self.warn(str(event.get("reason")))
        elif kind == "waiting" and event.get("job") != self._waiting:
            self._waiting = event.get("job")
            self.warn(f"waiting for {event.get('what')}")
        if self._task is not None and kind in ("progress", "waiting"):
            what = str(event.get("what"))
            if event.get("total"):
                what += f": {event.get('done')} of {event.get('total')}"
            self._bar.update(self._task, description=f"{self._stage} ({what})")

    def end(self, stage: Stage) -> None:
        """Print the finished stage's line."""
        self._drop()
        how = "kept from an earlier run" if self._resumed else f"{stage.wall_s:.1f} s"
        detail = f": {stage.detail}" if stage.detail else ""
        self._console.print(f"[green]✓[/green] {stage.name} ({how}){detail}", soft_wrap=True)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Show that ``name`` runs inside, and its line when it is done."""
        self.begin(name, resumed=False)
        start = time.monotonic()
        yield
        self.end(Stage(name=name, wall_s=time.monotonic() - start))

    def warn(self, text: str) -> None:
        """Print a warning."""
        self._console.print(f"[yellow]![/yellow] {text}", soft_wrap=True)

    def _drop(self) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None
