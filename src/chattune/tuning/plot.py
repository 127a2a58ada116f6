"""The loss of a run as a picture, from its metrics."""

import io
import json
from pathlib import Path

from chattune.run import METRICS


def loss_plot(folder: Path) -> bytes:
    """A PNG of training and validation loss against steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = [json.loads(line) for line in (folder / METRICS).read_text("utf-8").splitlines()]
    training = [(x["step"], x["loss"]) for x in lines if "loss" in x]
    validation = [(x["step"], x["validation_loss"]) for x in lines if "validation_loss" in x]
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(*zip(*training, strict=True), color="#9db4c0", linewidth=1, label="training")
    if validation:
        axes.plot(*zip(*validation, strict=True), color="#c8553d", marker="o", label="validation")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats a supervised token)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    return picture.getvalue()
