"""Generated requests: from the OpenAPI document (schemathesis), from random strings (hypothesis), and from the list of hostile texts."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from tests.helpers.hostile import PROBES, REVIEWS

DOCUMENT = Path(__file__).parents[2] / "serve" / "openapi.json"
MAX_CHARACTERS = 50_000
PER_OPERATION, NUM_TEXTS = 50, 500
_LIMIT_S = 100.0  # for all operations together
_LEAKS = ("traceback", 'file "', ".py", "ray.", "exception")


@dataclass(slots=True)
class Results:
    answers: int = 0
    slowest_s: float = 0.0
    took_s: float = 0.0
    codes: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def record(self, what: str, status: int, body: str, took_s: float) -> None:
        """Record a response. A status of 500 or above is a fault, and so is an error that shows internals."""
        self.answers += 1
        self.codes[status] += 1
        self.slowest_s = max(self.slowest_s, took_s)
        if status >= 500:
            self.faults.append(f"{status} for {what}")
        if status >= 400 and any(leak in body.lower() for leak in _LEAKS):
            self.faults.append(f"internals in {status} for {what}")


def from_schema(url: str, *, seed: int) -> Results:
    """Send valid and invalid requests for each operation of the document. Every response must conform to the document."""
    results, began = Results(), time.monotonic()
    schema = schemathesis.openapi.from_dict(json.loads(DOCUMENT.read_text(encoding="utf-8")))
    for result in schema.get_all_operations():
        operation = result.ok()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

            def send(case: Any) -> None:
                if time.monotonic() - began > _LIMIT_S:
                    return
                began_s = time.monotonic()
                response = case.call(base_url=url, timeout=30)
                name = f"{case.method} {case.path}"
                results.record(name, response.status_code, response.text, time.monotonic() - began_s)
                try:
                    case.validate_response(response, checks=_checks())
                except (schemathesis.checks.CheckFailed, BaseExceptionGroup, AssertionError) as failure:  # type: ignore[attr-defined]
                    results.faults.append(f"{name}: {str(failure)[:300]!r}")

            try:
                strategy = operation.as_strategy(generation_mode=mode)
                _try(send, strategy, seed=seed, number=PER_OPERATION)
            except Exception as error:
                if "negative" not in str(error).lower() and type(error).__name__ not in ("Unsatisfiable", "SkipTest"):
                    raise
    results.took_s = time.monotonic() - began
    return results


def texts(url: str, *, seed: int) -> Results:
    """Send random strings of code points, lone surrogates included. Each is scored, or refused for one of two reasons."""
    results, began = Results(), time.monotonic()
    with httpx.Client(timeout=30) as client:

        def send(text: str) -> None:
            began_s = time.monotonic()
            response = client.post(url, content=json.dumps({"inputs": text}), headers={"content-type": "application/json"})
            what = ascii(text[:60])
            results.record(what, response.status_code, "" if response.status_code == 200 else response.text, time.monotonic() - began_s)
            results.faults += [f"{fault} for {what}" for fault in _violations(response, text)]

        letters = st.characters(codec=None) | st.sampled_from(".!? <>&\n\u0301\u200d\u202e\U0001f600a")
        _try(send, st.text(letters, max_size=2_000), seed=seed, number=NUM_TEXTS)
    results.took_s = time.monotonic() - began
    return results


def hostile(url: str) -> Results:
    """Send hostile reviews and probes. Each must have the outcome of its list."""
    results, began = Results(), time.monotonic()
    codes = {"scored": (200,), "empty_text": (422,), "too_long": (413,)}
    cases = [(case.name, case.text(MAX_CHARACTERS), codes[case.expected] if case.is_unicode else (422,)) for case in REVIEWS]
    cases += [(name, probe(MAX_CHARACTERS), (200, 422)) for name, probe in PROBES.items()]
    with httpx.Client(timeout=30) as client:
        for name, text, expected in cases:
            began_s = time.monotonic()
            response = client.post(url, content=json.dumps({"inputs": text}), headers={"content-type": "application/json"})
            results.record(name, response.status_code, "" if response.status_code == 200 else response.text, time.monotonic() - began_s)
            if response.status_code not in expected:
                results.faults.append(f"{response.status_code} for {name}, expected {expected}")
            results.faults += [f"{fault} for {name}" for fault in _violations(response, text)]
    results.took_s = time.monotonic() - began
    return results


def _checks() -> list[Any]:
    from schemathesis.specs.openapi import checks

    return [checks.status_code_conformance, checks.content_type_conformance, checks.response_schema_conformance]


def _try(send: Callable[[Any], None], strategy: Any, *, seed: int, number: int) -> None:
    quiet = settings(max_examples=number, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    _seeded(seed)(quiet(given(strategy)(lambda case: send(case))))()


_seeded = seed


def _violations(response: httpx.Response, text: str) -> list[str]:
    """Violations of the rules that hold for the score of any text."""
    if response.status_code != 200:
        return []
    (score,) = response.json()["results"]
    words = [word for sentence in score["sentences"] for word in sentence["words"]]
    violations = []
    if not all(math.isfinite(value) and 0 <= value <= 1 for value in score["probabilities"].values()):
        violations.append("a probability outside 0 to 1")
    if abs(sum(sentence["attention"] for sentence in score["sentences"]) - 1) > 1e-5:
        violations.append("sentence attention that does not sum to 1")
    if any(abs(sum(word["attention"] for word in sentence["words"]) - 1) > 1e-5 for sentence in score["sentences"]):
        violations.append("word attention that does not sum to 1")
    ends = [0, *(end for word in words for end in (word["start"], word["end"])), len(text)]
    if ends != sorted(ends) or not all(word["start"] < word["end"] for word in words):
        violations.append("a span outside the text")
    return violations
