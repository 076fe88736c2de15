"""Every recipe parses, builds its model, and has the cost, the reduction and the dense twin that it states."""

import dataclasses
import functools
import re

import pytest
from common import thorough_but

import elrt_keras as elrt
from elrt_keras.launch import catalog, data, train
from elrt_keras.launch.config import TrainConfig

pytestmark = pytest.mark.tensorflow

IMAGES = {"cifar10": 50_000, "imagenet2012": 1_281_167}


@functools.cache
def dense_model(name):
    return elrt.models.build(name)


def low_rank_model(config):
    dense = dense_model(config.model)
    arguments = {"max_macs": config.max_macs, "max_params": config.max_params, "multiple_of": config.multiple_of}
    return elrt.factorize(dense, elrt.plan_ranks(dense, format=config.format, **arguments))


# The quick suite checks the costs of the small networks: published reductions, baselines, one recipe of photographs.
QUICK = ("cifar10_resnet20_dense", "cifar10_resnet20_71.1")


@pytest.mark.parametrize("name", thorough_but(QUICK, catalog.recipes()))
def test_a_recipe_is_what_its_head_says(name):
    config = catalog.recipe_config(name)
    what, published, cost = catalog.recipe_notes(name)
    dense = elrt.count_costs(dense_model(config.model))
    low = dense if config.format == "dense" else elrt.count_costs(low_rank_model(config))
    if config.format != "dense" and config.orthogonality != "none":
        stated = re.search(r"(?:(?P<percent>[\d.]+) %|(?P<times>[\d.]+)×) fewer (?P<kind>MACs|parameters)", what)
        percent, times, kind = stated.groups()
        kept = 1 - float(percent) / 100 if percent else 1 / float(times)
        fraction = low.macs / dense.macs if kind == "MACs" else low.params / dense.params
        assert 0.98 * kept <= fraction <= kept * 1.0005  # from below; the budget is rounded to four digits
        assert (percent or times) in name
    steps = 3 * IMAGES[config.dataset]
    warmup = int(config.warmup_epochs)
    expected = steps * (dense.macs * warmup + low.macs * (config.epochs - warmup))
    assert f"Training costs {expected:.2e} MACs: 3 × " in cost
    assert f"{low.macs / 1e6:,.1f} M" in cost and f"{IMAGES[config.dataset]:,} images" in cost
    assert published.startswith("Published: ")


def test_every_recipe_has_its_dense_twin():
    configs = {name: catalog.recipe_config(name) for name in catalog.recipes()}
    twins = {(c.model, c.dataset): c for c in configs.values() if c.format == "dense"}
    rate = ("learning_rate", "lr_schedule", "lr_warmup_epochs")
    shared = ("epochs", "batch_size", "optimizer", *rate, "weight_decay", "weight_decay_kind", "label_smoothing")
    for name, config in configs.items():
        twin = twins[config.model, config.dataset]
        assert [getattr(config, f) for f in shared] == [getattr(twin, f) for f in shared], name


def test_every_published_setting_of_the_models_has_a_recipe():
    found = {(c.model, c.max_macs or c.max_params) for c in map(catalog.recipe_config, catalog.recipes())}
    budgets = {
        "resnet20": (0.455, 0.289, 0.278, 0.139, 0.4902, 0.4608, 0.3521),
        "resnet32": (0.3333,),
        "resnet56": (0.607, 0.38, 0.37, 0.34),
        "vgg16_cifar": (0.214, 0.1356),
        "resnet18": (0.3384,),
        "resnet50": (0.5556, 0.4484, 0.4902, 0.3367),
        "mobilenet_v2": (0.7,),
    }
    assert {(model, budget) for model, values in budgets.items() for budget in values} <= found


@pytest.mark.parametrize("name", catalog.recipes())
def test_every_recipe_shrinks_to_a_smoke_run(name):
    config = dataclasses.replace(catalog.recipe_config(name), smoke=True)
    assert config.epochs == 2 and config.lr_warmup_epochs <= 2 and config.longest_warmup < 2


def test_flags_given_with_a_recipe_override_it():
    path = catalog.recipe_path("cifar10_resnet20_71.1")
    expected = [f"--flagfile={path}", "--epochs=2", "--run_dir=r"]
    assert train.expanded(["--epochs=2", "--recipe=cifar10_resnet20_71.1", "--run_dir=r"]) == expected
    assert train.expanded(["--epochs=2", "--recipe", "cifar10_resnet20_71.1", "--run_dir=r"]) == expected
    with pytest.raises(ValueError, match=r"cifar10_resnet20_dense.*Received: recipe='best'"):
        train.expanded(["--recipe=best"])


def test_the_listing_names_everything():
    text = catalog.listing()
    streamed_variants = {"imagenette/320px-v2", "imagenette/160px-v2"}
    for name in (*elrt.models.list_models(), *data.DATASETS, *catalog.recipes()):
        assert re.search(rf"^ *{re.escape(name)} ", text, re.MULTILINE) or name in streamed_variants and name in text
    assert set(catalog._DATA_NOTES) | streamed_variants == set(data.DATASETS)
    assert all(TrainConfig(dataset=name).dataset == name for name in catalog._DATA_NOTES)
