"""/start_profile and /stop_profile: torch's profiler in the scheduler process. Like all control, behind the API key."""

from fastapi import FastAPI, Request
from starlette.responses import Response

from sglang.srt.entrypoints.backend import Backend
from sglang.srt.entrypoints.bodies import read_body
from sglang.srt.entrypoints.replies import json_reply
from sglang.srt.managers.io_struct import ProfileSettings


def add_profile_routes(app: FastAPI, backend: Backend) -> None:
    """Both answer with StepProfiler.state(): the profile's id, folder and trace files."""

    @app.post("/start_profile")
    async def start_profile(request: Request) -> Response:
        settings = await read_body(request, ProfileSettings) if await request.body() else ProfileSettings()
        return json_reply(await backend.manager.start_profile(settings))

    @app.post("/stop_profile")
    async def stop_profile() -> Response:
        return json_reply(await backend.manager.stop_profile())
