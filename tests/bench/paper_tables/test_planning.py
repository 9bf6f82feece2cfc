"""Which arms are run with which values in which folders."""

from __future__ import annotations

import pytest
from fake_bench import arms_of

from tmkd_plugin.bench.paper_tables.command import _adds_logit_kl
from tmkd_plugin.bench.paper_tables.definitions import load_scales, load_table
from tmkd_plugin.bench.paper_tables.planning import Request, plan_table
from tmkd_plugin.bench.paper_tables.schema import TEACHER_ARM
from tmkd_plugin.bench.paper_tables.selection import Selection, select
from tmkd_plugin.errors import InputError
from tmkd_plugin.presets.tables import SCALES, TABLES


def plans(table, tmp_path, scale="paper", *, problem=None, flags=None, assignments=None, **selection):
    scales = load_scales()
    spec = select(load_table(table), Selection(**selection), _adds_logit_kl)
    request = Request(scale, tmp_path, flags or {}, assignments or {}, lambda dataset, settings: problem)
    return spec, {plan.group.name: plan for plan in plan_table(spec, scales, scales.scales[scale], request)}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("table", TABLES)
def test_every_cell_has_its_arm(table, scale, tmp_path):
    """What the bench makes of each configuration is what the plan says, and the cells find their arms there."""
    spec, planned = plans(table, tmp_path, scale)
    for row in spec.rows:
        for column in spec.columns:
            group = planned[row.group or column.group or spec.group]
            names = {arm.name for arm in group.arms} | {TEACHER_ARM}
            assert (row.arm or column.arm) in names
            assert (row.against or column.against or TEACHER_ARM) in names
    for group in planned.values():
        for comparison in group.comparisons:
            assert set(comparison.arms) == set(arms_of(comparison.configuration))


def test_tables_share_the_runs_of_a_group(tmp_path):
    runs = {table: plans(table, tmp_path)[1]["resnet50-vgg8"].runs for table in (2, 4, 5)}
    assert len(set(runs.values())) == 1
    assert plans(2, tmp_path)[1]["resnet50-resnet18"].runs == plans(6, tmp_path)[1]["resnet50-resnet18"].runs
    assert plans(2, tmp_path, assignments={"training": {"epochs": 3}})[1]["resnet50-vgg8"].runs != runs[2]
    # More seeds and another place of the data change no run that is there.
    assert plans(2, tmp_path, flags={"seeds": "5", "data_dir": "/data"})[1]["resnet50-vgg8"].runs == runs[2]


def test_the_papers_protocol(tmp_path):
    planned = plans(2, tmp_path)[1]["resnet50-vgg8"]
    configuration = planned.comparisons[0].configuration
    experiment, recipe = configuration.experiment, configuration.recipe("training")
    assert (recipe.epochs, recipe.learning_rate, recipe.momentum) == (120, 0.001, 0.9)
    assert (experiment.image_size, experiment.text, experiment.seeds) == (224, "ViT-B-32-quickgelu/openai", (0, 1, 2))
    assert (experiment.teacher_pretrained, experiment.student_pretrained) == (True, False)
    assert plans(2, tmp_path)[1]["resnet50-resnet18"].comparisons[0].configuration.experiment.student_pretrained
    assert configuration.settings_of("catkd")["cat_weight"] == 5
    cifar = plans(3, tmp_path)[1]["cifar100"].comparisons[0].configuration
    assert (cifar.experiment.image_size, cifar.experiment.augmentation) == (32, "crop_flip")
    # Its own configuration of this pair has 1.5; the paper states 5 for all.
    assert cifar.settings_of("catkd")["cat_weight"] == 5


def test_table_3_runs_tmkd_with_one_baseline_only(tmp_path):
    names = [arm.name for arm in plans(3, tmp_path)[1]["dtd"].arms]
    assert sorted(names) == ["catkd", "kd", "rkd", "sp", "student", "tekap", "tekap+tmkd"]


