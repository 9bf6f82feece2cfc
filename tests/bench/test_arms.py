"""Which arms a comparison has and what is compared with what."""

from __future__ import annotations

import pytest

from tmkd_plugin.bench.arms import ArmSpec, check_enhancers, expand_baselines, plan_arms
from tmkd_plugin.errors import InputError

KNOWN = ["kd", "rkd", "sp", "catkd", "tekap"]


def plan(baselines, enhancers=("tmkd",), *, controls=False, adds=(), no_rgb_teacher=None, **more):
    added = {name: name in adds for name in baselines}
    return plan_arms(
        baselines, enhancers, controls=controls, adds_logit_kl=added, no_rgb_teacher=no_rgb_teacher, **more
    )


def names(pairs):
    return [(before.name, after.name) for before, after in pairs]


def test_each_baseline_alone_and_enhanced():
    planned = plan(["kd", "rkd"])
    assert [arm.name for arm in planned.arms] == ["kd", "kd+tmkd", "rkd", "rkd+tmkd"]
    assert names(planned.pairs) == [("kd", "kd+tmkd"), ("rkd", "rkd+tmkd")]
    assert planned.notices == []


def test_no_enhancer_leaves_the_baselines_alone():
    planned = plan(["kd", "rkd"], [])
    assert [arm.name for arm in planned.arms] == ["kd", "rkd"]
    assert planned.pairs == []


def test_controls_of_a_baseline_without_a_logit_kl():
    planned = plan(["rkd"], controls=True, adds=["rkd"])
    assert [arm.name for arm in planned.arms] == ["rkd", "rkd+tmkd", "rkd+logit_kl", "rkd@rgb_teacher"]
    assert names(planned.pairs) == [
        ("rkd", "rkd+tmkd"),
        ("rkd", "rkd+logit_kl"),
        ("rkd", "rkd@rgb_teacher"),
        ("rkd+logit_kl", "rkd+tmkd"),
        ("rkd@rgb_teacher", "rkd+tmkd"),
    ]


def test_controls_that_would_repeat_an_arm_are_left_out_with_a_reason():
    planned = plan(["kd"], controls=True, no_rgb_teacher="the teacher is one already")
    assert [arm.name for arm in planned.arms] == ["kd", "kd+tmkd"]
    assert any("the teacher is one already" in notice for notice in planned.notices)
    assert any("KD + logit KL" in notice for notice in planned.notices)


def test_variants_and_the_student_alone():
    planned = plan(["catkd"], variants=["rgb_only", "average"], student_alone=True)
    arms = ["student", "catkd", "catkd+tmkd", "catkd+tmkd@rgb_only", "catkd+tmkd@average"]
    assert [arm.name for arm in planned.arms] == arms
    assert names(planned.pairs) == [
        ("catkd", "catkd+tmkd"),
        ("catkd", "catkd+tmkd@rgb_only"),
        ("catkd", "catkd+tmkd@average"),
        ("catkd+tmkd@rgb_only", "catkd+tmkd"),
        ("catkd+tmkd@average", "catkd+tmkd"),
        ("student", "catkd"),
    ]
    assert [arm.title for arm in planned.arms] == [
        "Student alone",
        "CAT-KD",
        "CAT-KD + TMKD",
        "CAT-KD + TMKD (rgb only)",
        "CAT-KD + TMKD (average)",
    ]


def test_titles_and_folders():
    own = ArmSpec("my_package.my_module:MyDistiller", "tmkd")
    assert own.title == "MyDistiller + TMKD"
    assert own.folder == "my_package.my_module_MyDistiller+tmkd"
    assert ArmSpec("catkd", "tmkd").title == "CAT-KD + TMKD"
    assert ArmSpec("sp", control="logit_kl").title == "SP + logit KL"
    assert ArmSpec("sp", control="rgb_teacher").title == "SP, RGB teacher"


def test_arms_that_would_share_a_folder_are_refused():
    with pytest.raises(InputError, match="would share a folder"):
        plan(["a:B", "a_B:b", "a:b"], [])


def test_names():
    assert expand_baselines(["all"], KNOWN) == KNOWN
    assert expand_baselines(["sp", "a.b:C"], KNOWN) == ["sp", "a.b:C"]
    assert check_enhancers(["none"]) == []
    assert check_enhancers(["tmkd"]) == ["tmkd"]
    with pytest.raises(InputError, match="Did you mean 'tekap'"):
        expand_baselines(["tekp"], KNOWN)
    with pytest.raises(InputError, match="Did you mean 'tmkd'"):
        check_enhancers(["tkmd"])
