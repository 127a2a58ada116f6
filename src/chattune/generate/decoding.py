"""Decoding parameters: how the next token is drawn."""

import json
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from chattune.errors import ChatError

_GREEDY = 1e-4  # logits over a temperature below this leave fp32's range; greedy is its limit

_RECOMMENDED = ("do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")


class Decoding(BaseModel):
    """Sampling parameters; the defaults are the study's (temperature 0.9, top-k 30, top-p 0.95).

    `temperature` 0 means greedy: the likeliest token each time. `top_k` 0, `top_p` 1 and `min_p` 0
    switch those filters off, `repetition_penalty` 1 that one (Keskar et al. 2019).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    do_sample: bool = Field(True, description="false is greedy, whatever the temperature")
    temperature: float = Field(0.9, ge=0, le=5, description="0 is greedy")
    top_k: int = Field(30, ge=0, description="keep the k likeliest tokens; 0 keeps all")
    top_p: float = Field(0.95, gt=0, le=1, description="keep the likeliest tokens of this mass")
    min_p: float = Field(0.0, ge=0, le=1, description="keep those this likely beside the likeliest")
    max_new_tokens: int = Field(256, ge=1, description="longest reply in tokens")
    repetition_penalty: float = Field(1.0, gt=0, le=5, description="1 is off")
    no_repeat_ngram: int = Field(0, ge=0, description="no run of n tokens comes twice; 0 is off")
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (), description="texts that end a reply, and are left out of it"
    )
    seed: int | None = Field(None, ge=0, lt=2**63, description="the same seed gives the same reply")

    @field_validator("stop", mode="before")
    @classmethod
    def _one_text_or_many(cls, value: Any) -> Any:
        if value is None:
            return ()
        return (value,) if isinstance(value, str) else value

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken each time."""
        return not self.do_sample or self.temperature <= _GREEDY

    @classmethod
    def of(cls, folder: Path) -> Self:
        """What the folder of a model or a run recommends in generation_config.json, else defaults.

        Raises ChatError if what it says there cannot be.
        """
        path = folder / "generation_config.json"
        try:
            said = json.loads(path.read_text("utf-8"))
            given = {n: said[n] for n in _RECOMMENDED if said.get(n) is not None}
        except FileNotFoundError:
            given = {}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ChatError(f"{path}: cannot be read ({error})") from error
        try:
            return cls().but(**given)
        except ChatError as error:
            raise ChatError(f"{path}: {error}") from error

    def but(self, /, **changes: Any) -> Self:
        """A copy with some fields changed, checked again. Raises ChatError naming the field."""
        try:
            return type(self)(**{**self.model_dump(), **changes})
        except ValidationError as error:
            detail = error.errors()[0]
            name = str(detail["loc"][0])
            if detail["type"] == "extra_forbidden":
                known = ", ".join(type(self).model_fields)
                raise ChatError(f"{name}: no such setting; there are {known}") from error
            raise ChatError(f"{name}: {detail['msg'].lower()}, not {detail['input']!r}") from error
