"""Open the chat page: `python running.py [RUN_OR_MODEL]`.

Without an argument it serves the newest finished run in runs/. If there is none, it offers to make
one with `chattune quickstart`.
"""

import sys
from pathlib import Path

from chattune.cli import main
from chattune.run import MANIFEST


def newest_run(folder: Path = Path("runs")) -> Path | None:
    """Return the run in `folder` that was finished last, or None."""
    manifests = folder.glob(f"*/{MANIFEST}")
    newest = max(manifests, key=lambda m: m.stat().st_mtime, default=None)
    return newest.parent if newest else None


def wants_quickstart() -> bool:
    """Ask whether to tune a chatbot now; without a terminal the answer is no."""
    print("There is no run in runs/ yet.", file=sys.stderr)
    question = "Tune SmolLM2 (without it, the embedded base) now? It takes minutes. [Y/n] "
    try:
        return sys.stdin.isatty() and input(question).strip().lower() in ("", "y", "yes")
    except EOFError:
        return False


if __name__ == "__main__":
    if len(sys.argv) == 1:
        run = newest_run()
        if run is not None:
            sys.argv += ["serve", str(run)]
        elif wants_quickstart():
            sys.argv += ["quickstart"]
        else:
            sys.exit("Make one with: chattune quickstart (or: chattune tune RECIPE)")
    else:
        sys.argv.insert(1, "serve")
    main()
