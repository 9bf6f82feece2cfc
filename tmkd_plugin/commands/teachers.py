"""``tmkd teachers``: the store of trained teachers, which every comparison takes its teachers from."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from tmkd_plugin.commands.parser import seconds, whole_number

EXAMPLES = """\
examples:
  tmkd teachers train --network resnet14 --dataset digits
      the teacher that `tmkd bench --dataset digits` takes; the recipe is that of the data set's preset
  tmkd teachers train --network resnet50 --dataset cub200 --pretrained --recipe fine_tune_224 --views rgb
      from ImageNet weights, with a recipe by name, on RGB images only
  tmkd teachers train --network resnet32x4 --dataset ./images --set epochs=30 --set train_limit=600
      other values than the recipe's or the data set's own
  tmkd teachers list --recipes
      the recipes, with their values and where they come from
  tmkd teachers verify resnet14
      measure the stored teachers of a network again; exit code 1 if one is not what its record says

Teachers lie in $TMKD_CACHE/teachers, else in ~/.cache/tmkd/teachers.
exit codes: 0 done, 1 a teacher is not what its record says, 2 unusable input, 3 training failed, 130 interrupted
"""


def add_parser(commands: Any) -> None:
    """Adds ``tmkd teachers`` to the commands."""
    teachers = commands.add_parser(
        "teachers",
        help="list, train and verify the teachers that comparisons share",
        description="Teachers by name: trained once, kept with their record, verified whenever they are loaded.",
        epilog=EXAMPLES,
    )
    actions = teachers.add_subparsers(dest="action", metavar="ACTION", required=True)
    _add_list(actions)
    _add_train(actions)
    _add_verify(actions)


def _add_list(actions: Any) -> None:
    lists = actions.add_parser("list", help="show the stored teachers", description="Show the stored teachers.")
    lists.add_argument(
        "--recipes", action="store_true", help="show the recipes that teachers can be trained with instead"
    )
    lists.add_argument("--debug", action="store_true", help="show the traceback of an unexpected error")
    lists.set_defaults(run=run)


def _add_train(actions: Any) -> None:
    train = actions.add_parser(
        "train",
        help="train a teacher, unless it is there",
        description="Train a teacher, unless it is there.",
        epilog=EXAMPLES,
    )
    add = train.add_argument
    add(
        "--network", metavar="NET", required=True, help="see `tmkd list networks`; also timm/<name>, torchvision/<name>"
    )
    add("--dataset", metavar="NAME|DIR", required=True, help="see `tmkd list datasets`; or a folder of images")
    add("--recipe", metavar="NAME|FILE", help="see `tmkd teachers list --recipes` (default: that of the preset)")
    add(
        "--preset",
        metavar="NAME|FILE",
        help="where other values come from, as for `tmkd bench` (default: by the data set)",
    )
    add(
        "--views",
        metavar="VIEWS",
        help="what it sees: rgb, or all (a view drawn for each image) (default: by the preset)",
    )
    add("--pretrained", action="store_true", help="start from the weights that torchvision or timm offer")
    add("--seed", metavar="N", help="of initialisation, order, augmentation and views (default: 0)")
    add("--image-size", metavar="PIXELS", type=whole_number, help="side of the square images")
    add("--data-dir", metavar="DIR", help="where data sets known by name lie")
    add(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="change a value, such as epochs=20, train_limit=600, canny_low=50; repeatable",
    )
    add("--device", metavar="NAME", help="cpu, cuda, cuda:N (default: cpu)")
    add("--threads", metavar="N", type=whole_number, help="CPU threads (default: torch's)")
    add(
        "--checkpoint-seconds",
        metavar="S",
        type=seconds,
        default=60.0,
        help="least time between checkpoints (default: 60)",
    )
    add("--quiet", action="store_true", help="print the outcome only")
    add("--debug", action="store_true", help="show the traceback of an unexpected error")
    train.set_defaults(run=run)


def _add_verify(actions: Any) -> None:
    verify = actions.add_parser(
        "verify",
        help="measure stored teachers again",
        description="Hash, load and measure stored teachers again, and compare them with their records.",
    )
    verify.add_argument(
        "teachers", metavar="NAME|HASH", nargs="*", help="networks or first digits of hashes (default: all)"
    )
    verify.add_argument("--data-dir", metavar="DIR", help="where data sets known by name lie (default: where they lay)")
    verify.add_argument("--device", metavar="NAME", default="cpu", help="cpu, cuda, cuda:N (default: cpu)")
    verify.add_argument("--threads", metavar="N", type=whole_number, help="CPU threads (default: torch's)")
    verify.add_argument("--debug", action="store_true", help="show the traceback of an unexpected error")
    verify.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Lists, trains or verifies teachers and returns the exit code."""
    # Unlike `python -m`, an installed command does not look for module:callable in the current folder by itself.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    from tmkd_plugin.bench import teacher_command

    if arguments.action == "list":
        return teacher_command.list_recipes() if arguments.recipes else teacher_command.list_teachers()
    if arguments.action == "verify":
        return teacher_command.verify_teachers(
            arguments.teachers or ["all"],
            data_dir=arguments.data_dir,
            device=arguments.device,
            threads=arguments.threads,
        )
    options = {
        "dataset": arguments.dataset,
        "teacher": arguments.network,
        "teacher_views": arguments.views,
        "teacher_pretrained": arguments.pretrained or None,
        "teacher_seed": arguments.seed,
        "image_size": arguments.image_size,
        "data_dir": arguments.data_dir,
        "device": arguments.device,
    }
    return teacher_command.train_teacher(
        {name: value for name, value in options.items() if value is not None},
        assignments=arguments.set,
        recipe=arguments.recipe,
        preset=arguments.preset,
        threads=arguments.threads,
        quiet=arguments.quiet,
        checkpoint_seconds=arguments.checkpoint_seconds,
    )
