import contextlib
import gzip
import hashlib
import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from tmkd_plugin.data.archives import ArchiveSource, prepare_folder, unpack
from tmkd_plugin.data.request import DatasetRequest
from tmkd_plugin.errors import InputError

FILES = {
    "set/labels.txt": b"1 cat\n2 dog\n",
    "set/images/a.jpg": b"\xff\xd8" * 1000,
    "set/empty.txt": b"",
    "notes.txt": b"hi",
}
TAR_MODES = {"tar": "w", "tar.gz": "w:gz", "tgz": "w:gz", "tar.bz2": "w:bz2", "tar.xz": "w:xz"}
MEGABYTE = 10**6


def write_archive(path, files=FILES, kind=None):
    kind = kind or path.name.split(".", 1)[1]
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return path
    with tarfile.open(path, TAR_MODES[kind]) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_tar_member(path, name, kind, **fields):
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo(name)
        member.type = kind
        for field, value in fields.items():
            setattr(member, field, value)
        archive.addfile(member)
    return path


def content_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_nothing_left(folder, *kept):
    assert sorted(path.name for path in folder.iterdir()) == sorted(kept)


@pytest.mark.parametrize("kind", [*TAR_MODES, "zip"])
def test_every_kind_of_archive_gives_its_files(tmp_path, kind):
    archive = write_archive(tmp_path / f"data.{kind}")
    assert unpack(archive, tmp_path / "out", max_bytes=MEGABYTE) == tmp_path / "out"
    assert content_of(tmp_path / "out") == FILES
    assert_nothing_left(tmp_path, archive.name, "out")


def test_the_kind_is_told_by_content_not_by_name(tmp_path):
    archive = write_archive(tmp_path / "download", kind="tar.gz")
    assert content_of(unpack(archive, tmp_path / "out", max_bytes=MEGABYTE)) == FILES


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_a_folder_inside_becomes_the_folder(tmp_path, kind):
    files = {f"./{name}": content for name, content in FILES.items()} if kind != "zip" else FILES
    archive = write_archive(tmp_path / f"data.{kind}", files)
    unpack(archive, tmp_path / "out", max_bytes=MEGABYTE, inside="set")
    inner = {name.removeprefix("set/"): content for name, content in FILES.items() if name.startswith("set/")}
    assert content_of(tmp_path / "out") == inner
    with pytest.raises(InputError, match="has no folder 'other': it is not the expected one"):
        unpack(archive, tmp_path / "again", max_bytes=MEGABYTE, inside="other")


def test_folders_made_by_folder_entries_and_permissions_not_taken_over(tmp_path):
    with tarfile.open(tmp_path / "data.tar", "w") as archive:
        folder = tarfile.TarInfo("set/empty")
        folder.type, folder.mode = tarfile.DIRTYPE, 0
        archive.addfile(folder)
        program = tarfile.TarInfo("set/run.sh")
        program.mode, program.size = 0o4777, 4
        archive.addfile(program, io.BytesIO(b"echo"))
    out = unpack(tmp_path / "data.tar", tmp_path / "out", max_bytes=MEGABYTE)
    assert (out / "set/empty").is_dir()
    assert stat.S_IMODE((out / "set/run.sh").stat().st_mode) & 0o7111 == 0


@pytest.mark.parametrize(
    "name", ["../evil.txt", "set/../../evil.txt", "/evil.txt", "C:\\evil.txt", "C:evil.txt", "set\\..\\evil"]
)
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_paths_that_leave_the_folder_are_refused(tmp_path, name, kind):
    archive = write_archive(tmp_path / f"data.{kind}", {"fine.txt": b"1", name: b"2"})
    with pytest.raises(InputError, match="its path may lead out of the folder"):
        unpack(archive, tmp_path / "out", max_bytes=MEGABYTE)
    assert_nothing_left(tmp_path, archive.name)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (tarfile.SYMTYPE, {"linkname": "/etc"}),
        (tarfile.SYMTYPE, {"linkname": "set/a.txt"}),
        (tarfile.LNKTYPE, {"linkname": "set/a.txt"}),
        (tarfile.CHRTYPE, {"devmajor": 1, "devminor": 3}),
        (tarfile.BLKTYPE, {}),
        (tarfile.FIFOTYPE, {}),
        (tarfile.GNUTYPE_SPARSE, {}),
    ],
)
def test_links_and_devices_in_tars_are_refused(tmp_path, kind, fields):
    archive = write_tar_member(tmp_path / "data.tar", "set/odd", kind, **fields)
    with pytest.raises(InputError, match=r"member 'set/odd': it is a link, a device or a sparse file"):
        unpack(archive, tmp_path / "out", max_bytes=MEGABYTE)
    assert_nothing_left(tmp_path, "data.tar")


