"""The OpenAPI document, as it is checked in: `python -m serve.openapi > serve/openapi.json`."""

from __future__ import annotations

import json
from typing import Any, cast

from serve.api import routes
from serve.backend import Backend
from serve.metrics import Metrics
from serve.options import Options
from serve.room import Room


def document() -> dict[str, Any]:
    """What `GET /openapi.json` answers where no option is changed."""
    options, metrics = Options(), Metrics()
    return routes(cast(Backend, None), options, metrics, Room(options, metrics)).openapi()


if __name__ == "__main__":
    print(json.dumps(document(), indent=1))
