"""The absl flags of `elrt-train`, and a config as a flag file and back."""

import dataclasses
import math

from absl import flags

from elrt_keras.launch import clusters, strategies
from elrt_keras.launch import config as config_module
from elrt_keras.launch import data as data_module
from elrt_keras.launch.config import TrainConfig
from elrt_keras.launch.data import stream

_BOOLEANS = {"true": True, "false": False}
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(TrainConfig)}

# name → (kind, help). Kinds are absl's; choices come with the kind.
_SPECS = {
    "model": ("string", "Which model; see elrt_keras.models.list_models()."),
    "width": (
        "float",
        "Multiplier of the model's channels. A dense model thinned to the MACs of a low-rank one is the plainest "
        "alternative to it.",
    ),
    "dataset": (
        "string",
        f"Data set, one of {', '.join(data_module.DATASETS)}, or folder:PATH with one folder of images per class. "
        "'digits' is embedded; the others come through TFDS.",
    ),
    "data_dir": ("string", "TFDS data directory; TFDS' own default if not given."),
    "download": ("boolean", "Let TFDS download and prepare a data set that is missing."),
    "image_size": ("integer", "Height and width of streamed images; the model's own if not given."),
    "bad_images": (
        stream.BAD_IMAGES,
        "A streamed image that cannot be decoded ends the run with its name, or is left out, named and counted.",
    ),
    "format": ("string", "Low-rank format; 'auto' for the one that suits each layer; 'dense' for the dense twin."),
    "max_macs": (
        "float",
        "Keep at most this part of the dense MACs, in (0, 1]; 0.4 if no budget is given (with vbmf none is needed).",
    ),
    "max_params": ("float", "Keep at most this part of the dense parameters, in (0, 1]."),
    "max_latency": (
        "float",
        "Take at most this part of the dense model's time on LiteRT, measured layer by layer on this processor.",
    ),
    "timer": (
        "string",
        "Where --max_latency is measured: 'adb', 'ssh:HOST' or a command, see elrt-plan; this machine if not given.",
    ),
    "times": (
        "string",
        "Times for --max_latency that elrt-plan --save_times wrote, or a folder of --export_timing_set.",
    ),
    "rank_plan": ("string", "Rank plan (JSON) to use instead of a budget."),
    "rank_method": (
        tuple(config_module.methods.names()),
        "How ranks are chosen under the budget, 'uniform' by default; 'energy' keeps most of the kernels, "
        "'vbmf' and 'stable_rank' read trained weights, 'vbmf' needs no budget, 'latency' goes with --max_latency.",
    ),
    "multiple_of": ("integer", "Ranks are multiples of this; 8 if not given, which SIMD units like."),
    "initial_model": (
        "string",
        "A trained --model (.keras, or a finished run) to start from: a dense one is decomposed, a low-rank one is "
        "shrunk to the budget. It is then fine-tuned for --epochs, which may be 0.",
    ),
    "calibration_examples": (
        "integer",
        "Training images, augmented, to which the kernels of --initial_model are fitted, and from which batch-norm "
        "statistics are taken.",
    ),
    "teacher": (
        "string",
        "A trained model (.keras, or a finished run) whose predictions the model learns beside the labels.",
    ),
    "teacher_weight": ("float", "Weight of the divergence from the teacher, beside 1 for the labels."),
    "temperature": (
        "float",
        "Temperature that softens both predictions for the divergence; above 1 the teacher's small probabilities "
        "count more.",
    ),
    "warmup_epochs": (
        "string",
        "Full-rank epochs before the model is decomposed and trained on; 'auto' switches when the stable ranks of "
        "the kernels have settled, after half of the run at the latest.",
    ),
    "orthogonality": (
        config_module.ORTHOGONALITY,
        "Penalty on the factor matrices (dso is ELRT's), or 'stiefel' to keep them exactly orthonormal.",
    ),
    "orthogonality_strength": ("float", "Strength of the penalty, ρ in ELRT."),
    "orthogonality_schedule": ("string", "Strengths from epochs on, such as '0:1e-2,20:1e-3,50:0'."),
    "factor_initializer": (
        "string",
        "'orthogonal_factors', 'spectral', a Keras initializer for each factor, or 'decomposed' for trained weights; "
        "'auto' is 'decomposed' where there are such weights and 'orthogonal_factors' elsewhere.",
    ),
    "optimizer": (config_module.OPTIMIZERS, "SGD with Nesterov momentum, or AdamW."),
    "learning_rate": ("float", "Peak learning rate, for the global batch."),
    "momentum": ("float", "Momentum of SGD."),
    "lr_schedule": (
        config_module.LR_SCHEDULES,
        "Learning rate over the run; one_cycle rises over the first 30 % and ignores --lr_warmup_epochs.",
    ),
    "lr_step_epochs": ("integer", "Epochs between the steps of --lr_schedule=step."),
    "lr_step_factor": ("float", "Factor of each step of --lr_schedule=step."),
    "lr_warmup_epochs": ("float", "Epochs over which the learning rate rises linearly."),
    "weight_decay": (
        "float",
        "Weight decay λ; biases and batch-norm have none. Decoupled decay does not pass through the momentum m: what "
        "λ is to PyTorch's SGD and to 'frobenius' is λ/(1−m) here, ten times as much at m = 0.9.",
    ),
    "weight_decay_kind": (
        config_module.WEIGHT_DECAYS,
        "'decoupled' decays each variable; 'frobenius' adds (λ/2)·‖W‖² of the composed kernels to the loss; 'auto' is "
        "'frobenius' with SGD and 'decoupled' with AdamW.",
    ),
    "label_smoothing": ("float", "Label smoothing, in [0, 1]."),
    "augmentation": (
        "string",
        f"Comma list of {', '.join(config_module.AUGMENTATIONS)}; 'none'; 'auto' picks by data set. "
        "On streamed images crop is the Inception crop.",
    ),
    "ema": (
        "float",
        "Momentum of a moving average of the weights, such as 0.999. Every evaluation and the saved model have the "
        "averaged weights.",
    ),
    "epochs": ("integer", "Epochs; 20 if not given."),
    "training_macs_of_dense": (
        "float",
        "In place of --epochs: train for as many epochs as the training MACs of so many epochs of the dense model pay "
        "for, those of the teacher included. 200 is: at the cost of 200 dense epochs.",
    ),
    "batch_size": ("integer", "Global batch size."),
    "seed": ("integer", "Seed of initial weights, data order and augmentation."),
    "precision": (
        config_module.PRECISIONS,
        "What layers compute in; weights, penalties and orthogonality errors are float32 in any case.",
    ),
    "recompute": (
        "boolean",
        "Compute what lies between the factors again for the gradient: less memory in training, more time.",
    ),
    "tune": (
        "boolean",
        "Time the equal ways to train each low-rank layer, and train it in the fastest one; by default where there is "
        "an accelerator. It takes a minute or two, once for each device.",
    ),
    "tune_for": (config_module.TUNE_FOR, "What tuning looks for: the fastest way, or the one that keeps least memory."),
    "freeze_factors": (
        "boolean",
        "Train cores and other factors of the low-rank layers in turn, from epoch to epoch: less time to a step.",
    ),
    "sync_batch_norm": ("boolean", "Batch-norm statistics over the batch of all replicas, as one device would see it."),
    "on_nan": (
        config_module.ON_NAN,
        "A loss that is NaN or infinite ends the run, or takes it back to its last checkpoint with the learning rate "
        "halved, at most three times.",
    ),
    "checkpoint_minutes": ("float", "Minutes between checkpoints within an epoch; 0 for one after each epoch alone."),
    "smoke": ("boolean", "Shrink the run to a check that takes seconds: 2 epochs of 4 small batches."),
}


