"""`shrink_run`: makes smaller runs from a finished low-rank run."""

import dataclasses
import os

from elrt_keras.checks import number_in
from elrt_keras.graph.paths import iterate_layers
from elrt_keras.launch import rundir, training
from elrt_keras.layers import FactorizedLayer
from elrt_keras.plot import figures

FOLDER = "shrunk"
PARENT = "parent"


@dataclasses.dataclass(frozen=True)
class Recovery:
    """Settings for the recovery of a shrunk model.

    Attributes:
        epochs: number of epochs of fine-tuning; 0 for none.
        learning_rate: first learning rate; it falls to zero along a cosine.
        teacher: `"parent"`, a model as for `elrt-train --teacher`, or `None`.
        calibration_examples: number of training images to fit kernels and batch-norm statistics to; 0 for none.
    """

    epochs: int = 0
    learning_rate: float = 0.02
    teacher: str | None = None
    calibration_examples: int = 5120


def shrink_run(run_dir, budgets, recovery=Recovery(), folder=None, data_dir=None):
    """Makes a run for each budget from the weights of a finished low-rank run; a second call resumes the first.

    Args:
        run_dir: directory of the finished run.
        budgets: falling parts of the dense MACs, below those of the run.
        recovery: the `Recovery` of each new run.
        folder: folder of the new runs, each named after its budget; by default `RUN_DIR/shrunk`.
        data_dir: new place of the run's data.

    Returns:
        The summaries; the first one is that of the original run.

    Raises:
        ValueError: before any work, for a run that is not finished or not low-rank, or for wrong budgets; later, for
            the same reasons as `training.run`.
    """
    parent = rundir.read_summary(run_dir)
    if parent is None:
        raise ValueError(f"Expected a finished run. Received: {run_dir!r}")
    check_budgets(budgets, parent)
    model = rundir.load_model(run_dir)
    if not any(isinstance(layer, FactorizedLayer) for _, layer in iterate_layers(model)):
        raise ValueError(
            "Expected a low-rank run; elrt-train --initial_model makes one of a dense run. "
            f"Received: {run_dir!r} of format {parent['format']!r}"
        )
    folder, summaries = folder or os.path.join(run_dir, FOLDER), [parent]
    for number, budget in enumerate(budgets, 1):
        path = os.path.join(folder, f"{budget:g}")
        print(f"[{number}/{len(budgets)}] {budget:.1%} of the dense MACs: {path}", flush=True)
        summaries.append(training.run(_config(run_dir, budget, recovery, data_dir), path))
    return summaries


def check_budgets(budgets, parent):
    """Refuses budgets that do not fall, or are not below the MACs of the run with the summary `parent`.

    Raises:
        ValueError: with the wrong budget.
    """
    budgets = [number_in(budget, "(0, 1)", "max_macs") for budget in budgets]
    if not budgets or any(after >= before for before, after in zip(budgets, budgets[1:])):
        raise ValueError(f"Expected falling budgets, such as --max_macs=0.4,0.28. Received: max_macs={budgets}")
    if budgets[0] >= parent["macs_fraction"]:
        raise ValueError(
            f"Expected budgets below the MACs of the run, {parent['macs_fraction']:.1%} of the dense ones. "
            f"Received: max_macs={budgets[0]:g}"
        )


def _config(run_dir, budget, recovery, data_dir):
    """Returns the configuration of a shrunk run: its parent's, except for the settings of shrinking and recovery."""
    config = rundir.read_config(run_dir)
    return dataclasses.replace(
        config,
        data_dir=data_dir or config.data_dir,
        initial_model=run_dir,
        max_macs=budget,
        max_params=None,
        max_latency=None,
        rank_plan=None,
        rank_method="energy",
        factor_initializer="auto",
        warmup_epochs="0",
        calibration_examples=recovery.calibration_examples,
        teacher=run_dir if recovery.teacher == PARENT else recovery.teacher,
        teacher_weight=type(config).teacher_weight,
        temperature=type(config).temperature,
        learning_rate=recovery.learning_rate,
        lr_schedule="cosine",
        lr_warmup_epochs=0.0,
        orthogonality_schedule=None,
        ema=None,
        epochs=recovery.epochs,
        training_macs_of_dense=None,
    )


def plot_summaries(summaries, path):
    """Draws the test accuracy over the MACs of a run and of the smaller runs made from it."""
    figure = figures.new(2.8)
    axis = figure.subplots()
    points = [[100 * summary[name] for summary in summaries] for name in ("macs_fraction", "test_accuracy")]
    axis.plot(*points, "o-", markersize=4)
    axis.set_xlabel("MACs (% of dense)", fontsize=figures.MEDIUM)
    axis.set_ylabel("test accuracy (%)", fontsize=figures.MEDIUM)
    axis.tick_params(labelsize=figures.SMALL)
    axis.grid(alpha=0.3)
    figures.finish(figure, path)
