"""sentry-sdk follows a request through synchronous and asynchronous code; the spans form the tree of the calls."""

import asyncio

import httpx
import pytest
import sentry_sdk
import tracing_site

events = []


@pytest.fixture(scope="module", autouse=True)
def site():
    from sentry_sdk.transport import Transport

    class Kept(Transport):
        def capture_envelope(self, envelope):
            events.extend(item.payload.json for item in envelope.items if item.type in ("transaction", "event"))

    tracing_site.configure()
    sentry_sdk.init(dsn="http://key@localhost/1", transport=Kept, traces_sample_rate=1.0)
    tracing_site.span = lambda name: sentry_sdk.start_span(op="test", name=name)
    tracing_site.current = lambda: sentry_sdk.get_current_span().description


def tree():
    """Return the spans of the only transaction, as a sorted tree of descriptions."""
    [transaction] = [event for event in events if event.get("type") == "transaction"]
    root = transaction["contexts"]["trace"]["span_id"]

    def below(parent):
        spans = [span for span in transaction["spans"] if span["parent_span_id"] == parent]
        return sorted([[span["op"], span["description"], below(span["span_id"])] for span in spans])

    return transaction["transaction"], below(root)


def keep_of_test(spans):
    """Leave out the spans of the integrations, whose number depends on Django's own middleware."""
    found = []
    for op, description, below in spans:
        found += [[description, keep_of_test(below)]] if op == "test" else keep_of_test(below)
    return found


def leaves(name):
    return [[f"sync leaf {name}0", []], [f"sync leaf {name}1", []]]


EXPECTED = {
    "sync": [["sync view", [["async middle a", leaves("a")]]]],
    "async": [["async view", [["async middle b", leaves("b")]]]],
}
SEEN = {
    "sync": {"seen": ["async middle a", "sync leaf a0", "sync leaf a1"], "after": "sync view"},
    "async": {"seen": ["async middle b", "sync leaf b0", "sync leaf b1"], "after": "async view"},
}


@pytest.mark.parametrize("handler", ["asgi", "wsgi"])
@pytest.mark.parametrize("view", ["sync", "async"])
def test_spans(view, handler):
    events.clear()
    if handler == "wsgi":
        from django.core.wsgi import get_wsgi_application

        with httpx.Client(transport=httpx.WSGITransport(get_wsgi_application()), base_url="http://site") as client:
            response = client.get(f"/{view}/")
    else:
        from django.core.asgi import get_asgi_application

        async def request():
            transport = httpx.ASGITransport(get_asgi_application())
            async with httpx.AsyncClient(transport=transport, base_url="http://site") as client:
                return await client.get(f"/{view}/")

        response = asyncio.run(request())
    assert SEEN[view] == response.json()
    name, spans = tree()
    assert f"/{view}/" == name
    assert EXPECTED[view] == keep_of_test(spans)
