"""Free memory inside of control groups, as containers, batch systems and systemd make them."""

from __future__ import annotations

import math

import pytest

from tmkd_plugin.training.group_memory import free_in_groups

GIB = 2**30
NAMES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}
VERSIONS = pytest.mark.parametrize("version", [1, 2])


@pytest.fixture
def machine(tmp_path):
    """A function that lays out groups, {path: (limit, used, inactive cache) in GiB}, and asks for a process in one of them."""

    def free(version, own, groups):
        root = tmp_path / "cgroup" / "memory" if version == 1 else tmp_path / "cgroup"
        limit_file, used_file, cache_line = NAMES[version]
        for path, (limit, used, cache) in groups.items():
            folder = root / path.strip("/")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / limit_file).write_text(f"{limit if isinstance(limit, str) else int(limit * GIB)}\n")
            (folder / used_file).write_text(f"{int(used * GIB)}\n")
            (folder / "memory.stat").write_text(f"anon 5\n{cache_line} {int(cache * GIB)}\nactive_file 7\n")
        lines = ["1:name=systemd:/elsewhere", f"4:cpu,memory:{own}", "0::/"] if version == 1 else [f"0::{own}"]
        (tmp_path / "of_process").write_text("\n".join(lines) + "\n")
        return free_in_groups(tmp_path / "of_process", tmp_path / "cgroup") / GIB

    return free


@VERSIONS
def test_files_that_were_read_count_as_free(machine, version):
    assert machine(version, "/", {"/": (8, 7.5, 7)}) == 7.5


@VERSIONS
def test_the_tightest_group_of_the_chain_counts(machine, version):
    groups = {"/": (64, 10, 0), "/slurm": (16, 4, 1), "/slurm/job": (32, 4, 1), "/other": (1, 1, 0)}
    assert machine(version, "/slurm/job", groups) == 13
    groups["/slurm/job"] = (6, 4, 1)
    assert machine(version, "/slurm/job", groups) == 3


@VERSIONS
def test_a_group_whose_name_is_that_of_the_host_is_read_where_the_container_sees_it(machine, version):
    assert machine(version, "/docker/8bbc:45", {"/": (4, 1, 0)}) == 3


def test_no_limit_and_no_groups_leave_everything(machine, tmp_path):
    assert machine(2, "/user", {"/": ("max", 3, 1), "/user": ("max", 3, 1)}) == math.inf
    assert free_in_groups(tmp_path / "nothing", tmp_path) == math.inf
