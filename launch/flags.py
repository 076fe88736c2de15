"""Flags of `elrt-train` (absl), and conversion of a config to a flag file and back."""

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

# name → (kind, help). A kind is one of absl's names, or a tuple of choices.
_SPECS = {
    "model": ("string", "Name of the network, one of elrt_keras.models.list_models()."),
    "width": (
        "float",
        "Factor for the number of channels in all layers. A thin dense model with the MACs of a low-rank one is the "
        "simplest alternative to it.",
    ),
    "dataset": (
        "string",
        f"Data set: {', '.join(data_module.DATASETS)}, or folder:PATH with one folder of images per class. 'digits' "
        "needs no download; TFDS prepares the others.",
    ),
    "data_dir": ("string", "TFDS data directory. Default: TFDS' own."),
    "download": ("boolean", "Allow TFDS to download and prepare a missing data set."),
    "image_size": ("integer", "Height and width of streamed images, in pixels. Default: the model's own."),
    "bad_images": (
        stream.BAD_IMAGES,
        "Action for a streamed image that cannot be decoded: 'error' stops the run and names the image; 'skip' names, "
        "counts and leaves out the image.",
    ),
    "format": (
        "string",
        "Low-rank format of the layers. 'auto' chooses the best format for each layer; 'dense' trains the dense model.",
    ),
    "max_macs": (
        "float",
        "Budget: largest part of the dense model's MACs to keep, in (0, 1]. Default without any budget: 0.4. "
        "--rank_method=vbmf needs no budget.",
    ),
    "max_params": ("float", "Budget: largest part of the dense model's parameters to keep, in (0, 1]."),
    "max_latency": (
        "float",
        "Budget: largest part of the dense model's LiteRT time to keep, in (0, 1]. Each layer is timed on this machine "
        "or by --timer.",
    ),
    "timer": (
        "string",
        "Device to measure on for --max_latency: 'adb', 'ssh:HOST' or a command, as for elrt-plan. Default: this "
        "machine.",
    ),
    "times": (
        "string",
        "Measured times for --max_latency: a file of elrt-plan --save_times, or a folder of --export_timing_set.",
    ),
    "rank_plan": ("string", "JSON file with a rank plan, instead of a budget."),
    "rank_method": (
        tuple(config_module.methods.names()),
        "Method that chooses ranks within the budget. 'uniform' is the default; 'energy' keeps most of the kernels; "
        "'vbmf' and 'stable_rank' read trained weights; 'vbmf' needs no budget; 'latency' needs --max_latency.",
    ),
    "multiple_of": ("integer", "Every rank is a multiple of this number. Default: 8, which suits SIMD units."),
    "initial_model": (
        "string",
        "Trained --model to start from: a .keras file or a finished run. A dense model is decomposed; a low-rank model "
        "is shrunk to the budget. Fine-tuning takes --epochs, which may be 0.",
    ),
    "calibration_examples": (
        "integer",
        "Number of augmented training images to fit the kernels of --initial_model to. They also set the batch-norm "
        "statistics.",
    ),
    "teacher": (
        "string",
        "Trained teacher model: a .keras file or a finished run. The model learns its predictions beside the labels.",
    ),
    "teacher_weight": ("float", "Weight of the divergence from the teacher in the loss; the labels have weight 1."),
    "temperature": (
        "float",
        "Temperature that softens both predictions for the divergence. Above 1, small probabilities of the teacher "
        "count more.",
    ),
    "warmup_epochs": (
        "string",
        "Number of full-rank epochs before the model is decomposed. 'auto' decomposes once the stable ranks of the "
        "kernels have settled, after half of the run at the latest.",
    ),
    "orthogonality": (
        config_module.ORTHOGONALITY,
        "Penalty on the factor matrices. 'dso' is ELRT's penalty; 'stiefel' keeps the factors exactly orthonormal.",
    ),
    "orthogonality_strength": ("float", "Strength of the penalty, ρ in the ELRT paper."),
    "orthogonality_schedule": (
        "string",
        "Strengths by first epoch, such as '0:1e-2,20:1e-3,50:0'. Default: a constant strength.",
    ),
    "factor_initializer": (
        "string",
        "Initial factors: 'orthogonal_factors', 'spectral', any Keras initializer, or 'decomposed' (from trained "
        "weights). 'auto' is 'decomposed' if there are trained weights, else 'orthogonal_factors'.",
    ),
    "optimizer": (config_module.OPTIMIZERS, "Optimizer: 'sgd' is SGD with Nesterov momentum, 'adamw' is AdamW."),
    "learning_rate": ("float", "Peak learning rate for the global batch."),
    "momentum": ("float", "Momentum of SGD."),
    "lr_schedule": (
        config_module.LR_SCHEDULES,
        "Course of the learning rate. 'one_cycle' rises over the first 30 % of the run and ignores --lr_warmup_epochs.",
    ),
    "lr_step_epochs": ("integer", "Number of epochs between two steps of --lr_schedule=step."),
    "lr_step_factor": ("float", "Factor for the learning rate at each step of --lr_schedule=step."),
    "lr_warmup_epochs": ("float", "Number of first epochs in which the learning rate rises linearly."),
    "weight_decay": (
        "float",
        "Weight decay λ; biases and batch-norm have none. Decoupled decay skips the momentum m, so λ of 'frobenius' or "
        "of PyTorch's SGD corresponds to λ/(1−m) here: ten times as much at m = 0.9.",
    ),
    "weight_decay_kind": (
        config_module.WEIGHT_DECAYS,
        "Kind of weight decay: 'decoupled' decays each variable; 'frobenius' adds (λ/2)·‖W‖² of the composed kernels "
        "to the loss. 'auto' is 'frobenius' with SGD and 'decoupled' with AdamW.",
    ),
    "label_smoothing": ("float", "Label smoothing, in [0, 1]."),
    "augmentation": (
        "string",
        f"Augmentations: a list of {', '.join(config_module.AUGMENTATIONS)}; or 'none'. 'auto' chooses by data set. On "
        "streamed images, crop is the Inception crop.",
    ),
    "ema": (
        "float",
        "Momentum of a moving average of the weights, such as 0.999. Evaluation and the saved model use the averaged "
        "weights. Default: no average.",
    ),
    "epochs": ("integer", "Number of epochs. Default: 20."),
    "training_macs_of_dense": (
        "float",
        "Training budget instead of --epochs: 200 trains for the MACs of 200 epochs of the dense model. The teacher's "
        "MACs count too.",
    ),
    "batch_size": ("integer", "Number of images in the global batch."),
    "seed": ("integer", "Seed of initial weights, data order and augmentation."),
    "precision": (
        config_module.PRECISIONS,
        "Number type in which layers compute. Weights, penalties and orthogonality errors are always float32.",
    ),
    "recompute": (
        "boolean",
        "Compute the tensors between the factors again for the gradient. Training needs less memory and more time.",
    ),
    "tune": (
        "boolean",
        "Measure all equal ways to train each low-rank layer, and use the fastest. It takes one or two minutes per "
        "device. Default: yes if there is an accelerator.",
    ),
    "tune_for": (config_module.TUNE_FOR, "Goal of tuning: the shortest time, or the least memory."),
    "freeze_factors": (
        "boolean",
        "Train the cores in one epoch and the other factors in the next, in turn. Each step takes less time.",
    ),
    "sync_batch_norm": ("boolean", "Compute batch-norm statistics over the batch of all replicas, as on one device."),
    "on_nan": (
        config_module.ON_NAN,
        "Action for a NaN or infinite loss: 'stop' ends the run; 'rollback' returns to the last checkpoint and halves "
        "the learning rate, at most three times.",
    ),
    "checkpoint_minutes": (
        "float",
        "Minutes between checkpoints within an epoch. 0 saves a checkpoint only after each epoch.",
    ),
    "smoke": ("boolean", "Shorten the run to a quick check: 2 epochs of 4 small batches."),
}