def define():
    """Defines the flags of a training run."""
    flags.DEFINE_string("run_dir", None, "Directory of the run. A second start there resumes.")
    flags.DEFINE_boolean("list", False, "Print models, data sets and recipes, and stop.")
    flags.DEFINE_boolean(
        "quantization_aware",
        False,
        "After the run (a finished one is taken as it is): fine-tune its model with int8 rounding by "
        "tensorflow-model-optimization and export it to RUN_DIR/quantization_aware.",
    )
    flags.DEFINE_integer("quantization_aware_epochs", 5, "Epochs of that fine-tuning.", lower_bound=1)
    flags.DEFINE_float("quantization_aware_learning_rate", 1e-3, "Its learning rate.")
    flags.register_validator(
        "quantization_aware_learning_rate", lambda rate: 0 < rate < math.inf, "expected a finite number above 0"
    )
    flags.DEFINE_enum(
        "strategy",
        "auto",
        strategies.NAMES,
        "Devices to train on. mirrored: the accelerators of this machine; multi_worker: those of a cluster, started on "
        "each of its machines with the same flags and a run directory that all of them see; auto: multi_worker where a "
        "cluster of several is described, mirrored where there are several accelerators, else none.",
    )
    flags.DEFINE_enum("cluster", "auto", clusters.NAMES, "What describes the cluster; auto: TF_CONFIG or Slurm.")
    flags.DEFINE_integer("num_gpus", None, "GPUs of this machine to use; all if not given.", lower_bound=1)
    flags.DEFINE_integer("num_cpus", None, "Logical CPU devices in the place of GPUs, for trials.", lower_bound=1)
    # `expanded` has put the recipe's flags in its place before flags are parsed; here it is for --help.
    flags.DEFINE_string(
        "recipe", None, "Flags for a published reduction, see --list; flags beside it override its own."
    )
    define_fields(_SPECS)


