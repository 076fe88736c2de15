"""Comparison of single low-rank layers with those of other packages, on PyTorch."""

from benchmarks.measure.runner import Flag, measurement
from benchmarks.measure.variants import interleaved

# (batch, height and width, channels in and out): layers of ResNet-20, VGG-16 and ResNet-18, planned at 0.4 of the MACs.
_SHAPES = ((128, 16, 32), (128, 8, 64), (128, 16, 128), (128, 8, 256), (16, 28, 128), (16, 14, 256))


@measurement("peers", rounds=15, name="torch", threads=Flag(2, "CPU threads."), environment={"KERAS_BACKEND": "torch"})
def peers(settings):
    """Times one training step of single layers against tensorly-torch and hand-written chains, all on PyTorch.

    Each step is forward and backward of the same convolution with the same ranks, threads and inputs; all take turns.
    tensorly-torch runs its Tucker layer `factorized` (the chain) and `reconstructed` (the dense kernel is composed
    first). The plain chain is three `torch.nn.Conv2d`, channels first. Needs `pip install tensorly-torch`.
    """
    import torch

    torch.set_num_threads(settings.threads)
    rows = [_measured(*shape, settings.rounds) for shape in _SHAPES]
    return {"rows": rows, "threads": settings.threads}


def _measured(batch_size, size, channels, rounds):
    """Measures the layers at one shape."""
    import torch

    rank, steps = _rank_of(channels), {}
    for name, (module, channels_last) in _layers(channels, rank).items():
        shape = (batch_size, size, size, channels) if channels_last else (batch_size, channels, size, size)
        steps[name] = _step_of(module, torch.randn(shape, requires_grad=True))
    row = {"batch_size": batch_size, "size": size, "channels": channels, "rank": rank}
    row["macs_reduction"] = 9 * channels**2 / (2 * channels * rank + 9 * rank**2)
    return {**row, "seconds": interleaved(steps, rounds, f"{batch_size} of {size}×{size}×{channels}")}


def _rank_of(channels, budget=0.4):
    """Returns the largest multiple of 8 whose chain C → r → r → C stays within the budget of MACs."""
    return max(r for r in range(8, channels + 1, 8) if 2 * channels * r + 9 * r * r <= budget * 9 * channels**2)


def _layers(channels, rank):
    """Returns `{name: (module, True if channels-last)}` of convolutions C → C, 3×3, without bias."""
    import keras
    import tltorch
    import torch

    import elrt_keras as elrt

    options, first = {"padding": "same", "use_bias": False}, {"data_format": "channels_first"}
    chain = ((rank, 1), (rank, 3), (channels, 1))

    def ours(**more):
        return elrt.layers.Tucker2Conv2D(channels, 3, ranks=rank, **options, **more)

    def three(**more):
        return keras.Sequential([keras.layers.Conv2D(*shape, **options, **more) for shape in chain])

    def of_torch(inputs, outputs, size):
        return torch.nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)

    def of_tensorly(implementation):
        kind = {"factorization": "tucker", "implementation": implementation, "decompose_weights": False}
        conv = of_torch(channels, channels, 3)
        return tltorch.FactorizedConv.from_conv(conv, rank=(rank, rank, 3, 3), **kind)

    plain = [of_torch(channels, rank, 1), of_torch(rank, rank, 3), of_torch(rank, channels, 1)]
    return {
        "Keras Conv2D": (keras.layers.Conv2D(channels, 3, **options), True),
        "elrt_keras Tucker2Conv2D": (ours(), True),
        "three Keras Conv2D": (three(), True),
        "elrt_keras, channels first": (ours(**first), False),
        "three Keras Conv2D, channels first": (three(**first), False),
        "three torch Conv2d": (torch.nn.Sequential(*plain), False),
        "tensorly-torch factorized": (of_tensorly("factorized"), False),
        "tensorly-torch reconstructed": (of_tensorly("reconstructed"), False),
    }


def _step_of(module, images):
    """Returns a function that runs a layer forward and backward, with gradients of weights and inputs."""
    import keras
    import torch

    options = {"training": True} if isinstance(module, keras.layers.Layer) else {}
    gradient = torch.randn_like(module(images, **options)).detach()  # builds Keras layers
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]

    def step():
        torch.autograd.grad(module(images, **options), [images, *parameters], gradient)

    step()
    return step