def define():
    """Defines the flags of a training run."""
    flags.DEFINE_string("run_dir", None, "Directory of the run. A second start with it resumes the run.")
    flags.DEFINE_boolean("list", False, "Print models, data sets and recipes, then exit.")
    flags.DEFINE_boolean(
        "quantization_aware",
        False,
        "After the run, fine-tune its model with int8 rounding (tensorflow-model-optimization) and export it to "
        "RUN_DIR/quantization_aware. A finished run is not trained again.",
    )
    flags.DEFINE_integer("quantization_aware_epochs", 5, "Epochs of --quantization_aware.", lower_bound=1)
    flags.DEFINE_float("quantization_aware_learning_rate", 1e-3, "Learning rate of --quantization_aware.")
    flags.register_validator(
        "quantization_aware_learning_rate", lambda rate: 0 < rate < math.inf, "expected a finite number above 0"
    )
    flags.DEFINE_enum(
        "strategy",
        "auto",
        strategies.NAMES,
        "Devices to train on. none: one device; mirrored: all accelerators of this machine; multi_worker: all machines "
        "of a cluster (start the same command on each, with a shared run directory); tpu: a TPU; auto: multi_worker if "
        "a cluster of several workers is described, else mirrored if there are several accelerators, else none.",
    )
    flags.DEFINE_enum("cluster", "auto", clusters.NAMES, "Description of the cluster. auto: TF_CONFIG or Slurm.")
    flags.DEFINE_integer("num_gpus", None, "Number of GPUs to use on this machine. Default: all.", lower_bound=1)
    flags.DEFINE_integer("num_cpus", None, "Number of logical CPU devices to use instead of GPUs.", lower_bound=1)
    # `expanded` in train.py replaces --recipe by its flags before parsing; this definition is for --help.
    flags.DEFINE_string(
        "recipe", None, "Name of a published reduction, see --list. Other flags override the flags of the recipe."
    )
    define_fields(_SPECS)


