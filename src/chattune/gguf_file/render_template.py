"""A program that renders a chat template, so that one that never ends cannot hold up chattune.

It reads `{"template": ..., "tokens": {...}}` as JSON on standard input, renders the template for
three conversations as transformers does, and prints why it cannot, or nothing. Whoever runs it ends
it after a while. It imports nothing of chattune or transformers, because that takes longer than
most templates.
"""

import json
import sys
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

_MEMORY = 1 << 29  # bytes that this process may map
_TALK = [
    {"role": "user", "content": "How far is it?"},
    {"role": "assistant", "content": "Two miles."},
    {"role": "user", "content": "And back?"},
]


class Generation(Extension):
    """The tags `generation` and `endgeneration` around a reply, which are left out."""

    tags = {"generation"}  # noqa: RUF012  # jinja2 reads it from the class

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return what is between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def main() -> None:
    """Render the template of standard input."""
    _limit_memory()
    given = json.load(sys.stdin)
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **_: json.dumps(value)
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: form
    try:
        template = environment.from_string(given["template"])
        for count in range(1, len(_TALK) + 1):
            template.render(messages=_TALK[:count], add_generation_prompt=True, **given["tokens"])
    except Exception as error:  # a template may raise whatever Python does
        sys.stdout.write(f"{type(error).__name__}: {error}")


def _raise(message: Any) -> None:
    raise TemplateError(str(message))


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # not a Unix: the time alone is limited
        return
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))


if __name__ == "__main__":
    main()
