"""chattune: fine-tune a pre-trained language model into a chatbot, prove it, and talk to it.

The commands of the command line are also functions: `prepare(recipe)` and `tune(recipe, output)`
take a shipped recipe's name, the path of a YAML file, a dict of fields, or what
`load_recipe(name, overrides)` returns, and `Chatbot.load(run_or_model)` loads a result.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from chattune.chat import Chatbot
    from chattune.conversation import Conversation, Message
    from chattune.data import prepare
    from chattune.generate import Decoding
    from chattune.models.export import export
    from chattune.recipe import Recipe, load_recipe
    from chattune.run import Run
    from chattune.tuning import tune

_DEFINED_IN = {
    "Chatbot": "chattune.chat",
    "Conversation": "chattune.conversation",
    "Message": "chattune.conversation",
    "Decoding": "chattune.generate",
    "Recipe": "chattune.recipe",
    "Run": "chattune.run",
    "export": "chattune.models.export",
    "load_recipe": "chattune.recipe",
    "prepare": "chattune.data",
    "tune": "chattune.tuning",
}
__all__ = [
    "Chatbot",
    "Conversation",
    "Decoding",
    "Message",
    "Recipe",
    "Run",
    "export",
    "load_recipe",
    "prepare",
    "tune",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `chattune --help` needs no torch."""
    if name in _DEFINED_IN:
        return getattr(importlib.import_module(_DEFINED_IN[name]), name)
    raise AttributeError(f"module 'chattune' has no attribute {name!r}")
