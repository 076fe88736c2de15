"""Factors as matrices, their products and penalties, and the linear algebra of decompositions."""

import dataclasses
import math
import string
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import keras
import numpy as np
from keras import ops

from elrt_keras.formats.chain import Shape

# Argument or result of `keras.ops`: a tensor of the backend, a variable or an array. These have no common type.
Tensor: TypeAlias = Any


@dataclasses.dataclass(frozen=True)
class MatrixView:
    """Rule that turns the factor at position `index` into a matrix: `rows` and `columns` are axes of the factor.

    Orthogonality is a property of this matrix. The factor itself keeps the shape that the convolution needs.

    Attributes:
        index: int, the factor's position in the chain.
        rows, columns: tuples of ints; together they hold all axes of the factor.
        groups: int, the number of such matrices that lie side by side along `group_axis`.
        group_axis: int, an axis of the factor.

    Example:

    >>> (view,) = elrt_keras.formats.get("spatial_svd").orthogonal_factors(2)
    >>> view.to_matrix(np.zeros((1, 3, 4, 16))).shape == (4, 48)  # r × k_w·C_out
    True
    """

    index: int
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    groups: int = 1
    group_axis: int = -1

    def matrices(self, factor: Tensor) -> list[Tensor]:
        """The factor as tensors of shape `(rows, columns)`, one per group."""
        return [self.to_matrix(part) for part in split(factor, self.groups, self.group_axis)]

    def apply(self, function: Callable[[Tensor], Tensor], factor: Tensor) -> Tensor:
        """Applies `function`, which keeps the shape, to each matrix of the factor. Returns the new factor."""
        parts = split(factor, self.groups, self.group_axis)
        results = [self.from_matrix(function(self.to_matrix(part)), part.shape) for part in parts]
        return joined(results, self.group_axis)

    def to_matrix(self, factor: Tensor) -> Tensor:
        """A factor of one group as a tensor of shape `(rows, columns)`."""
        shape = factor.shape
        rows = math.prod(shape[axis] for axis in self.rows)
        columns = math.prod(shape[axis] for axis in self.columns)
        return ops.reshape(ops.transpose(factor, self.rows + self.columns), (rows, columns))

    def from_matrix(self, matrix: Tensor, shape: Shape) -> Tensor:
        """The inverse of `to_matrix` for a factor of one group, of shape `shape`."""
        axes = self.rows + self.columns
        permuted = ops.reshape(matrix, tuple(shape[axis] for axis in axes))
        return ops.transpose(permuted, tuple(axes.index(axis) for axis in range(len(axes))))


def split(tensor: Tensor, parts: int, axis: int) -> list[Tensor]:
    """Splits a tensor into `parts` equal parts along an axis."""
    if parts == 1:
        return [tensor]
    return list((np if isinstance(tensor, np.ndarray) else ops).split(tensor, parts, axis=axis))


def joined(tensors: Sequence[Tensor], axis: int) -> Tensor:
    """Joins tensors along an axis: the inverse of `split`."""
    return tensors[0] if len(tensors) == 1 else ops.concatenate(tensors, axis=axis)


def channel_product(factor: Tensor, matrix: Tensor) -> Tensor:
    """A factor `(…, in, out)` times a matrix `(out, columns)`, at each position.

    One plain matrix product computes it. `matmul` could also broadcast over the positions, but TensorFlow 2.21 with
    oneDNN computes some of these products wrongly, such as (1, 1, 8, 3) by (3, 1, 3, 8).
    """
    return contracted(factor, matrix, [len(factor.shape) - 1], [0])


def kernel_product(left: Tensor, right: Tensor) -> Tensor:
    """Composes two kernels `(*kernel_size, in, out)` into one; along each spatial axis one of them has length 1."""
    dims = len(left.shape) - 2
    # (*left positions, in, *right positions, out), then the positions of each axis side by side.
    outer = contracted(left, right, [dims + 1], [dims])
    order = [axis for pair in zip(range(dims), range(dims + 1, 2 * dims + 1)) for axis in pair]
    sizes = [left.shape[axis] * right.shape[axis] for axis in range(dims)]
    return ops.reshape(ops.transpose(outer, [*order, dims, 2 * dims + 1]), (*sizes, left.shape[-2], right.shape[-1]))


