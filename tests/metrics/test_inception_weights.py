import hashlib
import http.server
import io
import os
import signal
import socket
import threading
import time

import pytest
import torch

from ann2snn.errors import UserError
from ann2snn.metrics import inception_weights
from ann2snn.metrics.inception_weights import FILE_NAME, URL, default_path, find_weights, load_weights


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def served():
    """(url, contents): a local server of one file, whose contents the test sets."""
    contents = bytearray()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(contents)

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/weights.pth", contents
        server.shutdown()


def test_the_cache_is_pytorch_fids(empty_cache):
    assert default_path() == empty_cache / FILE_NAME
    assert URL.endswith("/fid_weights/pt_inception-2015-12-05-6726825d.pth")
    default_path().parent.mkdir(parents=True)
    default_path().write_bytes(b"x")
    assert find_weights(url="http://127.0.0.1:1/") == default_path()


def test_offline_error_says_what_to_do():
    with pytest.raises(UserError) as caught:
        find_weights(url="http://127.0.0.1:1/")
    message = str(caught.value)
    for part in (URL, str(default_path()), "--inception_weights", "--extractor=lite0", "refused"):
        assert part in message
    assert "\n" not in message


def test_a_silent_server_does_not_hang():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        with pytest.raises(UserError, match="timed out"):
            find_weights(url=f"http://127.0.0.1:{silent.getsockname()[1]}/", timeout=0.3)
        assert time.monotonic() - start < 5


def test_a_download_with_the_right_checksum_is_kept(served, monkeypatch):
    url, contents = served
    contents.extend(b"the weights")
    monkeypatch.setattr(inception_weights, "SHA256_START", hashlib.sha256(b"the weights").hexdigest()[:8])
    assert find_weights(url=url).read_bytes() == b"the weights"
    assert os.listdir(default_path().parent) == [FILE_NAME]


def test_a_download_with_the_wrong_checksum_is_thrown_away(served):
    url, contents = served
    contents.extend(b"a login page")
    with pytest.raises(UserError, match="checksum"):
        find_weights(url=url)
    assert os.listdir(default_path().parent) == []


def test_what_a_killed_download_left_is_removed_by_the_next(served, monkeypatch):
    class Dying(io.BytesIO):
        def read(self, size):
            return super().read(size) or os.kill(os.getpid(), signal.SIGKILL)

    if not (child := os.fork()):
        try:
            monkeypatch.setattr(inception_weights.urllib.request, "urlopen", lambda *args, **how: Dying(b"half"))
            find_weights()
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert len(os.listdir(default_path().parent)) == 1
    url, contents = served
    contents.extend(b"the weights")
    monkeypatch.setattr(inception_weights, "SHA256_START", hashlib.sha256(b"the weights").hexdigest()[:8])
    find_weights(url=url)
    assert os.listdir(default_path().parent) == [FILE_NAME]


def test_a_folder_that_cannot_be_written_is_not_the_servers_fault(served, empty_cache):
    empty_cache.parent.mkdir()
    empty_cache.write_text("a file in the folder's place")
    with pytest.raises(UserError, match="--inception_weights=PATH") as caught:
        find_weights(url=served[0])
    assert "download failed" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_given_path_is_used_and_must_exist(tmp_path):
    path = tmp_path / "w.pth"
    with pytest.raises(UserError, match="does not exist"):
        find_weights(path)
    torch.save({"a": torch.ones(2)}, path)
    state, published = load_weights(find_weights(path))
    assert torch.equal(state["a"], torch.ones(2)) and not published


class _Bomb:
    def __reduce__(self):
        return os.mkdir, (os.environ["BOMB_FOLDER"],)


def test_damaged_and_pickled_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("BOMB_FOLDER", str(tmp_path / "exploded"))
    path = tmp_path / "w.pth"
    path.write_bytes(b"no weights")
    with pytest.raises(UserError, match="cannot be read"):
        load_weights(path)
    torch.save({"a": _Bomb()}, path)
    with pytest.raises(UserError, match="cannot be read"):
        load_weights(path)
    assert not (tmp_path / "exploded").exists()
    torch.save([1, 2], path)
    with pytest.raises(UserError, match="no state dict"):
        load_weights(path)
