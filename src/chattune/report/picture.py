"""Pictures: a chart with the table of its figures, drawn as SVG for a page."""

import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import quoteattr

from chattune.report.escaping import visible
from chattune.report.tables import Table

if TYPE_CHECKING:
    import altair

# A chart is drawn as wide as a phone shows it, so that its text is as large as the page's there.
# Wider screens enlarge it.
WIDTH = 350
LABELS = 130  # of this width, for the labels of rows
ROW_WIDTH = WIDTH - LABELS - 20  # for what a row shows

# Okabe and Ito's colours (2008), which people with any colour vision can tell apart. The page's
# style replaces them by lighter ones on a dark background.
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56606a"]
SHAPES = ["circle", "square", "diamond", "triangle-up", "cross", "triangle-down"]


@dataclass(frozen=True)
class Picture:
    """A chart with a name for links, a title, a sentence that explains it, and its figures.

    There is no chart where a table says more.
    """

    name: str
    title: str
    about: str
    table: Table
    chart: "altair.TopLevelMixin | None" = None

    def svg(self) -> str:
        """Return the chart as an SVG element, or an empty string."""
        return "" if self.chart is None else _svg(self.chart, self.name, self.title)


def _svg(chart: Any, name: str, title: str) -> str:
    # The page is printed, opened offline and read on phones. Vega's JavaScript would add a megabyte
    # to it and need a browser that runs it, and the table beside each chart holds the numbers that
    # its tooltips would show. So the charts are drawn here.
    file = io.StringIO()
    chart.properties(background="transparent").configure(**_theme()).save(file, format="svg")
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", file.getvalue())
    # All charts get one width, so that a page shows the text of all in one size.
    svg = re.sub(
        r'width="([\d.]+)" height="[\d.]+" viewBox="0 0 [\d.]+',
        lambda m: f'viewBox="0 0 {max(WIDTH, float(m[1])):g}',
        svg,
        count=1,
    )
    # Several charts of one page number their clip paths alike.
    svg = re.sub(r'(id="|url\(#)', rf"\g<1>{name}-", svg)
    label = quoteattr(visible(title))
    return visible(svg.replace("<svg ", f'<svg role="img" aria-label={label} ', 1))


def _theme() -> dict[str, Any]:
    text = {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal"}
    return {
        "aria": False,
        "mark": {"color": COLOURS[0]},
        "font": "sans-serif",
        "view": {"stroke": None},
        "range": {"category": COLOURS, "symbol": SHAPES},
        "axis": {
            **text,
            "domain": False,
            "ticks": False,
            "tickCount": 5,
            "labelFlush": False,
            "labelPadding": 6,
            "titlePadding": 8,
        },
        "legend": {**text, "orient": "top", "title": None, "labelLimit": WIDTH, "columns": 1},
        "header": {**text, "title": None, "labelAnchor": "start", "labelFontWeight": "bold"},
        "line": {"strokeWidth": 2},
        "rule": {"strokeWidth": 2, "color": COLOURS[0]},
        "point": {"size": 60, "filled": True, "opacity": 1},
        "facet": {"spacing": 14},
    }
