"""Each process of a server takes what it was started with out of the garbage collector's sight before it serves."""

import asyncio
import gc
import sys
from types import SimpleNamespace

import pytest

from sglang.srt.entrypoints import http_server
from sglang.srt.managers import detokenizer_manager, run_scheduler
from sglang.srt.server_args import ServerArgs
from sglang.srt.utils import child, ipc
from sglang.srt.utils.child import ProcessConfig, freeze_startup_objects
from sglang.srt.utils.heartbeat import Heartbeat
from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=3, suite="unit-test-cpu")


class Serving(Exception):
    """The process would serve from here on."""


@pytest.fixture
def config(tmp_path, monkeypatch) -> ProcessConfig:
    """What the processes of this test are told, and whether they are frozen when they begin to serve."""
    config = ProcessConfig(ServerArgs(log_level="error", skip_tokenizer_init=True).to_dict(), str(tmp_path))
    Heartbeat(config.ipc_dir, config.name, create=True)
    for module in (child, run_scheduler):
        monkeypatch.setattr(module, "read_process_config", lambda: config)
        monkeypatch.setattr(module, "exit_when_parent_dies", lambda ipc_dir: None)
        monkeypatch.setattr(module, "setup_logging", lambda level, name: None)
    gc.unfreeze()
    yield config
    gc.unfreeze()


def serve(*_, **__) -> None:
    assert gc.get_freeze_count() > 10_000
    raise Serving


def test_only_what_is_there_is_frozen():
    gc.unfreeze()
    freeze_startup_objects()
    count = gc.get_freeze_count()
    later = [[] for _ in range(100)]
    assert count > 10_000 and gc.get_freeze_count() == count
    assert any(later[0] is thing for thing in gc.get_objects())
    gc.unfreeze()


def test_the_scheduler(config, monkeypatch):
    scheduler = SimpleNamespace(send=serve)
    monkeypatch.setattr(run_scheduler, "build", lambda *_: (scheduler, None))
    with pytest.raises(Serving):
        run_scheduler.main()


def test_the_detokenizer(config, monkeypatch):
    monkeypatch.setattr(ipc.Receiver, "receive_all", serve)
    with pytest.raises(Serving):
        detokenizer_manager.main()


def test_the_http_process(config, monkeypatch):
    class Backend:
        def __init__(self, *_):
            self.start_processes = self.watch = lambda: None

        async def connect(self) -> None:
            pass

    monkeypatch.setattr(http_server, "Backend", Backend)
    monkeypatch.setattr(http_server, "make_app", lambda backend: None)
    monkeypatch.setattr(http_server.HttpServer, "_announce", serve)

    async def start() -> None:
        await http_server.HttpServer(ServerArgs(skip_server_warmup=True))._start()

    with pytest.raises(Serving):
        asyncio.run(start())


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