def test_links_in_zips_are_refused(tmp_path):
    member = zipfile.ZipInfo("set/link")
    member.create_system, member.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr(member, "/etc/passwd")
    with pytest.raises(InputError, match=r"member 'set/link': it is a link or a device"):
        unpack(tmp_path / "data.zip", tmp_path / "out", max_bytes=MEGABYTE)


def test_encrypted_zips_are_refused(tmp_path):
    content = bytearray(write_archive(tmp_path / "data.zip", {"a.txt": b"secret"}).read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "data.zip").write_bytes(content)
    with pytest.raises(InputError, match=r"'a\.txt': it is encrypted"):
        unpack(tmp_path / "data.zip", tmp_path / "out", max_bytes=MEGABYTE)


@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_files_of_one_name_are_refused(tmp_path, kind):
    path = tmp_path / f"data.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.txt", "1")
            archive.writestr("a.txt", "2")
    else:
        with tarfile.open(path, "w") as archive:
            archive.addfile(tarfile.TarInfo("a.txt"))
            archive.addfile(tarfile.TarInfo("a.txt"))
    with pytest.raises(InputError, match=r"'a\.txt': it is there twice"):
        unpack(path, tmp_path / "out", max_bytes=MEGABYTE)


def test_a_file_that_is_also_a_folder_is_refused(tmp_path):
    archive = write_archive(tmp_path / "data.zip", {"a": b"1", "a/b": b"2"})
    with pytest.raises(InputError, match="it is a file and a folder"):
        unpack(archive, tmp_path / "out", max_bytes=MEGABYTE)


@pytest.mark.parametrize("kind", ["tar.gz", "tar.bz2", "tar.xz", "zip"])
def test_bombs_are_refused(tmp_path, kind):
    archive = write_archive(tmp_path / f"data.{kind}", {"bomb": bytes(5 * MEGABYTE)})
    assert archive.stat().st_size < 20_000
    with pytest.raises(InputError, match=r"unpacks to more than the 1\.0 MB that are allowed"):
        unpack(archive, tmp_path / "out", max_bytes=MEGABYTE)
    assert_nothing_left(tmp_path, archive.name)


def test_many_small_files_count_together(tmp_path):
    files = {f"{index}.txt": bytes(1000) for index in range(20)}
    archive = write_archive(tmp_path / "data.zip", files)
    unpack(archive, tmp_path / "exactly", max_bytes=20_000, max_files=20)
    with pytest.raises(InputError, match="more than the 19 files that are allowed"):
        unpack(archive, tmp_path / "out", max_bytes=MEGABYTE, max_files=19)
    with pytest.raises(InputError, match="unpacks to more than"):
        unpack(archive, tmp_path / "out", max_bytes=19_999)


def test_left_out_files_count_too(tmp_path):
    archive = write_archive(tmp_path / "data.zip", {"set/a": b"1", "beside": bytes(5000)})
    with pytest.raises(InputError, match="unpacks to more than"):
        unpack(archive, tmp_path / "out", max_bytes=4000, inside="set")


def test_a_zip_that_lies_about_sizes_is_not_believed(tmp_path):
    path = write_archive(tmp_path / "data.zip", {"bomb": bytes(5 * MEGABYTE)})
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = (100).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(InputError, match="is damaged"):
        unpack(path, tmp_path / "out", max_bytes=MEGABYTE)
    assert_nothing_left(tmp_path, path.name)


