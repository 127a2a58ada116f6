"""chattune: fine-tune a pre-trained language model into a chatbot, prove it, and talk to it.

The verbs of the command line are functions here: `prepare(recipe)`, `tune(recipe, output)`,
`Chatbot.load(run_or_model)`; `load_recipe(name)` gives them their recipe.
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

_HOMES = {
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
    """Import a public name when it is first used: `chattune --help` needs no torch."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'chattune' has no attribute {name!r}")
