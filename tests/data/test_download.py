import hashlib
import http.server
import os
import threading
import time
import urllib.request

import pytest

from tmkd_plugin.data.download import fetch, file_fault, temporary_file
from tmkd_plugin.errors import InputError

BODY = bytes(range(256)) * 4000  # 1,024,000 bytes
MD5 = hashlib.md5(BODY).hexdigest()
SHA256 = hashlib.sha256(BODY).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        if self.path == "/missing":
            self.send_error(404)
            return
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/file")
            self.end_headers()
            return
        self.send_response(200)
        if self.path != "/no-length":
            self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        if self.path == "/truncated":
            self.wfile.write(BODY[: len(BODY) // 2])
        elif self.path == "/stalls":
            self.wfile.write(BODY[:1000])
            self.wfile.flush()
            self.server.go_on.wait(10)
        else:
            self.wfile.write(BODY)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{server.server_port}"
    server.asked, server.go_on = [], threading.Event()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.go_on.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def target(tmp_path):
    return tmp_path / "below" / "data.zip"


def direct(request, timeout):
    """Opens without the proxies of the environment."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=timeout)


def fails(url, target, match, **options):
    with pytest.raises(InputError, match=match) as error:
        fetch(url, target, **({"opener": direct} | options))
    assert list(target.parent.iterdir()) == []
    return str(error.value)


@pytest.mark.parametrize("path", ["/file", "/no-length", "/moved"])
@pytest.mark.parametrize("checks", [{}, {"md5": MD5}, {"sha256": SHA256.upper()}, {"md5": MD5, "size": len(BODY)}])
def test_a_file_arrives_whole(server, target, path, checks):
    assert fetch(server.url + path, target, opener=direct, **checks) == target
    assert target.read_bytes() == BODY
    assert list(target.parent.iterdir()) == [target]


def test_progress_is_told_in_tenths(server, target):
    lines = []
    fetch(server.url + "/file", target, md5=MD5, say=lines.append, opener=direct)
    assert lines[0] == f"Downloading {server.url}/file to '{target}'."
    assert lines[1:-1] == [f"data.zip: {percent} % of 1.0 MB" for percent in range(10, 100, 10)]
    assert lines[-1] == f"'{target}' is complete (1.0 MB)."


def test_a_file_that_lies_there_is_not_fetched_again(server, target):
    target.parent.mkdir()
    target.write_bytes(BODY)
    server.asked.clear()
    fetch(server.url + "/file", target, md5=MD5, opener=direct)
    fetch(server.url + "/file", target, opener=direct)
    assert server.asked == []


@pytest.mark.parametrize("checks", [{"md5": MD5}, {"sha256": SHA256}, {"size": len(BODY)}])
def test_a_damaged_file_that_lies_there_is_fetched_again(server, target, checks):
    target.parent.mkdir()
    target.write_bytes(BODY[:-1])
    lines = []
    fetch(server.url + "/file", target, say=lines.append, opener=direct, **checks)
    assert target.read_bytes() == BODY
    assert "downloading it again" in lines[0]


def test_a_damaged_file_stays_until_the_right_one_is_there(server, target):
    target.parent.mkdir()
    target.write_bytes(b"old")
    with pytest.raises(InputError, match="404"):
        fetch(server.url + "/missing", target, md5=MD5, opener=direct)
    assert target.read_bytes() == b"old"


@pytest.mark.parametrize("checks", [{"md5": "0" * 32}, {"sha256": "0" * 64}, {"md5": MD5, "sha256": "0" * 64}])
def test_a_wrong_checksum_leaves_nothing(server, target, checks):
    message = fails(server.url + "/file", target, r"gave has (md5|sha256) .*, expected 0{32}", **checks)
    assert MD5 in message or SHA256 in message
    assert "It was not kept" in message


def test_a_body_that_ends_early_leaves_nothing(server, target):
    fails(server.url + "/truncated", target, r"ended after 512,000 of 1,024,000 bytes", md5=MD5)
    fails(server.url + "/truncated", target, r"ended after 512,000 of 1,024,000 bytes")


def test_a_body_of_another_size_is_refused(server, target):
    fails(server.url + "/no-length", target, r"gives more than the 1,000 bytes that were expected", size=1000)
    fails(server.url + "/no-length", target, r"gave has 1,024,000 bytes, expected 2,000,000", size=2_000_000)


def test_a_server_that_stalls_is_given_up(server, target):
    fails(server.url + "/stalls", target, "timed out", opener=lambda request, timeout: direct(request, 0.2))


def test_every_request_has_a_time_limit(target):
    def opener(request, timeout):
        assert 0 < timeout <= 60
        raise TimeoutError

    fails("http://127.0.0.1/file", target, "TimeoutError", opener=opener)


def test_errors_say_how_to_do_it_by_hand(server, target):
    for url, reason in ((server.url + "/missing", "the server answers 404"), ("http://127.0.0.1:9/file", "refused")):
        message = fails(url, target, reason, md5=MD5, sha256=SHA256, size=5)
        for part in (url, MD5, SHA256, "5 bytes", f"put it at '{target}'", "run the same command again"):
            assert part in message


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://example.org/a", "/etc/passwd"])
def test_only_http_is_fetched(tmp_path, url):
    with pytest.raises(InputError, match="expected http or https"):
        fetch(url, tmp_path / "file")


def test_an_interrupted_download_leaves_nothing(server, target):
    def interrupt(line):
        if "50 %" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(server.url + "/file", target, say=interrupt, opener=direct)
    assert list(target.parent.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_an_input_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="can't be made"):
        fetch("http://127.0.0.1/file", tmp_path / "file" / "data.zip")


def test_old_leftovers_of_killed_processes_are_removed(tmp_path):
    old, new, other = (
        tmp_path / name for name in (".data.zip.aaaa.part", ".data.zip.bbbb.part", ".more.zip.aaaa.part")
    )
    old.mkdir()
    (old / "content").touch()
    new.touch()
    other.touch()
    two_days_ago = time.time() - 48 * 3600
    os.utime(old, (two_days_ago, two_days_ago))
    os.utime(other, (two_days_ago, two_days_ago))
    with temporary_file(tmp_path / "data.zip") as temporary:
        temporary.write_bytes(b"1")
    assert sorted(tmp_path.iterdir()) == sorted([new, other])


def test_file_fault_names_what_differs(tmp_path):
    (tmp_path / "file").write_bytes(BODY)
    assert file_fault(tmp_path / "file", md5=MD5, sha256=SHA256, size=len(BODY)) is None
    assert file_fault(tmp_path / "file", size=3) == "has 1,024,000 bytes, expected 3"
    assert file_fault(tmp_path / "file", md5="12") == f"has md5 {MD5}, expected 12"