def test_bytes_between_the_files_of_a_tar_are_bounded(tmp_path):
    plain = write_archive(tmp_path / "small.tar", {"a.txt": b"1"}).read_bytes()
    with gzip.open(tmp_path / "data.tar.gz", "wb") as file:
        file.write(plain + bytes(30 * MEGABYTE))
    with pytest.raises(InputError, match="has more bytes than its files may have"):
        unpack(tmp_path / "data.tar.gz", tmp_path / "out", max_bytes=MEGABYTE, max_files=10)


def test_deep_paths_are_refused(tmp_path):
    archive = write_archive(tmp_path / "data.tar", {"a/" * 400 + "b": b"1"})
    with pytest.raises(InputError, match="more than 32 folders deep"):
        unpack(archive, tmp_path / "out", max_bytes=MEGABYTE)


@pytest.mark.parametrize("kind", [*TAR_MODES, "zip"])
def test_an_archive_that_is_cut_off_anywhere_gives_nothing(tmp_path, kind):
    whole = write_archive(tmp_path / f"whole.{kind}").read_bytes()
    # What follows the first zero block of a tar is padding: it may be missing.
    length = 512 * (4 + 1 + 4 + 1) if kind == "tar" else len(whole)
    path = tmp_path / f"data.{kind}"
    for cut in {0, 1, 100, length // 3, length // 2, 512 * 3, 512 * 4, length - 20, length - 1} & set(range(length)):
        path.write_bytes(whole[:cut])
        with pytest.raises(InputError, match=r"data\..*is damaged, cut off or no tar or zip archive"):
            unpack(path, tmp_path / "out", max_bytes=MEGABYTE)
        assert_nothing_left(tmp_path, path.name, f"whole.{kind}")


@pytest.mark.parametrize("kind", [*TAR_MODES, "zip"])
def test_a_changed_byte_gives_nothing_or_an_error_by_name(tmp_path, kind):
    whole = write_archive(tmp_path / f"whole.{kind}").read_bytes()
    path = tmp_path / f"data.{kind}"
    for position in range(0, len(whole), max(1, len(whole) // 60)):
        changed = bytearray(whole)
        changed[position] ^= 0xFF
        path.write_bytes(changed)
        out = tmp_path / f"out{position}"
        with contextlib.suppress(InputError):
            unpack(path, out, max_bytes=MEGABYTE)
        assert not out.exists() or content_of(out).keys() <= FILES.keys() or kind in ("tar", "zip")


def test_a_damaged_header_in_the_middle_of_a_tar_is_not_its_end(tmp_path):
    path = write_archive(tmp_path / "data.tar", {"a.txt": b"1", "b.txt": b"2"})
    content = bytearray(path.read_bytes())
    content[1024] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(InputError, match="it ends without an end mark"):
        unpack(path, tmp_path / "out", max_bytes=MEGABYTE)


def test_what_is_no_archive_is_refused(tmp_path):
    (tmp_path / "data.tar.gz").write_text("<html>Please log in</html>")
    with pytest.raises(InputError, match="no tar or zip archive"):
        unpack(tmp_path / "data.tar.gz", tmp_path / "out", max_bytes=MEGABYTE)


def test_a_folder_that_another_process_made_meanwhile_stays(tmp_path):
    archive = write_archive(tmp_path / "data.zip")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/theirs.txt").write_text("1")
    unpack(archive, tmp_path / "out", max_bytes=MEGABYTE)
    assert content_of(tmp_path / "out") == {"theirs.txt": b"1"}
    assert_nothing_left(tmp_path, "data.zip", "out")


# --- prepare_folder -------------------------------------------------------------------------------------------------


def source_of(path, **fields):
    given = {"md5": hashlib.md5(path.read_bytes()).hexdigest(), "inside": "set"} | fields
    return ArchiveSource("http://127.0.0.1:9/data.zip", path.name, **given)


def prepare(folder, archives, *, download=False, say=None, **options):
    request = DatasetRequest("cats", folder, download=download, say=say or (lambda line: None))
    return prepare_folder("cats", request, "set", archives, marker="labels.txt", max_bytes=MEGABYTE, **options)


def test_a_folder_that_is_there_is_used(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set/labels.txt").touch()
    assert prepare(tmp_path, []) == tmp_path / "set"
    assert prepare(tmp_path / "set", []) == tmp_path / "set"


def test_an_archive_that_lies_there_is_unpacked(tmp_path):
    archive = write_archive(tmp_path / "data.zip")
    lines = []
    assert prepare(tmp_path, source_of(archive), say=lines.append) == tmp_path / "set"
    assert (tmp_path / "set/images/a.jpg").read_bytes() == FILES["set/images/a.jpg"]
    assert lines == [f"Unpacking data.zip to '{tmp_path / 'set'}'."]
    archive.unlink()
    assert prepare(tmp_path, ArchiveSource(None, "data.zip")) == tmp_path / "set"


def test_several_archives_make_one_folder(tmp_path):
    lists = write_archive(tmp_path / "lists.tar", {"labels.txt": b"1"})
    images = write_archive(tmp_path / "images.tar", {"Images/a.jpg": b"2"})
    folder = prepare(tmp_path, [source_of(lists, inside=None), source_of(images, inside=None)])
    assert content_of(folder) == {"labels.txt": b"1", "Images/a.jpg": b"2"}


def test_a_missing_data_set_says_what_to_put_where(tmp_path):
    source = ArchiveSource("https://example.org/data.zip", "data.zip", md5="0" * 32)
    with pytest.raises(InputError) as error:
        prepare(tmp_path, source, instructions="Or ask the authors.")
    for part in (
        str(tmp_path / "set"),
        "labels.txt",
        str(tmp_path / "data.zip"),
        "0" * 32,
        source.url,
        "Or ask the authors.",
    ):
        assert part in str(error.value)


def test_a_data_set_that_no_program_can_get_says_so_even_if_downloads_are_allowed(tmp_path):
    with pytest.raises(InputError, match=r"labels\.txt' in it\. Ask the authors\.$"):
        prepare(tmp_path, [], download=True, instructions="Ask the authors.")
    with pytest.raises(InputError, match=r"basic\.zip' .*, which is missing: put it there"):
        prepare(tmp_path, ArchiveSource(None, "basic.zip"), download=True)


def test_an_archive_with_a_wrong_checksum_is_not_unpacked(tmp_path):
    archive = write_archive(tmp_path / "data.zip")
    with pytest.raises(InputError, match=f"which has md5 .*, expected {'0' * 32}"):
        prepare(tmp_path, source_of(archive, md5="0" * 32))
    assert_nothing_left(tmp_path, "data.zip")


def test_an_archive_without_the_marker_is_not_the_data_set(tmp_path):
    archive = write_archive(tmp_path / "data.zip", {"set/other.txt": b"1"})
    with pytest.raises(InputError, match=r"data\.zip' can't be used: it holds no 'labels\.txt'"):
        prepare(tmp_path, source_of(archive))
    assert_nothing_left(tmp_path, "data.zip")


def test_a_folder_without_the_marker_is_left_alone(tmp_path):
    archive = write_archive(tmp_path / "data.zip")
    (tmp_path / "set").mkdir()
    with pytest.raises(InputError, match=r"has no 'labels\.txt': it is incomplete or of another data set"):
        prepare(tmp_path, source_of(archive))
    assert list((tmp_path / "set").iterdir()) == []


def test_without_a_network_the_error_says_where_to_put_the_file(tmp_path):
    source = ArchiveSource("http://127.0.0.1:9/data.zip", "data.zip", md5="0" * 32)
    with pytest.raises(InputError) as error:
        prepare(tmp_path, source, download=True)
    for part in (source.url, "0" * 32, str(Path(tmp_path / "data.zip")), "run the same command again"):
        assert part in str(error.value)
    assert_nothing_left(tmp_path)
