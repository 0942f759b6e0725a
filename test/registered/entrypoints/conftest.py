"""Fixtures of the server tests: servers with a fake scheduler, ended with the test, and their socket directory."""

import signal
import tempfile

import pytest

from sglang.test.server_process import ServerProcess
from sglang.test.tiny_tokenizer import make_model_folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> str:
    return make_model_folder(tmp_path_factory.mktemp("m"))


@pytest.fixture
def sockets_dir(monkeypatch):
    """Where this test's servers put their sockets; empty again once they have ended."""
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        monkeypatch.setenv("TMPDIR", short)
        yield short


@pytest.fixture
def start(model_folder, sockets_dir):
    """start(*flags, ready=True, **options of ServerProcess): a running server."""
    servers = []

    def start(*flags: str, ready: bool = True, module: str = "sglang.test.fake_server", **options) -> ServerProcess:
        server = ServerProcess(module, "--model-path", model_folder, *flags, **options)
        servers.append(server)
        if ready:
            server.wait_ready()
        return server

    yield start
    for server in servers:
        server.stop(signal.SIGKILL)
