"""The routes: what may be asked, and what is answered. Everything that holds for all of them is in `guard`; nothing here knows Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from han.config import ColumnsConfig
from han.data.sources import random_review
from han.types import AttentionDetail, Refusal
from serve import kserve, schema
from serve.backend import CHARACTERS_A_TOKEN, Answers, Backend, ready
from serve.errors import FAULT, MEANINGS, Problem, refused
from serve.guard import Guard, route_path
from serve.metrics import Metrics
from serve.options import Options
from serve.request import check_content_type, read_score_request
from serve.room import Room

PAGE = Path(__file__).parent / "page"


def make_app(backend: Backend, options: Options, metrics: Metrics, *, replica: str, behind_proxy: bool) -> Guard:
    """The whole service as an ASGI app, but for what scores."""
    room = Room(options, metrics)
    app = routes(backend, options, metrics, room)
    paths = frozenset({*app.openapi()["paths"], "/", "/docs", "/openapi.json"})
    return Guard(app, options, metrics, room, paths=paths, replica=replica, behind_proxy=behind_proxy)


def routes(backend: Backend, options: Options, metrics: Metrics, room: Room) -> FastAPI:
    app = FastAPI(
        title="HAN on Ray",
        version="1",
        description="Scores reviews, and shows which sentences and words the network looked at.",
        docs_url=None,
        redoc_url=None,
    )
    scoring = Scoring(backend, metrics, room)

    @app.post(
        "/v1/score",
        response_model=schema.ScoreAnswer,
        responses=schema.responses(*schema.SCORING),
        openapi_extra=schema.body(schema.ScoreRequest),
        summary="Score one review or a few",
    )
    async def score(request: Request) -> Response:
        """An ordered list in gives an ordered list out. A text that cannot be scored refuses the whole request and is named in `field`."""
        check_content_type(request.headers.get("content-type", ""), request.headers.get("content-encoding", ""))
        asked = read_score_request(await request.body(), max_texts=options.max_texts)
        answers = await scoring.score(asked.texts, asked.fields, asked.attention, request)
        parts = b",".join(answers.results)  # type: ignore[arg-type]  # `Scoring` lets no refusal through
        tail = f'],"model":"{answers.model}","request_id":"{request.state.request_id}"}}'.encode()
        return Response(b'{"results":[' + parts + tail, media_type="application/json")

    @app.get("/v1/model", response_model=schema.ModelAnswer, responses=schema.responses(401, 503), summary="What scores, and its limits")
    async def model(request: Request) -> schema.ModelAnswer:
        about = await backend.about()
        limits = schema.Limits(
            max_body_bytes=options.max_body_bytes,
            max_texts=options.max_texts,
            max_characters=about.max_characters,
            deadline_s=options.deadline_s,
        )
        return schema.ModelAnswer(
            model=about.model, labels=list(about.labels), metrics=about.metrics, limits=limits, request_id=request.state.request_id
        )

    @app.get("/v1/samples/random", response_model=schema.Sample, responses=schema.responses(401, 422), summary="One of the bundled reviews")
    async def sample(seed: Annotated[int | None, Query(ge=0, le=2**53, description="the same seed, the same review")] = None) -> Any:
        review_id, label, text = await asyncio.to_thread(random_review, "sample", ColumnsConfig(), seed=seed)
        return schema.Sample(review_id=review_id, text=text, label=label)

    @app.get("/healthz", response_model=schema.Status, responses=schema.responses(), summary="Whether the process answers")
    async def healthz() -> schema.Status:
        return schema.Status(status="ok")

    @app.get("/readyz", response_model=schema.Status, responses=schema.responses(503), summary="Whether a fixed review scores as it should")
    async def readyz() -> schema.Status:
        await ready(backend)
        return schema.Status(status="ok")

    @app.get(
        "/metrics",
        response_class=PlainTextResponse,
        responses=schema.responses(401),
        summary="Counts of all processes, as Prometheus reads them",
    )
    async def told() -> Response:
        return PlainTextResponse(await backend.metrics(), media_type="text/plain; version=0.0.4")

    kserve.add_routes(app, scoring, backend, options)
    _add_page(app)
    _add_errors(app)
    _complete(app)
    return app


class Scoring:
    """From texts to ready answers, within the bounds."""

    def __init__(self, backend: Backend, metrics: Metrics, room: Room) -> None:
        self._backend, self._metrics, self._room = backend, metrics, room
        self._max_characters: int | None = None

    async def score(self, texts: Sequence[str], fields: Sequence[str], attention: AttentionDetail, request: Request) -> Answers:
        """Answers without a refusal among them; the first refusal is raised as a `Problem` that names its field."""
        if self._max_characters is None:
            self._max_characters = (await self._backend.about()).max_characters
        for text, field in zip(texts, fields, strict=True):
            if len(text) > self._max_characters:  # the model's own rule, applied before anything is sent to it
                message = f"{len(text):,} characters; max_characters is {self._max_characters:,}"
                raise refused(Refusal(reason="too_long", message=message), field)
        tokens = sum(map(len, texts)) // CHARACTERS_A_TOKEN + len(texts)
        request.state.texts, request.state.tokens = len(texts), tokens
        with self._room.taken(tokens):
            answers = await self._backend.score(texts, attention)
        request.state.retries = answers.retries
        for result, field in zip(answers.results, fields, strict=True):
            if isinstance(result, Refusal):
                raise refused(result, field)
        self._metrics.count("han_texts_total", len(texts), attention=attention)
        return answers


def _add_page(app: FastAPI) -> None:
    """The page at `/`, the documentation at `/docs`, and all they are made of: files of this package, from no other host."""

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return _file("index.html")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return _file("docs/index.html")

    app.mount("/static", _Static(directory=PAGE, check_dir=False))


class _Static(StaticFiles):
    """Files that a browser asks for again each time, and gets only if they have changed."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["cache-control"] = "no-cache"
        return response


