"""Demo: dense against low-rank on the embedded digits, from training to a LiteRT file, in minutes.
  python examples/digits_demo.py [--epochs=12] [--run_dir=runs/demo]

Trains ResNet-20 twice with one recipe: dense, and low-rank (Tucker-2 at 40 % of the MACs, double soft orthogonality
from the first step on). Evaluates both from their saved files, converts both to LiteRT, and prints one table.
"""

import os

import numpy as np
from absl import app, flags

_EPOCHS = flags.DEFINE_integer("epochs", 12, "Number of epochs of each run.")
_RUN_DIR = flags.DEFINE_string("run_dir", "runs/demo", "Folder of the two runs. A second start resumes them.")
_RECIPE = {"dataset": "digits", "batch_size": 64, "learning_rate": 0.1, "lr_schedule": "one_cycle"}


def main(argv):
    """Runs the demo."""
    import keras

    import elrt_keras as elrt
    from elrt_keras.launch import cli, data
    from elrt_keras.launch.config import TrainConfig
    from elrt_keras.launch.training import run
    from elrt_keras.terminal.tables import render_table

    cli.quiet_logging()
    digits = data.load("digits")
    rows = []
    for title, options in {"dense": {"format": "dense"}, "low-rank": {"max_macs": 0.4}}.items():
        config = TrainConfig(epochs=_EPOCHS.value, **_RECIPE, **options)
        run_dir = os.path.join(_RUN_DIR.value, title)
        summary = run(config, run_dir)
        model = keras.models.load_model(os.path.join(run_dir, "model.keras"), compile=False)
        report = elrt.export.to_litert(
            model, os.path.join(run_dir, "model.tflite"), representative_data=digits.test_images
        )
        rows.append(
            (
                title,
                f"{summary['test_accuracy']:.2%}",
                f"{_litert_accuracy(report.path, digits):.2%}",
                f"{summary['params']:,}",
                f"{summary['macs']:,}",
                f"{report.size_bytes:,}",
            )
        )
    print(render_table(["ResNet-20, digits", "accuracy", "LiteRT accuracy", "params", "MACs", ".tflite bytes"], rows))


def _litert_accuracy(path, digits):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(path)
    classify = interpreter.get_signature_runner()
    predicted = [
        int(np.argmax(next(iter(classify(image=image[None].astype("float32")).values()))))
        for image in digits.test_images
    ]
    return float(np.mean(np.array(predicted) == digits.test_labels))


if __name__ == "__main__":
    app.run(main)
