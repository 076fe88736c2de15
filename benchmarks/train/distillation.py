"""Knowledge distillation: a network is trained towards the probabilities of a trained one as well as the labels."""

import keras
from keras import ops


class Taught(keras.Model):
    """A model that is `student`, and whose training loss has `weight · KL(teacher ‖ student)`, the batch's mean, in it.

    Args:
        student, teacher: models with the same inputs, whose outputs are probabilities. The teacher is not trained.
        weight: what the divergence counts beside the loss over the labels.
    """

    def __init__(self, student, teacher, weight):
        super().__init__()
        teacher.trainable = False
        self.student, self.teacher, self._weight = student, teacher, weight
        self.built = True

    def call(self, images, training=None):
        """The student's probabilities."""
        outputs = self.student(images, training=training)
        if training:
            teacher, student = (_probabilities(p) for p in (self.teacher(images, training=False), outputs))
            divergence = ops.sum(teacher * (ops.log(teacher) - ops.log(student)), axis=-1)
            self.add_loss(self._weight * ops.mean(divergence))
        return outputs


def _probabilities(outputs):
    return ops.clip(ops.cast(outputs, "float32"), 1e-7, 1.0)
