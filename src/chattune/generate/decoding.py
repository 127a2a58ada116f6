"""The decoding parameters, which say how the next token is chosen."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from chattune.errors import ChatError

# Dividing logits by a lower temperature leaves the range of fp32; the limit is greedy decoding.
_GREEDY = 1e-4
RECOMMENDED = ("do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")

Finish = Literal["cut", "sentence", "continue", "summary"]


class Decoding(BaseModel):
    """Decoding parameters; the defaults are the study's (temperature 0.9, top-k 30, top-p 0.95).

    `temperature` 0 means greedy decoding: each token is the most probable one. `top_k` 0, `top_p` 1
    and `min_p` 0 switch those filters off, and `repetition_penalty` 1 (Keskar et al. 2019) the
    penalty.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    do_sample: bool = Field(True, description="false is greedy at any temperature")
    temperature: float = Field(0.9, ge=0, le=5, description="divisor of the logits; 0 is greedy")
    top_k: int = Field(30, ge=0, description="keep the k most probable tokens; 0 keeps all")
    top_p: float = Field(
        0.95, gt=0, le=1, description="keep the most probable tokens up to this total probability"
    )
    min_p: float = Field(0.0, ge=0, le=1, description="minimum share of the highest probability")
    max_new_tokens: int = Field(256, ge=1, description="maximum length of a reply in tokens")
    repetition_penalty: float = Field(1.0, gt=0, le=5, description="1 is off")
    no_repeat_ngram: int = Field(0, ge=0, description="use no sequence of n tokens twice; 0 is off")
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (), description="texts that end a reply and are left out of it"
    )
    finish: Finish = Field(
        "cut",
        description="what becomes of a reply of max_new_tokens that has not ended: it is cut, ends "
        "with its last whole sentence (sentence), goes on to the end of its sentence (continue), "
        "or loses its least important sentences (summary)",
    )
    finish_tokens: int = Field(
        64, ge=0, description="tokens after max_new_tokens for `continue` and `summary`"
    )
    seed: int | None = Field(None, ge=0, lt=2**63, description="the same seed gives the same reply")

    @field_validator("stop", mode="before")
    @classmethod
    def _as_tuple(cls, value: Any) -> Any:
        if value is None:
            return ()
        return (value,) if isinstance(value, str) else value

    @property
    def greedy(self) -> bool:
        """True if each token is the most probable one."""
        return not self.do_sample or self.temperature <= _GREEDY

    @property
    def most_tokens(self) -> int:
        """The most tokens that an engine may write, for max_new_tokens and for `finish`."""
        extra = self.finish_tokens if self.finish in ("continue", "summary") else 0
        return self.max_new_tokens + extra

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Return the recommendations of a model or run folder, or else the defaults.

        They are read from generation_config.json. Raises ChatError if the file cannot be read or a
        value in it is invalid.
        """
        path = folder / "generation_config.json"
        try:
            config = json.loads(path.read_text("utf-8"))
            recommended = {n: config[n] for n in RECOMMENDED if config.get(n) is not None}
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ChatError(
                f"{path}: cannot be read ({error}); mend it, or remove it to use the defaults"
            ) from error
        try:
            return cls().but(**recommended)
        except ChatError as error:
            raise ChatError(f"{path}: {error}") from error

    def but(self, /, **changes: Any) -> Self:
        """Return a validated copy with some fields changed.

        Raises ChatError, with the field's name, for an unknown field or an invalid value.
        """
        try:
            return type(self)(**{**self.model_dump(), **changes})
        except ValidationError as error:
            detail = error.errors()[0]
            name = str(detail["loc"][0])
            if detail["type"] == "extra_forbidden":
                known = ", ".join(type(self).model_fields)
                raise ChatError(f"{name}: no such setting; there are {known}") from error
            raise ChatError(f"{name}: {detail['msg'].lower()}, not {detail['input']!r}") from error
