"""BenchServer: what is asked of a server besides answers: is it there, what does it serve, and small orders to it."""

import asyncio
import re
import time
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec

from sglang.benchmark.backends import Backend, connection_error, error_message

POLL_SECONDS = 0.25
CONTROL_SECONDS = 60.0  # how long an answer that generates nothing may take
PROFILE_SECONDS = 600.0  # the traces of a long profile are written meanwhile
SECRET = re.compile(r"api_?key|passw|secret|credential|authorization|(^|_)token$", re.IGNORECASE)


class ServerProblem(Exception):
    """The server is not there or does not do what a benchmark needs; one line."""


@dataclass(frozen=True)
class ServedModel:
    """What /v1/models says; `context_length` counts prompt and output tokens together."""

    name: str
    context_length: int | None


class BenchServer:
    def __init__(self, session: aiohttp.ClientSession, url: str, backend: Backend):
        self.session = session
        self.url = url
        self.backend = backend

    async def wait_ready(self, seconds: float) -> None:
        """Until /health answers 200. Raises ServerProblem when it does not in time."""
        deadline = time.monotonic() + seconds
        while problem := await self._illness():
            if time.monotonic() > deadline:
                raise ServerProblem(f"no server is ready at {self.url} after {seconds:g} s: {problem}")
            await asyncio.sleep(POLL_SECONDS)

    async def _illness(self) -> str | None:
        try:
            status, body = await self._ask("GET", "/health")
        except ServerProblem as e:
            return str(e)
        return None if status == 200 else f"/health answers {status}: {error_message(body)}"

    async def is_gone(self) -> bool:
        """Whether nobody accepts a connection any more."""
        try:
            async with self.session.get(self.url + "/health", timeout=aiohttp.ClientTimeout(total=CONTROL_SECONDS)):
                return False
        except aiohttp.ClientConnectorError:
            return True
        except (TimeoutError, aiohttp.ClientError, OSError):
            return False  # somebody is there, if only to drop the connection

    async def model(self) -> ServedModel:
        cards = (await self._json("GET", "/v1/models")).get("data")
        if not isinstance(cards, list) or not cards or not isinstance(cards[0].get("id"), str):
            raise ServerProblem(f"{self.url}/v1/models names no model; give it with --model")
        return ServedModel(cards[0]["id"], cards[0].get("max_model_len"))

    async def info(self) -> dict[str, Any] | None:
        """/server_info, by its old name too, without anything secret; None where there is no such page."""
        for path in ("/server_info", "/get_server_info") if self.backend.is_sglang else ():
            status, body = await self._ask("GET", path)
            if status == 200:
                return without_secrets(self._decoded(path, body))
            if status != 404:
                raise ServerProblem(f"{self.url}{path} answers {status}: {error_message(body)}")
        return None

    async def tokenizer_path(self) -> str | None:
        """The folder that the server's tokenizer comes from, on its host."""
        if not self.backend.is_sglang:
            return None
        path = (await self._json("GET", "/model_info")).get("tokenizer_path")
        return path if isinstance(path, str) else None

    async def flush_cache(self) -> None:
        """Empty the prefix cache; waits for the warm-up's requests to be gone."""
        await self._order(f"/flush_cache?timeout={CONTROL_SECONDS / 2:g}")

    async def start_profile(self, options: dict[str, Any]) -> None:
        await self._order("/start_profile", options)

    async def stop_profile(self, has_limit: bool) -> None:
        """End a profile and wait for its traces. One with a limit of steps may have ended by itself: no error."""
        status, answer = await self._ask("POST", "/stop_profile", seconds=PROFILE_SECONDS)
        if status != 200 and not (has_limit and status == 400):
            raise ServerProblem(f"{self.url}/stop_profile answers {status}: {error_message(answer)}")

    async def _order(self, path: str, body: dict[str, Any] | None = None) -> None:
        status, answer = await self._ask("POST", path, body)
        if status != 200:
            raise ServerProblem(f"{self.url}{path} answers {status}: {error_message(answer)}")

    async def _json(self, method: str, path: str) -> dict[str, Any]:
        status, body = await self._ask(method, path)
        if status != 200:
            raise ServerProblem(f"{self.url}{path} answers {status}: {error_message(body)}")
        return self._decoded(path, body)

    def _decoded(self, path: str, body: bytes) -> dict[str, Any]:
        try:
            return msgspec.json.decode(body, type=dict[str, Any])
        except msgspec.DecodeError as e:
            raise ServerProblem(f"{self.url}{path} answers with something else than a JSON object: {e}") from e

    async def _ask(
        self, method: str, path: str, body: dict[str, Any] | None = None, seconds: float = CONTROL_SECONDS
    ) -> tuple[int, bytes]:
        """Status and body. Raises ServerProblem when there is no answer."""
        try:
            timeout = aiohttp.ClientTimeout(total=seconds)
            async with self.session.request(method, self.url + path, json=body, timeout=timeout) as reply:
                return reply.status, await reply.read()
        except TimeoutError as e:
            raise ServerProblem(f"{self.url}{path} does not answer within {seconds:g} s") from e
        except (aiohttp.ClientError, OSError, ValueError) as e:  # ValueError: an address that is none
            raise ServerProblem(f"{self.url}{path}: {connection_error(e)}") from e


def without_secrets(value: Any) -> Any:
    """The same JSON value without entries whose names sound secret, at any depth."""
    if isinstance(value, dict):
        return {k: without_secrets(v) for k, v in value.items() if not SECRET.search(k)}
    return [without_secrets(v) for v in value] if isinstance(value, list) else value
