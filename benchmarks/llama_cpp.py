"""llama.cpp as a contender: through xllamacpp, on a GGUF file of the same weights in Q8_0."""

import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ARGUMENTS = {"temperature": 0.9, "top_k": 30, "top_p": 0.95, "ignore_eos": True}


def write_gguf(base: str, folder: Path) -> Path:
    """Write the base as a GGUF file in Q8_0, by the export of a run that changed next to nothing.

    A run of one step at a tiny rate is what chattune's export takes.
    """
    import chattune
    from chattune.models.export import export

    talk = folder / "talk.jsonl"
    rows = [{"prompt": f"Say {word}.", "completion": word} for word in ("one", "two", "three")]
    talk.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "base": base,
        "data": {"source": str(talk), "near_duplicates": "keep", "validation": 0},
        "lora": {"rank": 1},
        "training": {"steps": 1, "learning_rate": 1e-9},
    }
    run = chattune.tune(recipe, folder / "run")
    export(run.folder, gguf=folder / "base.gguf", quantize="q8_0")
    return folder / "base.gguf"


class LlamaCpp:
    """llama.cpp's server with eight slots, called in this process."""

    def __init__(self, file: str, threads: int, positions: int) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = file
        params.n_parallel, params.n_ctx = 8, 8 * positions
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        self._server = xllamacpp.Server(params)

    def timed(self, prompts: Sequence[list[int]], count: int) -> tuple[float, float, int]:
        """Return the seconds until the first token, the seconds after it, and the tokens after it.

        The prompts are answered together, each with `count` tokens.
        """
        times: list[float] = []  # append is atomic

        def answer(prompt: list[int]) -> None:
            request: dict[str, Any] = {"prompt": prompt, "n_predict": count, "stream": True}
            self._server.handle_completions(
                request | {"cache_prompt": False} | ARGUMENTS,
                lambda _: times.append(time.perf_counter()),
            )

        threads = [threading.Thread(target=answer, args=(prompt,)) for prompt in prompts]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # A token that completes no character makes no message, so messages only mark the times.
        return times[0] - started, times[-1] - times[0], len(prompts) * count - 1
