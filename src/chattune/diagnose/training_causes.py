"""Causes of failures that lie in the training itself."""

from chattune.diagnose.case import Case, Finding

_RISE = 1.05  # of the validation loss over its lowest value
_COPIED = 0.2  # share of replies
_SAME_REPLIES = 0.5  # share of sample replies that the adapter does not change


def over_fitting(case: Case) -> Finding | None:
    """Find out whether the model has learnt its conversations by heart.

    The signs are a validation loss that rises again, and replies that are copied from the data.
    """
    losses = [(m["step"], m["validation_loss"]) for m in case.metrics if "validation_loss" in m]
    evidence = []
    if losses:
        best_step, best = min(losses, key=lambda pair: pair[1])
        last_step, last = losses[-1]
        if last > _RISE * best:
            evidence.append(
                f"the validation loss was lowest after step {best_step} ({best:.3f}) and then rose "
                f"to {last:.3f} until step {last_step}"
            )
    copied = case.rate("copying")
    if copied is not None and copied.low > _COPIED:
        evidence += case.measured("copying", "copy a passage of a training reply")
    if not evidence:
        return None
    return Finding(
        cause="over_fitting",
        title="The model repeats what it was trained on",
        evidence=evidence,
        place="training.epochs",
        remedy="train for fewer steps, stop early (training.patience), or regularise: "
        "lora.dropout=0.1, training.weight_decay=0.1, training.neftune=5",
        command=f"chattune tune {case.run.folder}/recipe.yaml --set training.patience=1 --set "
        f"lora.dropout=0.1 --set training.neftune=5 --output {case.run.folder}-mended",
    )


def nothing_learnt(case: Case) -> Finding | None:
    """Find out whether the tuned model answers as its base does.

    The sample replies of both were drawn with the same seeds, so they differ if the adapter does
    anything.
    """
    same = sum(row["base"]["text"] == row["tuned"]["text"] for row in case.run.samples)
    if same < _SAME_REPLIES * len(case.run.samples):
        return None
    losses = [m["loss"] for m in case.metrics if m.get("loss") is not None]
    tenth = max(1, len(losses) // 10)
    first, last = (sum(part) / len(part) for part in (losses[:tenth], losses[-tenth:]))
    training = case.run.recipe.training
    return Finding(
        cause="nothing_learnt",
        title="The tuned model answers as its base does",
        evidence=[
            f"{same} of {len(case.run.samples)} sample replies are those of the base",
            f"the training loss went from {first:.3f} to {last:.3f} in {len(losses)} steps, at a "
            f"learning rate of {training.learning_rate:g}",
        ],
        place="training.learning_rate",
        remedy="train at a higher learning rate or for more steps",
        command=f"chattune tune {case.run.folder}/recipe.yaml --set training.learning_rate="
        f"{max(2e-4, 10 * training.learning_rate):g} --output {case.run.folder}-mended",
    )
