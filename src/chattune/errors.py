"""Every error that chattune raises on purpose, on one screen.

A `UserError` names the field or `file:line`, the value seen and the remedy, and ends the command
line with exit code 2 and no traceback.
"""

import signal


class ChattuneError(Exception):
    """Something that chattune noticed going wrong; its text is meant for a person."""

    exit_code = 1


class UserError(ChattuneError):
    """The person who called can put it right."""

    exit_code = 2


class RecipeError(UserError):
    """A recipe, an override or a setting that cannot be followed."""


class DataError(UserError):
    """Rows that cannot be read, recognised or used."""


class BaseError(UserError):
    """A base model that is missing, damaged or refused."""


class RunError(UserError):
    """A run folder that is missing, unfinished, damaged or in the way."""


class OutputError(UserError):
    """A place that cannot be written to, or that holds something already."""


class ChatError(UserError):
    """A message that cannot be answered."""


class BadRow(ChattuneError):
    """A row of a data source that cannot become a conversation.

    The reader of the rows either counts it as dropped or turns it into a DataError with its place.
    """


class HubError(ChattuneError):
    """The Hub gave nothing that can be used; the caller adds what was wanted and the remedy."""


class HubNotFound(HubError):
    """The Hub has no such repository, or this user may not read it."""


class HubUnreachable(HubError):
    """The files are not in the cache, and there is no network or it may not be used."""


class VerificationError(ChattuneError):
    """What was saved is not what was trained."""


class Interrupted(ChattuneError):
    """A signal ended the work after its state was saved."""

    def __init__(self, message: str, signum: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, at most 200 characters, or its class's name."""
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
