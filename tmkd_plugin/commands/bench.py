"""``tmkd bench``: distillation methods with and without an enhancer."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tmkd_plugin.commands.engine import add_engine, ray_options
from tmkd_plugin.commands.parser import seconds, whole_number
from tmkd_plugin.errors import InputError
from tmkd_plugin.presets import preset_names

EXAMPLES = """\
examples:
  tmkd bench --baseline kd
      KD and KD + TMKD on the handwritten digits inside scikit-learn, 3 seeds; no download
  tmkd bench --baseline all --controls --seeds 5
      all baselines, each alone, with TMKD, and with its control arms
  tmkd bench --baseline kd --enhancer tmkd,richkd,tmkd+richkd
      KD alone, with TMKD, with RichKD, and with TMKD around RichKD
  tmkd bench --baseline catkd --dataset ./images --preset cifar10_small --text clip.npz --seeds 0-7
      a folder with train/<class>/ and test/<class>/, text embeddings from a file, seeds 0 to 7
  tmkd bench --set tmkd.feature_weight=0.5 --set kd.temperature=2 --set training.epochs=20
      other values than the preset's; `tmkd list baselines` names the settings
  tmkd bench --baseline my_package.my_module:MyDistiller --set alpha=0.3
      a distiller of your own, called as MyDistiller(student=..., teacher=..., alpha=0.3)

several processes, each on a GPU of its own or all on the CPU:
  torchrun --nproc-per-node 2 -m tmkd_plugin bench --baseline kd --device cuda

