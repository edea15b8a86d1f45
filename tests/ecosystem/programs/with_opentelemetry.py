"""OpenTelemetry follows a request through synchronous and asynchronous code; the spans form the tree of the calls."""

import asyncio

import httpx
import pytest
import tracing_site
from opentelemetry import baggage, context, trace
from opentelemetry.instrumentation.django import DjangoInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

exporter = InMemorySpanExporter()


@pytest.fixture(scope="module", autouse=True)
def site():
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    tracing_site.span = trace.get_tracer("test").start_as_current_span
    tracing_site.current = lambda: [trace.get_current_span().name, baggage.get_baggage("from the client")]
    import os

    os.environ["DJANGO_SETTINGS_MODULE"] = ""
    tracing_site.configure()
    DjangoInstrumentor().instrument()


def tree():
    spans = exporter.get_finished_spans()
    assert len({span.context.trace_id for span in spans}) == 1

    def below(parent):
        found = [span for span in spans if (span.parent.span_id if span.parent else None) == parent]
        return sorted([[span.name, below(span.context.span_id)] for span in found])

    return below(None)


def expected(view, name):
    leaves = [[f"sync leaf {name}0", []], [f"sync leaf {name}1", []]]
    return [[f"{view} view", [[f"async middle {name}", leaves]]]]


@pytest.mark.parametrize("handler", ["asgi", "wsgi"])
@pytest.mark.parametrize(("view", "name"), [("sync", "a"), ("async", "b")])
def test_spans(view, name, handler):
    exporter.clear()
    headers = {"baggage": "from%20the%20client=carried"}
    if handler == "wsgi":
        from django.core.wsgi import get_wsgi_application

        transport = httpx.WSGITransport(get_wsgi_application())
        with httpx.Client(transport=transport, base_url="http://site") as client:
            response = client.get(f"/{view}/", headers=headers)
    else:
        from django.core.asgi import get_asgi_application

        async def request():
            transport = httpx.ASGITransport(get_asgi_application())
            async with httpx.AsyncClient(transport=transport, base_url="http://site") as client:
                return await client.get(f"/{view}/", headers=headers)

        response = asyncio.run(request())
    seen = [f"async middle {name}", f"sync leaf {name}0", f"sync leaf {name}1"]
    assert {
        "seen": [[span, "carried"] for span in seen],
        "after": [f"{view} view", "carried"],
    } == response.json()
    [[_, below]] = tree()
    assert expected(view, name) == [node for node in below if "http" not in node[0]]
    assert context.get_current() == {}
