"""Every error that chattune raises on purpose.

The message of a `UserError` names the field or `file:line`, the value seen and the remedy. The
command line prints it without a traceback and exits with code 2.
"""

import signal


class ChattuneError(Exception):
    """The base class of chattune's errors, whose messages are written for the user."""

    exit_code = 1


class UserError(ChattuneError):
    """An error that the user can put right."""

    exit_code = 2


class RecipeError(UserError):
    """An invalid recipe, override or setting."""


class DataError(UserError):
    """Rows of a data source that cannot be read, recognised or used."""


class BaseError(UserError):
    """A base model that is missing, damaged or refused."""


class RunError(UserError):
    """A run folder that is missing, unfinished or damaged, or that a new run would overwrite."""


class OutputError(UserError):
    """An output folder that cannot be written to or is not empty."""


class ChatError(UserError):
    """A message that cannot be answered."""


class BadRow(ChattuneError):
    """A row of a data source that cannot become a conversation.

    The reader of the rows either counts the row as dropped or raises a DataError with its place.
    """


class HubError(ChattuneError):
    """A failed request to the Hub; the caller adds what was requested and the remedy."""


class HubNotFound(HubError):
    """A repository that the Hub does not have, or that the user may not read."""


class HubUnreachable(HubError):
    """A request for files that are not cached, while the Hub cannot be reached."""


class TrainingDiverged(UserError):
    """A training whose loss or gradient is no longer a finite number."""


class VerificationError(ChattuneError):
    """A saved model whose results differ from those of the trained model."""


class ChecksFailed(ChattuneError):
    """An evaluation whose replies do not pass a user's own checks."""


class Interrupted(ChattuneError):
    """Work that a signal stopped after its state was saved; the exit code is 128 + `signum`."""

    def __init__(self, message: str, signum: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.signum, self.exit_code = signum, 128 + signum


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, cut at 200 characters, or its class name.

    Characters that cannot be printed, such as those that control a terminal, become question marks.
    """
    text = str(error).strip()
    if not text:
        return type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in text.splitlines()[0][:200])
