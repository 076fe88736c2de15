"""Packaging: metadata, dependencies, and the map from the repository's folders to the installed packages."""

import pathlib
import re

from setuptools import setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "elrt_keras" / "__init__.py").read_text(encoding="utf-8"))[1]

ROOMS = (
    "conversion",
    "export",
    "formats",
    "graph",
    "launch",
    "launch.data",
    "layers",
    "litert",
    "terminal",
    "tuning",
    "models",
    "plot",
    "ranks",
)
PACKAGES = ["elrt_keras", *(f"elrt_keras.{room}" for room in ROOMS)]

setup(
    name="elrt_keras",
    version=VERSION,
    description="Compact CNNs trained low-rank from scratch (ELRT) with Keras 3, and their way to LiteRT",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The elrt_keras authors",
    license="Apache-2.0",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    keywords=["keras", "low-rank", "tucker", "compression", "cnn", "litert"],
    python_requires=">=3.11",
    packages=PACKAGES,
    package_data={"elrt_keras": ["py.typed", "*.pyi"], "elrt_keras.launch": ["recipes/*.flags"]},
    package_dir={"elrt_keras": "elrt_keras", "elrt_keras.launch": "launch", "elrt_keras.models": "models"},
    install_requires=[
        "absl-py>=1.4",
        # tensorflow-datasets imports it when it downloads, and asks for it on old Pythons only.
        "importlib_resources>=6",
        "keras>=3.15",
        "matplotlib>=3.9",
        "numpy>=2.0",
        "rich>=13.7",
        "scikit-learn>=1.5",
        "tensorboard>=2.20",
        "tensorflow>=2.21",
        "tensorflow-datasets>=4.9.10",
        "tensorly>=0.9",
    ],
    extras_require={
        # ai-edge-litert runs exported models; the converter itself comes with TensorFlow.
        "litert": ["ai-edge-litert>=2.3"],
        "onnx": ["onnxruntime>=1.20", "tf2onnx>=1.17"],
        # tensorflow-model-optimization works on tf_keras models only.
        "optimize": ["tensorflow-model-optimization>=0.8", "tf-keras>=2.21"],
        # elrt-train --cluster=kubernetes.
        "kubernetes": ["kubernetes>=31"],
        "docs": ["mkdocs-material>=9.6", "mkdocstrings[python]>=1.0"],
        "dev": [
            "ai-edge-litert>=2.3",
            "build",
            "hypothesis>=6.100",
            "jax>=0.10",
            "keras-hub>=0.32",
            "kubernetes>=31",
            "mkdocs-material>=9.6",
            "mkdocstrings[python]>=1.0",
            "onnxruntime>=1.20",
            # With Node.js in a wheel, so that nothing else has to be downloaded.
            "pyright[nodejs]>=1.1.400",
            "ipykernel>=6.29",
            "jupytext>=1.16",
            "keras-tuner>=1.4.7",
            "nbclient>=0.10",
            "playwright>=1.50",
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "ruff>=0.6",
            "tensorflow-model-optimization>=0.8",
            "tf-keras>=2.21",
            "tf2onnx>=1.17",
            "torch>=2.13",
            "twine>=6",
        ],
    },
    entry_points={
        "console_scripts": [
            "elrt-train=elrt_keras.launch.train:main",
            "elrt-evaluate=elrt_keras.launch.evaluate:main",
            "elrt-plan=elrt_keras.launch.plan:main",
            "elrt-shrink=elrt_keras.launch.shrink:main",
            "elrt-export=elrt_keras.launch.export:main",
            "elrt-benchmark=elrt_keras.launch.benchmark:main",
            "elrt-classify=elrt_keras.launch.classify:main",
        ]
    },
)
