"""OpenTelemetry's trace context, as W3C headers: how it gets into a worker process.

Nothing here imports OpenTelemetry where the user has not.
"""

import importlib
import sys
from typing import Any

#: Where a worker finds what takes the headers.
ATTACH = f"{__name__}:attach"


def headers() -> dict[str, str] | None:
    """Return ``traceparent``, ``tracestate`` and what else is propagated; None if nothing is."""
    if "opentelemetry.context" not in sys.modules:
        return None
    propagate: Any = importlib.import_module("opentelemetry.propagate")
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return carrier or None


def attach(carrier: dict[str, Any]) -> None:
    """Make the trace context of the headers the current one."""
    context: Any = importlib.import_module("opentelemetry.context")
    propagate: Any = importlib.import_module("opentelemetry.propagate")
    context.attach(propagate.extract(carrier))
