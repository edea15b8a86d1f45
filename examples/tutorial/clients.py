"""One client for many calls: ``python clients.py URL`` gets it three times."""

from __future__ import annotations

import sys

import httpx

from asgiref.sync import AsyncSingleThreadContext, async_to_sync


class Site:
    """A synchronous class around an async client, which needs one loop."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client = httpx.AsyncClient(trust_env=False)

    @async_to_sync
    async def get(self) -> httpx.Response:
        return await self.client.get(self.url)

    @async_to_sync
    async def close(self) -> None:
        await self.client.aclose()


def main(url: str) -> None:
    with AsyncSingleThreadContext():
        site = Site(url)
        responses = [site.get() for _ in range(3)]
        connections = {
            response.extensions["network_stream"].get_extra_info("client_addr")
            for response in responses
        }
        site.close()
    text = responses[-1].text.strip()
    print(f"{len(responses)} responses, {len(connections)} connection: {text}")


if __name__ == "__main__":
    main(sys.argv[1])
