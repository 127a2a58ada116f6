"""Serving: a chat page for a model, on this machine."""

from chattune.serve.page import chat_page, serve_page

__all__ = ["chat_page", "serve_page"]
