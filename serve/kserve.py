"""KServe's Open Inference Protocol, version 2: one tensor of texts in; labels, probabilities and whole scores out."""

from __future__ import annotations

import functools
import json
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import Response

from serve import schema
from serve.admission import Scoring
from serve.backend import Backend
from serve.options import Options

NAME = "han"
_documented = functools.partial(schema.documented, error=schema.InferError)


def add_routes(app: FastAPI, scoring: Scoring, backend: Backend, options: Options) -> None:
    """`/v2` and below."""

    @app.get("/v2", **_documented(), summary="KServe: server metadata")
    async def server() -> dict[str, str | list[str]]:
        return {"name": "han-on-ray", "version": "1", "extensions": []}

    @app.get("/v2/health/live", **_documented(), summary="KServe: whether the process answers")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/v2/health/ready", **_documented(503), summary="KServe: as /readyz")
    @app.get(f"/v2/models/{NAME}/ready", **_documented(503), summary="KServe: as /readyz")
    async def is_ready() -> dict[str, bool]:
        await scoring.check_ready()
        return {"ready": True}

    @app.get(f"/v2/models/{NAME}", **_documented(503), summary="KServe: the model's tensors")
    async def model() -> dict[str, Any]:
        outputs = [("label", "BYTES"), ("probability", "FP32"), ("score", "BYTES")]
        return {
            "name": NAME,
            "versions": [(await backend.about()).model],
            "platform": "pytorch",
            "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
            "outputs": [{"name": name, "datatype": datatype, "shape": [-1]} for name, datatype in outputs],
        }

    @app.post(
        f"/v2/models/{NAME}/infer",
        response_model=schema.InferAnswer,
        **_documented(*schema.SCORING, body=schema.InferRequest),
        summary="KServe: score",
    )
    async def infer(request: Request) -> Response:
        infer_request = schema.read_request(request, schema.InferRequest, max_texts=options.max_texts)
        texts = infer_request.inputs[0].data
        fields = [f"inputs[0].data[{place}]" for place in range(len(texts))]
        results = await scoring.score(texts, fields, "words", request)
        scores = [json.loads(result) for result in results]
        columns = {
            "label": ("BYTES", [score["label"] for score in scores]),
            "probability": ("FP32", [score["probability"] for score in scores]),
            "score": ("BYTES", [result.decode() for result in results]),
        }
        outputs = [{"name": name, "datatype": kind, "shape": [len(texts)], "data": data} for name, (kind, data) in columns.items()]
        request_id = infer_request.id or request.state.request_id
        answer = {"model_name": NAME, "model_version": request.state.model, "id": request_id, "outputs": outputs}
        return Response(json.dumps(answer), media_type="application/json")