def test_rows_of_table_6_differ_in_losses_only(tmp_path):
    configuration = plans(6, tmp_path)[1]["resnet50-resnet18"].comparisons[0].configuration
    variants = configuration.experiment.variants
    assert {variant["logit_source"] for variant in variants.values()} == {"rgb"}
    assert variants["logits"]["feature_weight"] == variants["logits"]["contrast_weight"] == 0


def test_substitution_by_digits(tmp_path):
    planned = plans(2, tmp_path, "smoke", problem="The data set 'cub200' is not there. Expected it somewhere.")[1]
    group = planned["vgg13-vgg8"]
    experiment = group.comparisons[0].configuration.experiment
    assert (experiment.dataset, experiment.text, experiment.train_limit) == ("digits", "small_clip", 40)
    assert group.substitution == "digits in place of CUB-200: The data set 'cub200' is not there"
    assert group.runs.name.startswith("digits-vgg13-vgg8-")
    assert not experiment.download
    # The other scales show a group without its data as failed instead.
    assert plans(2, tmp_path, "paper", problem="missing")[1]["vgg13-vgg8"].dataset == "cub200"


def test_one_text_file_for_each_data_set(tmp_path):
    planned = plans(3, tmp_path, flags={"text": "clip/{dataset}.npz"})[1]
    texts = {name: plan.comparisons[-1].configuration.experiment.text for name, plan in planned.items()}
    assert texts["dtd"] == "clip/dtd.npz"
    assert len(set(texts.values())) == 4


def test_what_the_table_gives_can_not_be_set(tmp_path):
    with pytest.raises(InputError, match=r"--set student: Table 2 gives it\. Choose with --pairs"):
        plans(2, tmp_path, assignments={"student": "vgg11"})
    with pytest.raises(InputError, match=r"training\.epoch: unknown key.*Did you mean 'training\.epochs'"):
        plans(2, tmp_path, assignments={"training": {"epoch": 2}})


def test_selection(tmp_path):
    spec, planned = plans(2, tmp_path, pairs=["resnet50:vgg8"], baselines=["catkd"])
    assert [row.id for row in spec.rows] == ["catkd", "catkd+ours"]
    assert [column.id for column in spec.columns] == ["resnet50-vgg8"]
    assert spec.rows[0].paper == (39.85,)
    assert [arm.name for arm in planned["resnet50-vgg8"].arms] == ["catkd", "catkd+tmkd"]
    spec, planned = plans(3, tmp_path, datasets=["dtd"], baselines=["kd", "sp"])
    assert [column.id for column in spec.columns] == ["teacher", "student", "kd", "sp"]
    assert spec.rows[0].paper == (68.83, 66.44, 66.86, 66.75)
    assert list(planned) == ["dtd"]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"pairs": ["resnet50:vgg9"]}, "Unknown pair of Table 2 'resnet50:vgg9'. Did you mean 'resnet50:vgg8'"),
        ({"datasets": ["cub"]}, "Unknown data set of Table 2 'cub'.*Known: cub200"),
        ({"baselines": ["cat"]}, "Unknown baseline of Table 2 'cat'. Did you mean 'catkd'"),
    ],
)
def test_what_a_table_does_not_have(tmp_path, wanted, message):
    with pytest.raises(InputError, match=message):
        plans(2, tmp_path, **wanted)


def test_controls(tmp_path):
    spec, planned = plans(2, tmp_path, controls=True, baselines=["kd", "rkd"])
    rows = "kd kd+ours kd@rgb_teacher rkd rkd+ours rkd+logit_kl rkd@rgb_teacher"
    assert [row.id for row in spec.rows] == rows.split()
    assert all(row.ours for row in spec.rows if "control" in row.labels[0])
    (comparison,) = planned["vgg13-vgg8"].comparisons
    assert {arm.name for arm in comparison.arms} == {arm.name for arm in arms_of(comparison.configuration)}
