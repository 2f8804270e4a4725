"""The routes of the service; `middleware` holds what is common to all of them. Nothing here knows Ray.

Their OpenAPI document is checked in: `python -m serve.api > serve/openapi.json`.
"""

from __future__ import annotations

import asyncio
import functools
import json
from pathlib import Path
from typing import Annotated, Any, cast

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.staticfiles import StaticFiles

from han.config import ColumnsConfig
from han.data.sources import random_review
from serve import kserve, schema
from serve.admission import Admission, Scoring
from serve.backend import Backend
from serve.errors import INTERNAL, MEANINGS, Problem
from serve.metrics import Metrics
from serve.middleware import Middleware, route_path
from serve.options import Options

PAGE = Path(__file__).parent / "page"


def make_app(backend: Backend, options: Options, metrics: Metrics, *, replica: str, behind_proxy: bool) -> Middleware:
    """The whole service as an ASGI app."""
    admission = Admission(options, metrics)
    app = routes(backend, options, metrics, admission)
    paths = frozenset({*app.openapi()["paths"], "/", "/docs", "/openapi.json"})
    return Middleware(app, options, metrics, admission, paths=paths, replica=replica, behind_proxy=behind_proxy)


def routes(backend: Backend, options: Options, metrics: Metrics, admission: Admission) -> FastAPI:
    app = FastAPI(
        title="HAN on Ray",
        version="1",
        description="Scores reviews, and shows which sentences and words the network looked at.",
        docs_url=None,
        redoc_url=None,
    )
    scoring = Scoring(backend, metrics, admission)

    @app.post(
        "/v1/score",
        response_model=schema.ScoreAnswer,
        **schema.documented(*schema.SCORING, body=schema.ScoreRequest),
        summary="Score one review or a few",
    )
    async def score(request: Request) -> Response:
        """The results are in the order of the texts. A text that cannot be scored refuses the whole request; `field` names it."""
        score_request = schema.read_request(request, schema.ScoreRequest, max_texts=options.max_texts)
        results = await scoring.score(score_request.texts, score_request.fields, score_request.detail, request)
        end = f'],"model":"{request.state.model}","request_id":"{request.state.request_id}"}}'.encode()
        return Response(b'{"results":[' + b",".join(results) + end, media_type="application/json")

    @app.get("/v1/model", **schema.documented(401, 503), summary="The model and its limits")
    async def model(request: Request) -> schema.ModelAnswer:
        about = await backend.about()
        limits = schema.Limits(max_characters=about.max_characters, **options.model_dump(include={*schema.Limits.model_fields}))
        request_id = request.state.request_id
        return schema.ModelAnswer(model=about.model, labels=[*about.labels], metrics=about.metrics, limits=limits, request_id=request_id)

    @app.get("/v1/samples/random", **schema.documented(401, 422), summary="One of the bundled reviews")
    async def sample(
        seed: Annotated[int | None, Query(ge=0, le=2**53, description="equal seeds give the same review")] = None,
    ) -> schema.Sample:
        review_id, label, text = await asyncio.to_thread(random_review, "sample", ColumnsConfig(), seed=seed)
        return schema.Sample(review_id=review_id, text=text, label=label)

    @app.get("/healthz", **schema.documented(), summary="Whether the process answers")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", **schema.documented(503), summary="Whether a fixed review scores as it should")
    async def readyz() -> dict[str, str]:
        await scoring.check_ready()
        return {"status": "ok"}

    @app.get("/metrics", response_class=PlainTextResponse, **schema.documented(401), summary="Sums over all processes, for Prometheus")
    async def prometheus() -> Response:
        return PlainTextResponse(await backend.metrics(), media_type="text/plain; version=0.0.4")

    kserve.add_routes(app, scoring, backend, options)
    _add_page(app)
    _add_error_handlers(app)
    _complete_document(app)
    return app


def _add_page(app: FastAPI) -> None:
    """The page at `/` and the documentation at `/docs`, made of files of this package alone."""

    async def page(file: Path, _: Request) -> Response:
        return FileResponse(file)

    for path, file in (("/", PAGE / "index.html"), ("/docs", PAGE / "docs/index.html")):
        app.add_route(path, functools.partial(page, file), include_in_schema=False)
    app.mount("/static", StaticFiles(directory=PAGE, check_dir=False))


def _add_error_handlers(app: FastAPI) -> None:
    """One shape for the failures of this package, of Starlette's routing and of FastAPI's query parameters."""

    async def answer(request: Request, error: Exception) -> Response:
        response = _problem(error).response(request.state.request_id, route_path(request.scope))
        if isinstance(error, HTTPException):
            response.headers.update(error.headers or {})
        return response

    for kind in (Problem, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, answer)


def _problem(error: Exception) -> Problem:
    if isinstance(error, RequestValidationError):
        field = str(error.errors()[0]["loc"][-1])  # a declared parameter, so never the client's text
        return Problem(422, "invalid_request", f"{field} is invalid; see /docs", field=field)
    if isinstance(error, HTTPException):
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
        meaning = MEANINGS.get(error.status_code, "").partition(": ")[2] or "the request is not understood"
        return Problem(error.status_code, code, meaning)
    return error if isinstance(error, Problem) else INTERNAL  # the middleware logs it


def _complete_document(app: FastAPI) -> None:
    """Add the schemas that FastAPI cannot see: of bodies that routes read themselves, and of the API key."""
    components = app.openapi()["components"]
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for kind in (schema.ScoreRequest, schema.InferRequest):
        own = kind.model_json_schema(ref_template="#/components/schemas/{model}")
        components["schemas"] |= {**own.pop("$defs", {}), kind.__name__: own}


def document() -> dict[str, Any]:
    """The answer of `GET /openapi.json` with default options."""
    options, metrics = Options(), Metrics()
    return routes(cast(Backend, None), options, metrics, Admission(options, metrics)).openapi()


if __name__ == "__main__":
    print(json.dumps(document(), indent=1))
