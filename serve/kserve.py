"""KServe's Open Inference Protocol, version 2, as a thin adapter: one tensor of texts in; labels, probabilities and whole scores out."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from starlette.responses import Response

from serve import schema
from serve.backend import Backend, ready
from serve.errors import Problem
from serve.options import Options
from serve.request import check_content_type, read_object, read_texts

if TYPE_CHECKING:
    from serve.api import Scoring

NAME = "han"
_TENSOR = {"name", "shape", "datatype", "data"}


def add_routes(app: FastAPI, scoring: Scoring, backend: Backend, options: Options) -> None:
    """`/v2` and below."""

    @app.get("/v2", response_model=schema.ServerMetadata, responses=schema.responses(), summary="KServe: what this server is")
    async def server() -> schema.ServerMetadata:
        return schema.ServerMetadata(name="han-on-ray", version="1", extensions=[])

    @app.get("/v2/health/live", responses=schema.responses(), summary="KServe: whether the process answers")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/v2/health/ready", responses=schema.responses(503), summary="KServe: as /readyz")
    @app.get(f"/v2/models/{NAME}/ready", responses=schema.responses(503), summary="KServe: as /readyz")
    async def is_ready() -> dict[str, bool]:
        await ready(backend)
        return {"ready": True}

    @app.get(f"/v2/models/{NAME}", response_model=schema.Metadata, responses=schema.responses(503), summary="KServe: the model's tensors")
    async def model() -> schema.Metadata:
        about = await backend.about()
        outputs = [("label", "BYTES"), ("probability", "FP32"), ("score", "BYTES")]
        return schema.Metadata(
            name=NAME,
            versions=[about.model],
            platform="pytorch",
            inputs=[{"name": "text", "datatype": "BYTES", "shape": [-1]}],
            outputs=[{"name": name, "datatype": datatype, "shape": [-1]} for name, datatype in outputs],
        )

    @app.post(
        f"/v2/models/{NAME}/infer",
        response_model=schema.InferAnswer,
        responses=schema.responses(*schema.SCORING, error=schema.InferError),
        openapi_extra=schema.body(schema.InferRequest),
        summary="KServe: score",
    )
    async def infer(request: Request) -> Response:
        check_content_type(request.headers.get("content-type", ""), request.headers.get("content-encoding", ""))
        texts, given_id = _read(await request.body(), options.max_texts)
        answers = await scoring.score(texts, [f"inputs[0].data[{place}]" for place in range(len(texts))], "words", request)
        whole = [result.decode() for result in answers.results]  # type: ignore[union-attr]  # `Scoring` lets no refusal through
        scores = [json.loads(score) for score in whole]
        columns = {
            "label": ("BYTES", [score["label"] for score in scores]),
            "probability": ("FP32", [score["probability"] for score in scores]),
            "score": ("BYTES", whole),
        }
        outputs = [{"name": name, "datatype": kind, "shape": [len(texts)], "data": data} for name, (kind, data) in columns.items()]
        answer = {"model_name": NAME, "model_version": answers.model, "id": given_id or request.state.request_id, "outputs": outputs}
        return Response(json.dumps(answer), media_type="application/json")


def _read(body: bytes, max_texts: int) -> tuple[list[str], str | None]:
    values = read_object(body, required={"inputs"}, optional={"id", "parameters", "outputs"})
    inputs = values["inputs"]
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise Problem(422, "invalid_request", "inputs is a list of one tensor", field="inputs")
    tensor: dict[str, Any] = inputs[0]
    if not tensor.keys() >= _TENSOR or tensor.keys() - _TENSOR - {"parameters"}:
        raise Problem(422, "invalid_request", f"a tensor has {', '.join(sorted(_TENSOR))}", field="inputs[0]")
    if tensor["name"] != "text" or tensor["datatype"] != "BYTES" or not isinstance(tensor["data"], list):
        raise Problem(422, "invalid_request", "the tensor is named text, its datatype is BYTES, its data a list", field="inputs[0]")
    texts = read_texts(tensor["data"], "inputs[0].data", max_texts=max_texts)
    if tensor["shape"] not in ([len(texts)], [len(texts), 1]):
        raise Problem(422, "invalid_request", f"shape is [{len(texts)}], as there is data", field="inputs[0].shape")
    given_id = values.get("id")
    if given_id is not None and (not isinstance(given_id, str) or len(given_id) > 64 or not given_id.isprintable()):
        raise Problem(422, "invalid_request", "id is a string of at most 64 printable characters", field="id")
    return texts, given_id