exit codes: 0 done, 2 unusable input, 3 a run failed, 130 interrupted
"""


def add_parser(commands: Any) -> None:
    """Adds ``tmkd bench`` to the commands."""
    bench = commands.add_parser(
        "bench",
        help="compare distillation methods with and without an enhancer",
        description="Train a teacher, then each baseline alone and with each enhancer, seed by seed, and compare them.",
        epilog=EXAMPLES,
    )
    what = bench.add_argument_group("what is compared")
    add = what.add_argument
    add(
        "--baseline",
        metavar="NAME",
        help="kd, rkd, sp, catkd, tekap, several with commas, all, or module:Class (default: kd)",
    )
    add(
        "--enhancer",
        metavar="NAME",
        help="tmkd or richkd: each baseline alone and with it; tmkd,richkd: with each of them; tmkd+richkd: with the first "
        "around the second; none: the baselines alone (default: tmkd)",
    )
    add(
        "--controls",
        action="store_true",
        help="add two control arms for each baseline: + logit KL; RGB-trained teacher",
    )
    add("--seeds", metavar="SEEDS", help="3 for seeds 0, 1, 2; or a list 0,1,5; or a range 8-15 (default: 3)")
    data = bench.add_argument_group("data and networks")
    add = data.add_argument
    add(
        "--dataset",
        metavar="NAME|DIR",
        help="a name of `tmkd list datasets`, or a folder with train/<class>/ and test/<class>/ (default: digits)",
    )
    add(
        "--data-dir",
        metavar="DIR",
        help="where data sets known by name lie (default: $TMKD_DATA_DIR or ~/.cache/tmkd/datasets)",
    )
    add("--image-size", metavar="PIXELS", type=whole_number, help="side of the square images")
    add(
        "--teacher",
        metavar="NET",
        help="teacher network, see `tmkd list networks`; also timm/<name>, torchvision/<name>",
    )
    add(
        "--teacher-views",
        metavar="VIEWS",
        help="what the teacher is trained on: rgb, or all (a view drawn for each image)",
    )
    add(
        "--teacher-recipe",
        metavar="NAME|FILE",
        help="recipe of a teacher trained here, see `tmkd teachers list --recipes` (default: the preset's)",
    )
    add("--teacher-checkpoint", metavar="FILE", help="weights of your own teacher, instead of training one")
    add("--student", metavar="NET", help="student network")
    add(
        "--text",
        metavar="SOURCE",
        help="text teacher: small_clip, MODEL/TAG of open_clip, or a file of embeddings (.npz)",
    )
    _add_acceleration(bench.add_argument_group("speed and memory").add_argument)
    values = bench.add_argument_group("values and files")
    add = values.add_argument
    add("--preset", metavar="NAME|FILE", help=f"{', '.join(preset_names())}, or a YAML file (default: by the data set)")
    add(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="change a value, such as training.epochs=20; repeatable",
    )
    add("--out", metavar="DIR", type=Path, help="folder of the results (default: runs/<dataset>-<baseline>-<enhancer>)")
    add("--overwrite", action="store_true", help="replace results that stand there")
    add(
        "--resume",
        action="store_true",
        help="go on with what an unfinished comparison left in the folder (this is the default; --overwrite starts again)",
    )
    add(
        "--checkpoint-seconds",
        metavar="S",
        type=seconds,
        default=60.0,
        help="least time between two checkpoints of a run (default: 60; no result depends on it)",
    )
    add(
        "--threads",
        metavar="N",
        type=whole_number,
        help="CPU threads, which results depend on in the last bits (default: torch's)",
    )
    add_engine(add)
    add(
        "--tensorboard", action="store_true", help="write TensorBoard events into each run's folder (extra tensorboard)"
    )
    add("--quiet", action="store_true", help="print the outcome only")
    add("--debug", action="store_true", help="show the traceback of an unexpected error")
    bench.set_defaults(run=run)


def _add_acceleration(add: Callable[..., Any]) -> None:
    add("--device", metavar="DEVICE", help="where to train: cpu, cuda, cuda:1 (default: cpu)")
    add("--precision", choices=("fp32", "bf16", "fp16"), help="what networks compute with (default: fp32)")
    add(
        "--accumulation-steps",
        metavar="N",
        type=whole_number,
        help="take a batch through the networks in N parts, for large batches in little memory (default: 1)",
    )
    add("--clip-norm", metavar="NORM", type=float, help="largest L2 norm of a student's gradients (default: no limit)")
    add(
        "--compile",
        metavar="BACKEND",
        nargs="?",
        const="inductor",
        help="compile student and teacher with torch.compile (default backend: inductor)",
    )
    add("--channels-last", action="store_true", help="lay networks out NHWC; on GPUs only")
    add("--sync-batch-norm", action="store_true", help="batch norm statistics over all processes; on GPUs only")
    add(
        "--teacher-batch",
        metavar="N",
        type=whole_number,
        help="images that the teacher sees at a time, which caps its memory (default: the whole batch)",
    )
    add(
        "--augmentation-variants",
        metavar="K",
        type=whole_number,
        help="replay K augmentations of each image, in turn (default: another one in each epoch)",
    )
    add(
        "--teacher-cache",
        action="store_true",
        help="keep the teacher's answers on disk ($TMKD_CACHE) instead of running it in each step; needs "
        "--augmentation-variants where images are augmented",
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs a comparison and returns the exit code."""
    from tmkd_plugin.config import parse_assignments

    # Unlike `python -m`, an installed command does not look for module:Class in the current folder by itself.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    assignments = parse_assignments(arguments.set)
    from tmkd_plugin.bench.command import BenchOptions, bench
    from tmkd_plugin.training.distributed import joined_processes

    if arguments.resume and arguments.overwrite:
        raise InputError("--resume and --overwrite exclude each other: go on with the runs there, or replace them.")
    names = (
        "dataset",
        "data_dir",
        "image_size",
        "teacher",
        "teacher_views",
        "teacher_recipe",
        "teacher_checkpoint",
        "student",
        "baseline",
        "enhancer",
        "seeds",
        "text",
        "device",
        "precision",
        "accumulation_steps",
        "clip_norm",
        "compile",
        "arms_at_once",
        "augmentation_variants",
        "teacher_batch",
    )
    flags = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    switches = ("controls", "channels_last", "sync_batch_norm", "teacher_cache")
    flags |= {name: True for name in switches if getattr(arguments, name)}
    with joined_processes() as processes:
        return bench(
            BenchOptions(
                flags=flags,
                assignments=assignments,
                preset=arguments.preset,
                out=arguments.out,
                overwrite=arguments.overwrite,
                threads=arguments.threads,
                quiet=arguments.quiet,
                checkpoint_seconds=arguments.checkpoint_seconds,
                tensorboard=arguments.tensorboard,
                ray=ray_options(arguments),
                processes=processes,
            )
        )