def define_fields(names, **defaults):
    """Defines the flags of the named fields of `TrainConfig`; `defaults` replace the defaults of the fields."""
    for name in names:
        kind, text = _SPECS[name]
        default = defaults.get(name, _DEFAULTS[name])
        if isinstance(kind, tuple):
            flags.DEFINE_enum(name, default, list(kind), text)
        else:
            getattr(flags, f"DEFINE_{kind}")(name, default, text)


def to_config(values):
    """Returns the `TrainConfig` of parsed flag values.

    Raises:
        ValueError: if `TrainConfig` refuses a value.
    """
    return TrainConfig(**{name: getattr(values, name) for name in _SPECS})


def check_given(values, config):
    """Refuses flags on the command line that differ from the config of a finished run.

    Raises:
        ValueError: with both values.
    """
    differences = config.differences(to_config(values))
    text = ", ".join(
        f"--{name}: there {there!r}, now {now!r}" for name, (there, now) in differences.items() if values[name].present
    )
    if text:
        raise ValueError(f"Expected the flags of the finished run, not another configuration. Received: {text}")


def to_flagfile(config):
    """Writes a config as text for `--flagfile`: one flag per line, without the flags whose value is `None`."""
    values = dataclasses.asdict(config)
    return "".join(f"--{name}={_text(value)}\n" for name, value in values.items() if value is not None)


def from_flagfile(text):
    """Reads the config that `to_flagfile` wrote.

    Raises:
        ValueError: for a line that is not a flag of this version.
    """
    values = {}
    for line in text.splitlines():
        name, separator, value = line.removeprefix("--").partition("=")
        if not line.startswith("--") or not separator or name not in _SPECS:
            raise ValueError(f"Expected flags of elrt-train, one per line. Received: {line!r}")
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
