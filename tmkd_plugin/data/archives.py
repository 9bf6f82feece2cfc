"""Archives from elsewhere, unpacked without trust, and the folders of data sets that come in them.

No path leaves the folder, nothing but plain files and folders is made, and sizes are bounded while the bytes come out.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO, cast

from tmkd_plugin.data.download import fetch, file_fault, known_checks, temporary_file
from tmkd_plugin.data.request import DatasetRequest
from tmkd_plugin.errors import InputError

MAX_FILES = 500_000
MAX_DEPTH = 32
_BLOCK = 1 << 16
_TAR_BLOCK = 512
# What tar adds to each file: its header, padding, and an extended header for a long name.
_TAR_EXTRA_BYTES = 4 * 1024


@dataclass(frozen=True)
class ArchiveSource:
    """An archive that holds a data set or a part of it.

    Attributes:
        url: Where it is; ``None`` if it can't be had by a program, such as for its licence.
        file_name: Its name in the folder of data sets.
        md5: Its MD5 in hexadecimal, if it is known.
        sha256: Its SHA-256 in hexadecimal, if it is known.
        size: Its size in bytes, if it is known.
        inside: The folder in the archive that becomes the data set's folder, such as ``cifar-10-batches-py``; what lies
            beside it is left out. ``None`` takes everything.
    """

    url: str | None
    file_name: str
    md5: str | None = None
    sha256: str | None = None
    size: int | None = None
    inside: str | None = None

    def fault(self, path: Path) -> str | None:
        """What is wrong with this file as that archive, in words; ``None`` if nothing is."""
        return file_fault(path, md5=self.md5, sha256=self.sha256, size=self.size)


def prepare_folder(
    name: str,
    request: DatasetRequest,
    folder_name: str,
    archives: ArchiveSource | Sequence[ArchiveSource],
    *,
    marker: str,
    max_bytes: int,
    max_files: int = MAX_FILES,
    instructions: str = "",
) -> Path:
    """Finds the folder of a data set, or makes it of its archives, which are downloaded if that is allowed.

    Args:
        name: The data set, for messages.
        request: Gives the folder of data sets, whether to download, and whom to tell.
        folder_name: The data set's folder in the folder of data sets.
        archives: Everything that is unpacked into that folder.
        marker: A path below the data set's folder by which it is recognised, such as ``batches.meta``. The folder of data
            sets may be the data set's folder itself.
        max_bytes: Bound on what each archive unpacks to.
        max_files: Bound on the number of files and folders in each archive.
        instructions: Sentences for the user on how the data set is to be had, added to the error if it is missing.

    Returns:
        The folder, which has the marker.

    Raises:
        InputError: The data set is not there and can't be made.
    """
    archives = [archives] if isinstance(archives, ArchiveSource) else list(archives)
    folder = request.data_dir / folder_name
    for candidate in (folder, request.data_dir):
        if (candidate / marker).exists():
            return candidate
    if folder.exists():
        raise InputError(
            f"The folder '{folder}' of the data set '{name}' has no '{marker}': it is incomplete or of another data set."
            " Complete it, or move it away to have it made anew."
        )
    paths = [_find_archive(name, request, folder, archive, marker, instructions) for archive in archives]
    if not paths:
        raise _missing(name, folder, marker, "", instructions)
    request.say(f"Unpacking {', '.join(path.name for path in paths)} to '{folder}'.")
    parts = [(path, archive.inside) for path, archive in zip(paths, archives, strict=True)]
    _unpack_together(parts, folder, max_bytes=max_bytes, max_files=max_files, required=marker)
    return folder


def unpack(
    archive: Path, folder: Path, *, max_bytes: int, max_files: int = MAX_FILES, inside: str | None = None
) -> Path:
    """Unpacks a tar archive (plain, gzip, bzip2, xz) or a zip archive into a new folder, all of it or nothing.

    Refused are absolute paths, ``..``, symbolic and hard links, devices, sparse files, encrypted files, two files of the
    same name, and more bytes or files than allowed. Permissions, owners and times are not taken over.

    Args:
        archive: The file; its kind is told by its content.
        folder: The folder to make. If another process has made it meanwhile, that one stays.
        max_bytes: Bound on the sum of the files' sizes.
        max_files: Bound on the number of files and folders.
        inside: The folder in the archive whose content becomes ``folder``; ``None`` for the whole archive.

    Returns:
        The folder.

    Raises:
        InputError: The archive is damaged, cut off, too large or not to be trusted.
    """
    return _unpack_together([(archive, inside)], folder, max_bytes=max_bytes, max_files=max_files)


def _find_archive(
    name: str, request: DatasetRequest, folder: Path, archive: ArchiveSource, marker: str, instructions: str
) -> Path:
    path = request.data_dir / archive.file_name
    fault = archive.fault(path) if path.is_file() else "is missing"
    if fault is None:
        return path
    if archive.url is not None and request.download:
        return fetch(archive.url, path, md5=archive.md5, sha256=archive.sha256, size=archive.size, say=request.say)
    source = f"get it from {archive.url}, or allow downloads" if archive.url is not None else "put it there"
    checks = known_checks(md5=archive.md5, sha256=archive.sha256, size=archive.size)
    text = f" or the archive '{path}' ({checks}), which {fault}: {source}."
    raise _missing(name, folder, marker, text, instructions)


def _missing(name: str, folder: Path, marker: str, archive: str, instructions: str) -> InputError:
    text = f"The data set '{name}' is not there. Expected its folder '{folder}' with '{marker}' in it{archive or '.'}"
    return InputError(f"{text} {instructions}".strip())


def _unpack_together(
    parts: Sequence[tuple[Path, str | None]],
    folder: Path,
    *,
    max_bytes: int,
    max_files: int,
    required: str | None = None,
) -> Path:
    with temporary_file(folder) as temporary:
        temporary.mkdir()
        for archive, inside in parts:
            _unpack_into(archive, temporary, max_bytes=max_bytes, max_files=max_files, inside=inside)
        if required is not None and not (temporary / required).exists():
            names = ", ".join(f"'{archive}'" for archive, _ in parts)
            raise InputError(f"{names} can't be used: it holds no '{required}', so it is not the expected archive.")
        try:
            temporary.rename(folder)
        except OSError:
            # Another process that unpacked the same archive was faster.
            if not folder.is_dir():
                raise
    return folder


def _unpack_into(archive: Path, target: Path, *, max_bytes: int, max_files: int, inside: str | None) -> None:
    writer = _Writer(archive, target, max_bytes, max_files, inside)
    try:
        if zipfile.is_zipfile(archive):
            _read_zip(archive, writer)
        else:
            _read_tar(archive, writer)
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        NotImplementedError,  # a zip's compression that Python does not know
    ) as error:
        raise _damaged(archive, error) from error
    except OSError as error:
        # Readers raise bare OSErrors on damaged data, the operating system's come with a number.
        if error.errno is None:
            raise _damaged(archive, error) from error
        raise InputError(f"'{archive}' can't be unpacked to '{target.parent}': {error.strerror}.") from error
    if inside is not None and not writer.found_inside:
        raise InputError(f"The archive '{archive}' has no folder '{inside}': it is not the expected one.")


def _damaged(archive: Path, error: Exception | str) -> InputError:
    return InputError(
        f"The archive '{archive}' is damaged, cut off or no tar or zip archive ({error}). Remove it and get it again."
    )


class _Writer:
    """Puts the members of one archive below a folder, counting and checking each."""

    def __init__(self, archive: Path, target: Path, max_bytes: int, max_files: int, inside: str | None) -> None:
        self.archive = archive
        self.target = target
        self.max_bytes = max_bytes
        self.max_files = max_files
        self.inside = PurePosixPath(inside or ".")
        self.found_inside = False
        self._bytes = 0
        self._members = 0
        self._folders: set[Path] = {target}

    def add_folder(self, name: str) -> None:
        path = self._place(name)
        if path is not None:
            self._make_folder(path)

    def add_file(self, name: str, declared: int, content: IO[bytes]) -> None:
        path = self._place(name)
        # Refused before a byte is written, if the archive is honest about it.
        self._check_bytes(self._bytes + declared)
        if path is None:
            self._bytes += declared
            return
        self._make_folder(path.parent)
        try:
            file = path.open("xb")
        except FileExistsError:
            raise self.refused(name, "it is there twice") from None
        written = 0
        with file:
            while block := content.read(_BLOCK):
                written += len(block)
                self._check_bytes(self._bytes + written)
                file.write(block)
        self._bytes += written
        if written != declared:
            raise _damaged(self.archive, f"{name!r} has {written:,} of {declared:,} bytes")

    def refused(self, name: str, reason: str) -> InputError:
        return InputError(f"The archive '{self.archive}' is not unpacked, because of its member {name!r}: {reason}.")

    def _place(self, name: str) -> Path | None:
        """Where a member goes; ``None`` if it is not part of what is wanted."""
        self._members += 1
        if self._members > self.max_files:
            raise InputError(
                f"The archive '{self.archive}' has more than the {self.max_files:,} files that are allowed."
            )
        path = PurePosixPath(name)
        # Backslashes and colons mean folders and drives on Windows.
        if path.is_absolute() or ".." in path.parts or any(character in name for character in "\\:\0"):
            raise self.refused(name, "its path may lead out of the folder")
        if len(path.parts) > MAX_DEPTH:
            raise self.refused(name, f"its path is more than {MAX_DEPTH} folders deep")
        if path != self.inside and self.inside not in path.parents:
            return None
        self.found_inside = True
        return self.target / path.relative_to(self.inside)

    def _make_folder(self, path: Path) -> None:
        if path not in self._folders:
            try:
                path.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError):
                raise self.refused(str(path.relative_to(self.target)), "it is a file and a folder") from None
            self._folders.add(path)

    def _check_bytes(self, total: int) -> None:
        if total > self.max_bytes:
            raise InputError(
                f"The archive '{self.archive}' unpacks to more than the {self.max_bytes / 1e6:,.1f} MB that are allowed."
            )


def _read_zip(archive: Path, writer: _Writer) -> None:
    with zipfile.ZipFile(archive) as source:
        for member in source.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise writer.refused(member.filename, "it is a link or a device")
            if member.flag_bits & 1:
                raise writer.refused(member.filename, "it is encrypted")
            if member.is_dir():
                writer.add_folder(member.filename)
                continue
            # Opened by its entry, not by its name: two entries may have the same name.
            with source.open(member) as content:
                writer.add_file(member.filename, member.file_size, content)


def _read_tar(archive: Path, writer: _Writer) -> None:
    with _decompressed(archive) as plain:
        stream = _BoundedReader(plain, writer)
        end = 0
        # As a stream: nothing is read twice, and nothing is looked up behind what has been checked.
        with tarfile.open(fileobj=cast("BinaryIO", stream), mode="r|") as source:
            for member in source:
                end = member.offset_data
                if member.isdir():
                    writer.add_folder(member.name)
                    continue
                if not member.isreg() or member.issparse():
                    raise writer.refused(member.name, "it is a link, a device or a sparse file")
                content = source.extractfile(member)
                assert content is not None  # of a plain file there is one
                writer.add_file(member.name, member.size, content)
                end += -(-member.size // _TAR_BLOCK) * _TAR_BLOCK
        # tarfile takes a damaged header, or none, for the end of the archive; the end is a block of zeros.
        stream.drain()
        if stream.total < end + _TAR_BLOCK or stream.last_data > end:
            raise _damaged(archive, "it ends without an end mark")


@contextmanager
def _decompressed(archive: Path) -> Iterator[IO[bytes]]:
    with archive.open("rb") as file:
        start = file.read(8)
        file.seek(0)
        if start.startswith(b"\x1f\x8b"):
            with gzip.GzipFile(fileobj=file) as plain:
                yield cast("IO[bytes]", plain)
        elif start.startswith(b"BZh"):
            with bz2.BZ2File(file) as plain:
                yield cast("IO[bytes]", plain)
        elif start.startswith(b"\xfd7zXZ\x00"):
            with lzma.LZMAFile(file) as plain:
                yield cast("IO[bytes]", plain)
        else:
            yield file


class _BoundedReader:
    """Reads a tar archive's bytes, never more of them than its files may have."""

    def __init__(self, plain: IO[bytes], writer: _Writer) -> None:
        self.total = 0
        self.last_data = 0  # the number of bytes up to the last one that is not zero
        self._plain = plain
        self._writer = writer
        self._bound = writer.max_bytes + writer.max_files * _TAR_EXTRA_BYTES

    def read(self, size: int) -> bytes:
        block = self._plain.read(size)
        data = len(block.rstrip(b"\0"))
        if data:
            self.last_data = self.total + data
        self.total += len(block)
        if self.total > self._bound:
            raise InputError(f"The archive '{self._writer.archive}' has more bytes than its files may have.")
        return block

    def drain(self) -> None:
        """Reads to the end, where compressed files have their checksum."""
        while self.read(_BLOCK):
            pass
