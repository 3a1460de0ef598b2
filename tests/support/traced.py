"""What units do in worker processes that have a tracer of their own."""

from typing import Any


def span_made(ctx: Any) -> tuple[str, str]:
    """Make a span here, and return the ids of its trace and of its parent."""
    from opentelemetry.sdk.trace import TracerProvider

    with TracerProvider().get_tracer("worker").start_as_current_span("work") as span:
        parent: Any = span
        return f"{parent.context.trace_id:032x}", f"{parent.parent.span_id:016x}"


def fails(ctx: Any) -> None:
    """Fail."""
    raise ValueError("bad luck")
