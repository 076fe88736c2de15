"""`Taught`: training of a model on labels and on the predictions of a teacher."""

from typing import Any

import keras
from keras import ops

from elrt_keras.checks import number_in
from elrt_keras.graph.paths import check_keras_model

_SMALLEST = 1e-7  # probability, as in Keras' own losses


@keras.saving.register_keras_serializable("elrt_keras")
class Taught(keras.Model):
    """A classifier that trains with the predictions of a teacher in its loss (knowledge distillation).

    The loss of a training step is

        loss(labels, p) + penalties + weight · T² · KL(q_T ‖ p_T)

    with the student's probabilities p and the teacher's probabilities q on the same images. Both are softened by the
    temperature T: p_T = softmax(log(p) / T). The divergence is the mean over the batch. The penalties of the student's
    layers (orthogonality, weight decay) count fully; those of the teacher do not count. Evaluation and prediction use
    only the student.

    `keras.distillation.Distiller` is a general tool for features and several losses. But it ignores the penalties of
    the student's layers, which low-rank training needs.

    Args:
        student: a `keras.Model` with outputs `(batch, classes)`. It shares its weights with this model: save and
            use `student` after training.
        teacher: a trained `keras.Model` with the same inputs and outputs of the same shape. It is frozen
            (`trainable = False`) and always runs in inference mode.
        weight: float > 0, weight of the divergence; the loss of the labels has weight 1.
        temperature: float > 0, T above; larger values give more weight to the teacher's small probabilities.
        from_logits: whether student and teacher return logits instead of probabilities.
        name: name of the model.

    Raises:
        ValueError: if one of both is no Keras model, for outputs or inputs of different shapes, shared weights, or a
            number out of range.

    Example:

    >>> model, teacher = (elrt_keras.models.build(name, (8, 8, 1), 10) for name in ("resnet8", "resnet20"))
    >>> taught = elrt_keras.Taught(model, teacher, temperature=4.0)
    >>> taught.compile("sgd", "categorical_crossentropy", metrics=["accuracy"])
    >>> # taught.fit(images, labels, epochs=100), then model.save("model.keras")

    Source: Hinton, Vinyals and Dean 2015, arXiv 1503.02531.
    """

    def __init__(
        self,
        student: keras.Model,
        teacher: keras.Model,
        weight: float = 1.0,
        temperature: float = 1.0,
        from_logits: bool = False,
        name: str = "taught",
        **kwargs: Any,
    ):
        super().__init__(name=name, **kwargs)
        number_in(weight, "(0, inf)", "weight")
        number_in(temperature, "(0, inf)", "temperature")
        _check_pair(student, teacher)
        teacher.trainable = False
        self.student: keras.Model = student
        self.teacher: keras.Model = teacher
        self.weight, self.temperature, self.from_logits = float(weight), float(temperature), from_logits
        # This loss scales itself under `tf.distribute`, like the losses of `compile`.
        self._divergence = keras.losses.KLDivergence(name="divergence")
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns the student's outputs."""
        return self.student(inputs, training=training)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """Returns the loss of Keras for the student and, in training, the divergence from the teacher."""
        # Computed before the teacher's call, which adds the penalties of its layers to `losses`.
        loss = super().compute_loss(x, y, y_pred, sample_weight, training=training)
        if not training:
            return loss
        taught = ops.stop_gradient(self._softened(self.teacher(x, training=False)))
        divergence = self._divergence(taught, self._softened(y_pred), sample_weight)
        return loss + self.weight * self.temperature**2 * divergence

    def _softened(self, outputs):
        """Probabilities at the temperature, at least in float32."""
        if keras.backend.standardize_dtype(outputs.dtype) != "float64":
            outputs = ops.cast(outputs, "float32")
        logits = outputs if self.from_logits else ops.log(ops.clip(outputs, _SMALLEST, 1.0))
        return ops.softmax(logits / self.temperature, axis=-1)

    def get_config(self) -> dict[str, Any]:
        models = {name: keras.saving.serialize_keras_object(getattr(self, name)) for name in ("student", "teacher")}
        options = {"weight": self.weight, "temperature": self.temperature, "from_logits": self.from_logits}
        return {**super().get_config(), **models, **options}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> "Taught":
        models = {
            name: keras.saving.deserialize_keras_object(config[name], custom_objects) for name in ("student", "teacher")
        }
        return cls(**{**config, **models})


def student_of(model: keras.Model) -> keras.Model:
    """Returns the model to train: the student of a `Taught`, or any other model itself."""
    return model.student if isinstance(model, Taught) else model


def _check_pair(student, teacher):
    check_keras_model(student)
    check_keras_model(teacher)
    if {id(variable) for variable in student.variables} & {id(variable) for variable in teacher.variables}:
        raise ValueError(
            "Expected a teacher with its own weights, because it is frozen. "
            f"Received: student={student.name!r}, teacher={teacher.name!r}, which share weights"
        )
    for kind in ("input_shape", "output_shape"):
        shapes = [_shape(model, kind) for model in (student, teacher)]
        if None not in shapes and not _fits(*shapes):
            raise ValueError(
                f"Expected a teacher with the {kind} of the student, {shapes[0]}. "
                f"Received: teacher={teacher.name!r} with {shapes[1]}"
            )


def _shape(model, kind):
    """Shape of a model's inputs or outputs, or `None` if it is not known."""
    try:
        return getattr(model, kind)
    except (AttributeError, ValueError):  # a subclass, or a model that has not been called
        return None


def _fits(one, other):
    """Reports if two shapes, or nested structures of shapes, agree. Unknown sizes agree with all."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_fits(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_fits, one, other))
    return one is None or other is None or one == other