def define_fields(names, **defaults):
    """Defines the flags of some fields of `TrainConfig`, with its defaults or others."""
    for name in names:
        kind, text = _SPECS[name]
        default = defaults.get(name, _DEFAULTS[name])
        if isinstance(kind, tuple):
            flags.DEFINE_enum(name, default, list(kind), text)
        else:
            getattr(flags, f"DEFINE_{kind}")(name, default, text)


def to_config(values):
    """The `TrainConfig` of parsed flag values.

    Raises:
        ValueError: as `TrainConfig` does.
    """
    return TrainConfig(**{name: getattr(values, name) for name in _SPECS})


def check_given(values, config):
    """Refuses flags that are given and say something else than the config of a finished run.

    Raises:
        ValueError: with both.
    """
    differences = config.differences(to_config(values))
    told = ", ".join(
        f"--{name}: there {there!r}, now {now!r}" for name, (there, now) in differences.items() if values[name].present
    )
    if told:
        raise ValueError(f"The run is finished, with another configuration. Received: {told}")


def to_flagfile(config):
    """A config as text that `--flagfile` reads: one flag a line, those without a value left out."""
    values = dataclasses.asdict(config)
    return "".join(f"--{name}={_text(value)}\n" for name, value in values.items() if value is not None)


def from_flagfile(text):
    """The config that `to_flagfile` wrote.

    Raises:
        ValueError: for a line that is no flag of this version.
    """
    values = {}
    for line in text.splitlines():
        name, separator, value = line.removeprefix("--").partition("=")
        if not line.startswith("--") or not separator or name not in _SPECS:
            raise ValueError(f"Expected flags of elrt-train, one a line. Received: {line!r}")
        if name in values:
            raise ValueError(f"Expected each flag once. Received: {line!r} after another --{name}")
        values[name] = _parsed(_SPECS[name][0], value, line)
    return TrainConfig(**values)


def _text(value):
    return str(value).lower() if isinstance(value, bool) else str(value)


def _parsed(kind, text, line):
    readers = {"float": float, "integer": int, "boolean": lambda word: _BOOLEANS[word.lower()]}
    try:
        return readers.get(kind, str)(text)
    except (ValueError, KeyError) as error:
        raise ValueError(f"Expected a value of kind {kind} in {line!r}. Received: {text!r}") from error
