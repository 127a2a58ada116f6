"""The definitions of the figures that a report shows."""

from collections.abc import Sequence

from chattune.evaluate import Evaluation
from chattune.evaluate.comparing import Comparison
from chattune.evaluate.sweeping import Sweep
from chattune.report.figures import SECTIONS, meaning, read, title


def definitions(
    evaluations: Sequence[Evaluation], comparisons: Sequence[Comparison], sweep: Sweep | None
) -> list[tuple[str, list[str]]]:
    """Return title and definition, in paragraphs, of every figure that is shown."""
    names = [n for e in evaluations for s in SECTIONS for n in read(e.scores.get(s, {}))]
    names += [d.name for comparison in comparisons for d in comparison.differences]
    names += [name for cell in (sweep.cells if sweep else ()) for name in cell.choosing]
    defined = [name for name in dict.fromkeys(names) if meaning(name).definition]
    return [(title(name), meaning(name).definition.split("\n")) for name in defined]
