"""The chat page."""

from chattune.serve.page import chat_page, serve_page

__all__ = ["chat_page", "serve_page"]
