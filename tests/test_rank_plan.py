"""`RankPlan`: a mapping that is edited, copied, saved and loaded."""

import copy
import json

import pytest

import elrt_keras as elrt
from elrt_keras import formats

pytestmark = pytest.mark.tensorflow  # the same on every backend


@pytest.fixture(scope="module")
def resnet():
    return elrt.models.build("resnet20")


def test_plan_is_an_editable_mapping_and_saves(resnet, tmp_path):
    plan = elrt.plan_ranks(resnet, max_macs=0.4)
    name = "stage3_block3_2_conv"
    plan[name] = ("tucker2", (8, 16))
    plan["stage1_block1_1_conv"] = None
    assert not {name, "stage1_block1_1_conv"} & set(plan.costs) and len(plan.costs) > 10
    plan.save(tmp_path / "plan.json")
    loaded = elrt.RankPlan.load(tmp_path / "plan.json")
    assert dict(loaded) == dict(plan) and loaded.reasons == plan.reasons and loaded.costs == plan.costs
    assert loaded[name].ranks == (8, 16) and loaded["stage1_block1_1_conv"].is_dense
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
    assert loaded.matching("stage3*1_conv") == [n for n in plan if n.startswith("stage3") and n.endswith("1_conv")]
    with pytest.raises(ValueError, match=r"Received: plan\['x'\]=5"):
        plan["x"] = 5
    with pytest.raises(ValueError, match="'x' of the plan.*ranks=0"):
        plan["x"] = ("tucker2", 0)
    del plan[name]
    assert name not in plan


def test_a_plan_saved_by_an_editor(tmp_path):
    text = '{"kind": "elrt_keras.RankPlan", "version": 1, "layers": {"a": null, "b": {"format": "svd", "ranks": [2]}}}'
    (tmp_path / "plan.json").write_bytes(b"\xef\xbb\xbf" + text.encode())  # with a byte order mark
    assert elrt.RankPlan.load(tmp_path / "plan.json") == elrt.RankPlan({"a": None, "b": ("svd", 2)})


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, elrt.RankPlan.copy])
def test_copies_of_a_plan_are_independent(resnet, copied):
    plan = elrt.plan_ranks(resnet, max_macs=0.4)
    before = dict(plan), dict(plan.reasons), dict(plan.costs)
    other = copied(plan)
    assert (dict(other), other.reasons, other.costs) == before
    other["stage3_block3_2_conv"] = None
    assert (dict(plan), plan.reasons, plan.costs) == before


def test_a_plan_edited_in_its_file_has_no_costs_of_what_it_was(resnet, tmp_path):
    plan = elrt.plan_ranks(resnet, max_macs=0.4)
    changed, dense, gone = "stage3_block3_2_conv", "stage3_block3_1_conv", "stage3_block2_1_conv"
    plan.latency = {"dense": 2.0, "planned": 1.0}
    plan.save(tmp_path / "plan.json")
    document = json.loads((tmp_path / "plan.json").read_text())
    document["layers"][changed]["ranks"] = [8, 8]
    document["layers"][dense] = "dense"
    del document["layers"][gone]
    (tmp_path / "plan.json").write_text(json.dumps(document))
    loaded = elrt.RankPlan.load(tmp_path / "plan.json")
    assert set(plan.costs) - set(loaded.costs) == {changed, dense, gone} and loaded.latency is None
    kept = set(loaded.costs)
    assert all(loaded.costs[name] == plan.costs[name] for name in kept) and loaded[changed].ranks == (8, 8)
    total = sum(plan.costs[name]["planned_macs"] for name in kept)
    assert f"{total:,}" in str(loaded).splitlines()[-1]


def test_a_format_object_in_a_plan_is_its_name(tmp_path):
    plan = elrt.RankPlan({"conv": (formats.get("svd"), 3)})
    assert plan["conv"] == ("svd", (3,)) and "svd" in str(plan)
    plan.save(tmp_path / "plan.json")
    assert dict(elrt.RankPlan.load(tmp_path / "plan.json")) == dict(plan)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"{not json", "Expected a rank plan in JSON"),
        (b"\xff\xfe\x00", "Expected a rank plan in JSON"),
        (b'{"layers": {}}', "kind 'elrt_keras.RankPlan'"),
        (b"[1]", "kind 'elrt_keras.RankPlan'"),
        (json.dumps({"kind": "elrt_keras.RankPlan", "version": 1, "layers": {"a": 5}}).encode(), "for 'a' of 'layers'"),
        (
            json.dumps(
                {"kind": "elrt_keras.RankPlan", "version": 1, "layers": {}, "costs": {"a": {"macs": 10**400}}}
            ).encode(),
            "for 'a' of 'costs'",
        ),
        (
            json.dumps(
                {"kind": "elrt_keras.RankPlan", "version": 1, "layers": {"a": {"format": "cpx", "ranks": [1]}}}
            ).encode(),
            "'a' of the plan.*format='cpx'",
        ),
        (
            b'{"kind": "elrt_keras.RankPlan", "version": 1, "layers": {"a": "dense", "b": "dense", "a": "dense"}}',
            "broken.json'. Received: the name 'a' twice in one object",
        ),
    ],
)
def test_broken_files(tmp_path, content, message):
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        elrt.RankPlan.load(path)
    with pytest.raises(ValueError, match="missing.json"):
        elrt.RankPlan.load(tmp_path / "missing.json")


@pytest.mark.parametrize("entries", [3, "plan.json", [1, 2], ["ab", "cd", "xyz"]], ids=str)
def test_what_is_no_plan_is_told(entries):
    with pytest.raises(ValueError, match="mapping from layer names to entries.*Received: entries="):
        elrt.RankPlan(entries)
