"""A judge: a model behind an OpenAI-compatible endpoint, which is asked about replies.

It is never needed. Its answers are kept in the cache, so that the same question is paid once, and
their number is limited.
"""

import hashlib
import json
import os
from dataclasses import dataclass, field
from typing import Any

from chattune.errors import UserError, first_line
from chattune.folders import cache_folder, write_json

_KEY = "OPENAI_API_KEY"  # the variable that holds the endpoint's key
_SECONDS = 120  # for one answer
_ANSWER_TOKENS = 16


@dataclass
class Judge:
    """A judge model at an endpoint; `budget` is the number of requests that it may still get.

    `url` is the endpoint's address up to `/v1`, such as `http://localhost:8000/v1`.
    """

    url: str
    model: str
    budget: int = 1000
    asked: int = field(default=0, init=False)

    def ask(self, question: str) -> str:
        """Return the judge's answer to a question, from the cache if it was asked before.

        Raises UserError if the endpoint cannot be reached or refuses, or if the budget is used up.
        """
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": _ANSWER_TOKENS,
        }
        digest = hashlib.sha256(json.dumps([self.url, body], sort_keys=True).encode()).hexdigest()
        path = cache_folder() / "judge" / f"{digest}.json"
        if path.is_file():
            return str(json.loads(path.read_text("utf-8"))["answer"])
        if self.asked >= self.budget:
            raise UserError(
                f"judge: its budget of {self.budget} requests is used up; raise --judge-budget, "
                "answers so far are kept"
            )
        self.asked += 1
        answer = self._request(body)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"model": self.model, "question": question, "answer": answer})
        return answer

    def _request(self, body: dict[str, Any]) -> str:
        import httpx

        key = os.environ.get(_KEY)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        address = f"{self.url.rstrip('/')}/chat/completions"
        try:
            response = httpx.post(address, json=body, headers=headers, timeout=_SECONDS)
            response.raise_for_status()
            return str(response.json()["choices"][0]["message"]["content"])
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError, TypeError) as error:
            raise UserError(
                f"judge {address}: no answer ({first_line(error)}); check --judge, --judge-model "
                f"and the key in {_KEY}"
            ) from error