def contracted(left: Tensor, right: Tensor, left_axes: Sequence[int], right_axes: Sequence[int]) -> Tensor:
    """The product of two tensors summed over pairs of axes; the other axes of `left` come first."""
    if keras.backend.standardize_dtype(left.dtype) != "float64":
        return ops.tensordot(left, right, axes=(list(left_axes), list(right_axes)))
    # On PyTorch the other products of Keras return float32 for float64 inputs.
    of_left = string.ascii_lowercase[: len(left.shape)]
    of_right = list(string.ascii_uppercase[: len(right.shape)])
    for left_axis, right_axis in zip(left_axes, right_axes):
        of_right[right_axis] = of_left[left_axis]
    kept = [letter for letter in (*of_left, *of_right) if not (letter in of_left and letter in of_right)]
    return ops.einsum(f"{of_left},{''.join(of_right)}->{''.join(kept)}", left, right)


def as_loss(penalty: Tensor) -> Tensor:
    """Casts a penalty (float32 or float64) to a type that Keras can add to a loss.

    The type changes only if the default type of Keras is float16 or bfloat16.
    """
    # With other default types Keras casts by itself, or the loss has the type of the weights.
    return ops.cast(penalty, keras.config.floatx()) if keras.config.floatx() in ("float16", "bfloat16") else penalty


# Above this size of the smaller side, singular vectors come from the Gram matrix, which is several times faster. The
# Gram matrix loses singular values below 1e-8 of the largest; the rounding of float32 weights is larger than that.
_GRAM_SIZE = 1024


def squared_singular_values(matrix: np.ndarray) -> np.ndarray:
    """The squared singular values of a matrix (float64), descending."""
    if min(matrix.shape) <= _GRAM_SIZE:
        return np.linalg.svd(matrix, compute_uv=False) ** 2
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    return np.maximum(np.linalg.eigvalsh(gram)[::-1], 0.0)


def leading_rows(matrix: np.ndarray, rank: int) -> np.ndarray:
    """Orthonormal rows `(rank, columns)` that span the leading right singular vectors of a matrix (float64).

    If `rank` is above the full rank of the matrix, further rows are added that are orthonormal to the others. Rows
    beyond the number of columns are zero.
    """
    rank_limit = min(rank, *matrix.shape)
    if min(matrix.shape) <= _GRAM_SIZE:
        rows = np.linalg.svd(matrix, full_matrices=False)[2][:rank_limit]
    elif matrix.shape[0] >= matrix.shape[1]:
        rows = np.linalg.eigh(matrix.T @ matrix)[1].T[::-1][:rank_limit]
    else:
        left = np.linalg.eigh(matrix @ matrix.T)[1][:, ::-1][:, :rank_limit]
        rows = np.linalg.qr(matrix.T @ left)[0].T
    return rows if rank == rank_limit else _completed(rows, rank)


def _completed(rows, count):
    """Adds orthonormal rows until there are `count`. Zero rows would never get a gradient."""
    possible = min(count, rows.shape[1])
    random = np.random.default_rng(0).standard_normal((possible - len(rows), rows.shape[1]))
    more = np.linalg.qr(np.vstack([rows, random]).T)[0].T[len(rows) :]
    return np.pad(np.vstack([rows, more]), [(0, count - possible), (0, 0)])


def as_factors(arrays: Sequence[np.ndarray], shapes: Sequence[Shape], dtype: Any) -> list[np.ndarray]:
    """Arrays as contiguous factors of the given shapes and dtype."""
    return [np.ascontiguousarray(array.reshape(shape), dtype=dtype) for array, shape in zip(arrays, shapes)]
