"""Times one training step of single layers against tensorly-torch and hand-written chains, all on PyTorch.

  KERAS_BACKEND=torch python -m benchmarks.peers

Forward and backward of the same convolution with the same ranks, threads and inputs, in turns. tensorly-torch runs its
Tucker layer `factorized` (the chain) and `reconstructed` (the dense kernel is composed first); the plain chain is three
`torch.nn.Conv2d` in its own layout, channels first. Needs `pip install tensorly-torch`. File in
`benchmarks/results/peers/`.
"""

import os

os.environ.setdefault("KERAS_BACKEND", "torch")

from absl import app, flags

from benchmarks.measure import evidence

_ROUNDS = flags.DEFINE_integer("rounds", 15, "Steps of each layer.")
_THREADS = flags.DEFINE_integer("threads", 2, "CPU threads.")

# batch, height and width, channels in and out: layers of ResNet-20, VGG-16 and ResNet-18, planned at 0.4 of the MACs.
SHAPES = ((128, 16, 32), (128, 8, 64), (128, 16, 128), (128, 8, 256), (16, 28, 128), (16, 14, 256))


def rank_of(channels, budget=0.4):
    """The largest multiple of 8 whose chain C → r → r → C stays within the budget of a 3×3 convolution's MACs."""
    fitting = [r for r in range(8, channels + 1, 8) if 2 * channels * r + 9 * r * r <= budget * 9 * channels * channels]
    return max(fitting)


def layers(channels, rank):
    """`{name: module}` of convolutions C → C, 3×3, without bias, and whether each is channels-last."""
    import keras
    import tltorch
    import torch

    import elrt_keras as elrt

    def stock(out_channels, kernel_size, **options):
        return keras.layers.Conv2D(out_channels, kernel_size, padding="same", use_bias=False, **options)

    def three(**options):
        return keras.Sequential([stock(rank, 1, **options), stock(rank, 3, **options), stock(channels, 1, **options)])

    def of_torch(in_channels, out_channels, kernel_size):
        return torch.nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)

    def of_tensorly(implementation):
        return tltorch.FactorizedConv.from_conv(
            of_torch(channels, channels, 3),
            rank=(rank, rank, 3, 3),
            factorization="tucker",
            implementation=implementation,
            decompose_weights=False,
        )

    def ours(**options):
        return elrt.layers.Tucker2Conv2D(channels, 3, ranks=rank, padding="same", use_bias=False, **options)

    plain = [of_torch(channels, rank, 1), of_torch(rank, rank, 3), of_torch(rank, channels, 1)]
    first = {"data_format": "channels_first"}
    return {
        "Keras Conv2D": (stock(channels, 3), True),
        "elrt_keras Tucker2Conv2D": (ours(), True),
        "three Keras Conv2D": (three(), True),
        "elrt_keras, channels first": (ours(**first), False),
        "three Keras Conv2D, channels first": (three(**first), False),
        "three torch Conv2d": (torch.nn.Sequential(*plain), False),
        "tensorly-torch factorized": (of_tensorly("factorized"), False),
        "tensorly-torch reconstructed": (of_tensorly("reconstructed"), False),
    }


def step_of(module, images):
    """A function that runs a layer forward and backward, gradients of weights and inputs included."""
    import keras
    import torch

    options = {"training": True} if isinstance(module, keras.layers.Layer) else {}
    gradient = torch.randn_like(module(images, **options)).detach()  # builds Keras layers
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]

    def step():
        torch.autograd.grad(module(images, **options), [images, *parameters], gradient)

    step()
    return step


def measure(batch_size, size, channels):
    """Seconds of each layer at one shape."""
    import torch

    from benchmarks.measure.variants import interleaved

    rank = rank_of(channels)
    steps = {}
    for name, (module, channels_last) in layers(channels, rank).items():
        shape = (batch_size, size, size, channels) if channels_last else (batch_size, channels, size, size)
        steps[name] = step_of(module, torch.randn(shape, requires_grad=True))
    dense, chain = 9 * channels**2, 2 * channels * rank + 9 * rank**2
    return {
        "batch_size": batch_size,
        "size": size,
        "channels": channels,
        "rank": rank,
        "macs_reduction": dense / chain,
        "seconds": interleaved(steps, _ROUNDS.value, show=lambda *_, **__: None),
    }


def main(argv):
    """Measures all shapes and writes the file."""
    del argv
    import tltorch
    import torch

    from benchmarks.measure.variants import ratios

    torch.set_num_threads(_THREADS.value)
    rows = []
    for shape in SHAPES:
        rows.append(measure(*shape))
        for name, (middle, low, high) in ratios(rows[-1]["seconds"], "elrt_keras Tucker2Conv2D").items():
            print(f"{shape} {name}: {middle:.2f}x as fast as Tucker2Conv2D ({low:.2f}-{high:.2f})", flush=True)
    command = f"KERAS_BACKEND=torch python -m benchmarks.peers --rounds={_ROUNDS.value} --threads={_THREADS.value}"
    result = {"rows": rows, "threads": _THREADS.value}
    evidence.write("peers", "torch", result, command, tensorly_torch=tltorch.__version__)


if __name__ == "__main__":
    app.run(main)
