"""The embedded base model with its tokenizer, its conversations and its model card."""

from chattune.conversation import Message

# `chattune quickstart` asks these. None of them is worded like a question of the conversations.
QUESTIONS = [
    Message("user", "Hi there, nice to see you!"),
    Message("user", "Could you tell me your name?"),
    Message("user", "Please explain what a black hole is."),
    Message("user", "My head has been hurting since this morning."),
    Message("user", "Come on, tell me a funny joke!"),
]
