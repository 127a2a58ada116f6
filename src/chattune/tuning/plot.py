"""The plot of a run's loss."""

import io
import json
from pathlib import Path

from chattune.run import METRICS


def loss_plot(folder: Path) -> bytes:
    """Return a PNG of training and validation loss by step, read from metrics.jsonl."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = [json.loads(line) for line in (folder / METRICS).read_text("utf-8").splitlines()]
    training = [(m["step"], m["loss"]) for m in lines if "loss" in m]
    validation = [(m["step"], m["validation_loss"]) for m in lines if "validation_loss" in m]
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)  # draws without pyplot and its global state
    axes = figure.add_subplot()
    axes.plot(*zip(*training, strict=True), color="#9db4c0", linewidth=1, label="training")
    if validation:
        axes.plot(*zip(*validation, strict=True), color="#c8553d", marker="o", label="validation")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per supervised token)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    return png.getvalue()
