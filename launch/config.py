"""`TrainConfig`: all settings of a training run. The constructor checks them."""

import dataclasses
import math

from elrt_keras import formats, initializers, models, regularizers
from elrt_keras.checks import int_in, number_in, one_of
from elrt_keras.launch import data as data_module
from elrt_keras.launch.data.augment import NAMES as AUGMENTATIONS
from elrt_keras.launch.data.stream import BAD_IMAGES
from elrt_keras.ranks import methods
from elrt_keras.ranks.survey import AUTO

ORTHOGONALITY = ("none", *regularizers.BY_NAME, "stiefel")
OPTIMIZERS = ("sgd", "adamw")
LR_SCHEDULES = ("cosine", "step", "one_cycle", "constant")
WEIGHT_DECAYS = ("auto", "decoupled", "frobenius")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
ON_NAN = ("stop", "rollback")
TUNE_FOR = ("time", "memory")
# Digits must not be mirrored.
_DEFAULT_AUGMENTATION = {"digits": "crop", "svhn_cropped": "crop"}
_GREY = ("digits", "fashion_mnist")
_DEFAULT_MAX_MACS = 0.4
_DEFAULT_EPOCHS = 20
_BUDGETS = ("max_macs", "max_params", "max_latency")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run. The fields are the flags of `elrt-train`, whose help explains them.

    Raises:
        ValueError: for an unknown name, a value out of range, or fields that exclude each other.
    """

    model: str = "resnet20"
    width: float = 1.0
    dataset: str = "digits"
    data_dir: str | None = None
    download: bool = False
    image_size: int | None = None
    bad_images: str = "error"
    format: str = "tucker2"
    max_macs: float | None = None
    max_params: float | None = None
    max_latency: float | None = None
    timer: str | None = None
    times: str | None = None
    rank_plan: str | None = None
    rank_method: str | None = None
    multiple_of: int | None = None
    initial_model: str | None = None
    calibration_examples: int = 0
    teacher: str | None = None
    teacher_weight: float = 1.0
    temperature: float = 1.0
    warmup_epochs: str = "0"
    orthogonality: str = "dso"
    orthogonality_strength: float = 1e-2
    orthogonality_schedule: str | None = None
    factor_initializer: str = "auto"
    optimizer: str = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.9
    lr_schedule: str = "cosine"
    lr_step_epochs: int = 55
    lr_step_factor: float = 0.2
    lr_warmup_epochs: float = 0.0
    weight_decay: float = 5e-4
    weight_decay_kind: str = "auto"
    label_smoothing: float = 0.0
    augmentation: str = "auto"
    ema: float | None = None
    epochs: int | None = None
    training_macs_of_dense: float | None = None
    batch_size: int = 128
    seed: int = 0
    precision: str = "float32"
    recompute: bool = False
    tune: bool | None = None
    tune_for: str = "time"
    freeze_factors: bool = False
    sync_batch_norm: bool = True
    on_nan: str = "stop"
    checkpoint_minutes: float = 15.0
    smoke: bool = False

    def __post_init__(self):
        # Resolve fields such as "auto" once, here, so that two equal runs have equal configs.
        if self.augmentation == "auto":
            self._set(augmentation=_DEFAULT_AUGMENTATION.get(self.dataset, "crop,flip"))
        if self.epochs is None and self.training_macs_of_dense is None:
            self._set(epochs=_DEFAULT_EPOCHS)
        if self.smoke:
            self._set(epochs=min(self.epochs or 2, 2), batch_size=min(self.batch_size, 32))
            self._set(training_macs_of_dense=None)
        if self.format != "dense" and self.rank_method != "vbmf" and not self._given("rank_plan", *_BUDGETS):
            self._set(max_macs=_DEFAULT_MAX_MACS)
        if self.rank_method is None:
            self._set(rank_method=methods.chosen_name(None, self.max_latency, self.format == AUTO))
        if self.format == "dense":
            self._set(orthogonality="none", orthogonality_schedule=None)
        self._set(warmup_epochs=_plain_count(str(self.warmup_epochs).strip()))
        if self.smoke:
            self._shorten_warmups()
        if self.factor_initializer == "auto":
            self._set(factor_initializer="decomposed" if self.has_trained_weights else "orthogonal_factors")
        if self.weight_decay_kind == "auto":
            self._set(weight_decay_kind="frobenius" if self.optimizer == "sgd" else "decoupled")
        self._check_names()
        if self.image_size is None and data_module.is_streamed(self.dataset):
            self._set(image_size=models.default_input_shape(self.model)[0])
        self._check_numbers()
        self._check_combinations()

    def _set(self, **values):
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _shorten_warmups(self):
        self._set(lr_warmup_epochs=min(self.lr_warmup_epochs, self.epochs))
        if self.warmup_epochs.isdecimal():
            self._set(warmup_epochs=str(min(int(self.warmup_epochs), self.epochs - 1)))

    def _given(self, *names):
        return [name for name in names if getattr(self, name) is not None]

    def _check_names(self):
        one_of(self.model, models.list_models(), "model")
        if not self.dataset.startswith(data_module.FOLDER):
            one_of(self.dataset, [*data_module.DATASETS, f"{data_module.FOLDER}PATH"], "dataset")
        one_of(self.bad_images, BAD_IMAGES, "bad_images")
        one_of(self.format, ["dense", AUTO, *formats.names()], "format")
        one_of(self.orthogonality, ORTHOGONALITY, "orthogonality")
        one_of(self.optimizer, OPTIMIZERS, "optimizer")
        one_of(self.lr_schedule, LR_SCHEDULES, "lr_schedule")
        one_of(self.weight_decay_kind, WEIGHT_DECAYS, "weight_decay_kind")
        one_of(self.precision, PRECISIONS, "precision")
        one_of(self.on_nan, ON_NAN, "on_nan")
        one_of(self.tune_for, TUNE_FOR, "tune_for")
        for name in self.augmentations:
            one_of(name, ["none", *AUGMENTATIONS], "augmentation")
        one_of(self.rank_method, methods.names(), "rank_method")
        if self.factor_initializer != "decomposed":
            initializers.get(self.factor_initializer)

    def _check_numbers(self):
        for name in ("batch_size", "lr_step_epochs", *self._given("image_size")):
            int_in(getattr(self, name), "[1, inf)", name)
        int_in(self.calibration_examples, "[0, inf)", "calibration_examples")
        for name in self._given("epochs"):
            int_in(self.epochs, "[1, inf)" if self.initial_model is None else "[0, inf)", name)
        int_in(self.seed, f"[0, {2**31 - 1}]", "seed")
        number_in(self.learning_rate, "(0, inf)", "learning_rate")
        number_in(self.width, "(0, 64]", "width")
        number_in(self.momentum, "[0, 1)", "momentum")
        number_in(self.lr_step_factor, "(0, 1]", "lr_step_factor")
        number_in(self.label_smoothing, "[0, 1]", "label_smoothing")
        for name in ("teacher_weight", "temperature", *self._given("training_macs_of_dense")):
            number_in(getattr(self, name), "(0, inf)", name)
        for name in self._given("ema"):
            number_in(self.ema, "(0, 1)", name)
        for name in ("weight_decay", "orthogonality_strength", "checkpoint_minutes"):
            number_in(getattr(self, name), "[0, inf)", name)
        if self.warmup_epochs != "auto" and not self.warmup_epochs.isdecimal():
            raise ValueError(f"Expected epochs or 'auto'. Received: warmup_epochs={self.warmup_epochs!r}")
        if self.epochs is None:
            number_in(self.lr_warmup_epochs, "[0, inf)", "lr_warmup_epochs")
            return
        number_in(self.lr_warmup_epochs, f"[0, {self.epochs}]", "lr_warmup_epochs")
        if self.warmup_epochs != "auto":
            int_in(int(self.warmup_epochs), f"[0, {self.epochs - 1}]", "warmup_epochs")
        elif self.epochs < 2:
            raise ValueError("Expected at least 2 epochs for warm-up. Received: warmup_epochs='auto', epochs=1")
        for name in self._given(*_BUDGETS):
            number_in(getattr(self, name), "(0, 1]", name)

    def _check_combinations(self):
        budget = self._given(*_BUDGETS, "rank_plan")
        if self.format == "dense" and budget:
            raise ValueError(f"Expected no budget and no plan with --format=dense. Received: {budget}")
        if self.rank_plan is not None and len(budget) > 1:
            raise ValueError(f"Expected either a budget or a rank plan. Received: {budget}")
        if len(budget) > 2 or (self.rank_method == "latency") != (self.max_latency is not None):
            raise ValueError(
                "Expected at most two budgets, and max_latency if and only if rank_method is 'latency'. "
                f"Received: {budget}, rank_method={self.rank_method!r}"
            )
        if self.orthogonality_schedule is not None and self.orthogonality in ("none", "stiefel"):
            raise ValueError(
                "Expected a penalty for orthogonality_schedule. "
                f"Received: orthogonality={self.orthogonality!r} with a schedule"
            )
        parse_schedule(self.orthogonality_schedule)
        if self.data_dir is not None and self.dataset.startswith(data_module.FOLDER):
            raise ValueError(
                f"Expected no data_dir: {self.dataset!r} names its folder. Received: data_dir={self.data_dir!r}"
            )
        if self.image_size is not None and not data_module.is_streamed(self.dataset):
            raise ValueError(
                f"Expected image_size with streamed data only: '{self.dataset}' has images of a fixed size. "
                f"Received: image_size={self.image_size}"
            )
        if self.dataset in _GREY and "randaugment" in self.augmentations:
            raise ValueError(f"Expected colour images for randaugment. Received: dataset={self.dataset!r}, grey")
        low_rank_only = [name for name in ("tune", "freeze_factors") if getattr(self, name)]
        if self.format == "dense" and low_rank_only:
            raise ValueError(f"Expected a low-rank format with {low_rank_only}. Received: format='dense'")
        if self.freeze_factors and self.ema is not None:
            raise ValueError(f"Expected either freeze_factors or ema. Received: freeze_factors=True, ema={self.ema}")
        if self.tune is False and self.tune_for != type(self).tune_for:
            raise ValueError(f"Expected no tune_for without tuning. Received: tune=False, tune_for={self.tune_for!r}")
        if self.format == "dense" and self.warms_up:
            raise ValueError(
                f"Expected no full-rank warm-up with format='dense'. Received: warmup_epochs={self.warmup_epochs!r}"
            )
        if self.initial_model is not None and self.warms_up:
            raise ValueError(
                "Expected either a trained model to start from or full-rank warm-up. "
                f"Received: initial_model={self.initial_model!r}, warmup_epochs={self.warmup_epochs!r}"
            )
        self._check_teacher()
        time_sources = self._given("timer", "times")
        if len(time_sources) > (self.max_latency is not None):
            values = ", ".join(f"{name}={getattr(self, name)!r}" for name in time_sources)
            raise ValueError(f"Expected max_latency with either timer or times. Received: {values}")
        if self.calibration_examples and self.initial_model is None:
            raise ValueError(
                "Expected a trained model to calibrate: pass --initial_model. "
                f"Received: calibration_examples={self.calibration_examples}"
            )
        if self.ema is not None and self.orthogonality == "stiefel":
            raise ValueError(
                "Expected a penalty with averaged weights: an average of orthonormal factors is not orthonormal. "
                f"Received: ema={self.ema}, orthogonality='stiefel'"
            )
        if self.training_macs_of_dense is not None and (self.epochs is not None or self.warms_up):
            raise ValueError(
                "Expected training_macs_of_dense without epochs and warm-up: it decides the epochs, and warm-up would "
                f"make their MACs unknown. Received: training_macs_of_dense={self.training_macs_of_dense}, "
                f"epochs={self.epochs}, warmup_epochs={self.warmup_epochs!r}"
            )
        if self.format == AUTO:
            if self.rank_plan is not None:
                raise ValueError(
                    "Expected either format='auto' or a rank plan, which names the formats. "
                    f"Received: format='auto', rank_plan={self.rank_plan!r}"
                )
            methods.chosen_name(self.rank_method, self.max_latency, mixes=True)
        if self.rank_plan is not None and (self.rank_method != "uniform" or self.multiple_of is not None):
            raise ValueError(
                "Expected no rank_method and no multiple_of with a rank plan, which names the ranks. "
                f"Received: rank_method={self.rank_method!r}, multiple_of={self.multiple_of}"
            )
        if not self.has_trained_weights:
            for name, value in (("rank_method", self.rank_method), ("factor_initializer", self.factor_initializer)):
                if value in (*methods.reading_weights(), "decomposed"):
                    raise ValueError(
                        "Expected trained weights to read: pass --initial_model or --warmup_epochs. "
                        f"Received: {name}={value!r}"
                    )

    def _check_teacher(self):
        changed = [
            name for name in ("teacher_weight", "temperature") if getattr(self, name) != getattr(type(self), name)
        ]
        if self.teacher is None and changed:
            values = ", ".join(f"{name}={getattr(self, name)}" for name in changed)
            raise ValueError(f"Expected a teacher for these settings: --teacher=RUN_DIR. Received: {values}")

    @property
    def warms_up(self):
        """Reports if the run starts with full-rank epochs."""
        return self.warmup_epochs != "0"

    @property
    def longest_warmup(self):
        """Largest possible number of full-rank epochs: the given number, or half of the run for `"auto"`."""
        return self.epochs // 2 if self.warmup_epochs == "auto" else int(self.warmup_epochs)

    @property
    def has_trained_weights(self):
        """Reports if the run has trained weights to take ranks and factors from."""
        return self.warms_up or self.initial_model is not None

    @property
    def augmentations(self):
        """Names of the augmentations, a tuple."""
        return tuple(name.strip() for name in self.augmentation.split(",") if name.strip() not in ("", "none"))

    def differences(self, other):
        """Returns `{field: (self, other)}` of the fields that differ, except those that a restart may change."""
        changeable = ("data_dir", "download", "bad_images", "on_nan", "checkpoint_minutes")
        mine, others = dataclasses.asdict(self), dataclasses.asdict(other)
        return {
            name: (mine[name], others[name]) for name in mine if name not in changeable and mine[name] != others[name]
        }


def parse_schedule(text):
    """Parses `"0:1e-2,20:1e-3"` to `{0: 0.01, 20: 0.001}`; `None` stays `None`.

    Raises:
        ValueError: for text of another form.
    """
    if text is None:
        return None
    try:
        steps = {int(epoch): float(strength) for epoch, strength in (item.split(":") for item in text.split(","))}
    except ValueError as error:
        raise ValueError(f"Expected a list of epoch:strength, such as '0:1e-2,20:1e-3'. Received: {text!r}") from error
    if 0 not in steps or min(steps) < 0 or not all(math.isfinite(s) and s >= 0 for s in steps.values()):
        raise ValueError(f"Expected a schedule that starts at epoch 0, strengths at least 0. Received: {text!r}")
    return steps


def _plain_count(text):
    """Removes leading zeros (`"007"` becomes `"7"`), so that equal runs have equal configs; keeps other text."""
    return str(int(text)) if text.isdecimal() else text