def _file(name: str) -> Response:
    return FileResponse(PAGE / name, headers={"cache-control": "no-cache"})


def _add_errors(app: FastAPI) -> None:
    """Problems of our own, of Starlette's routing and of FastAPI's reading of a query, all in one shape."""

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
        meaning = MEANINGS.get(error.status_code, "the request is not understood").partition(": ")[2]
        allow = [(name.encode(), value.encode()) for name, value in (error.headers or {}).items()]
        return _response(request, Problem(error.status_code, code, meaning or "the request is not understood"), allow)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        field = str(error.errors()[0]["loc"][-1])  # only parameters that are declared come here, so this is a name of ours
        return _response(request, Problem(422, "invalid_request", f"{field} is not what it should be; see /docs", field=field))

    @app.exception_handler(Problem)
    async def ours(request: Request, problem: Problem) -> Response:
        return _response(request, problem)

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> Response:
        return _response(request, FAULT)  # the guard logs it


def _response(request: Request, problem: Problem, more: Sequence[tuple[bytes, bytes]] = ()) -> Response:
    headers, body = problem.answer(request.state.request_id, route_path(request.scope))
    response = Response(body, status_code=problem.status)
    response.raw_headers = [*headers, *more]
    return response


def _complete(app: FastAPI) -> None:
    """The OpenAPI document knows what FastAPI cannot see: bodies that are read by hand, the key, the id of every request."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            schemas = document["components"]["schemas"]
            for kind in (schema.ScoreRequest, schema.InferRequest):
                own = kind.model_json_schema(ref_template="#/components/schemas/{model}")
                schemas.update(own.pop("$defs", {}))
                schemas[kind.__name__] = own
            document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            for path, methods in document["paths"].items():
                for operation in methods.values():
                    if "401" in operation["responses"]:
                        operation["security"] = [{}, {"key": []}]
                    for status, response in operation["responses"].items():
                        response.setdefault("headers", {})["X-Request-ID"] = {"schema": {"type": "string"}}
                        if path.startswith("/v2") and status[0] in "45":
                            response["content"]["application/json"]["schema"] = {"$ref": "#/components/schemas/InferError"}
            schemas["InferError"] = schema.InferError.model_json_schema()
            for unused in ("HTTPValidationError", "ValidationError"):
                schemas.pop(unused, None)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
