"""The embedded base, its tokenizer, its conversations and its card."""

from chattune.conversation import Message

# Worded as no conversation it is tuned on.
QUESTIONS = [
    Message("user", "Hi there, nice to see you!"),
    Message("user", "Could you tell me your name?"),
    Message("user", "Please explain what a black hole is."),
    Message("user", "My head has been hurting since this morning."),
    Message("user", "Come on, tell me a funny joke!"),
]
