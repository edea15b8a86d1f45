"""A replacement for ``wrk``, if it is not installed: ``client.py URL CONNECTIONS SECONDS BODY``.

It prints the number of answers, the seconds and the number of errors as JSON.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from urllib.parse import urlsplit


class Client:
    """The connections, each on its own thread, and the results."""

    def __init__(self, url: str, connections: int, seconds: float, body: int) -> None:
        self._url = urlsplit(url)
        self._body = b"x" * body or None
        self._end = time.perf_counter() + seconds
        self.answers = [0] * connections
        self.errors = [0] * connections

    def keep_busy(self, number: int) -> None:
        connection = http.client.HTTPConnection(self._url.netloc, timeout=10)
        while time.perf_counter() < self._end:
            try:
                connection.request("POST" if self._body else "GET", self._url.path, self._body)
                response = connection.getresponse()
                response.read()
                failed = response.status != 200
            except (OSError, http.client.HTTPException):
                connection.close()
                failed = True
            self.errors[number] += failed
            self.answers[number] += not failed
        connection.close()


def main() -> None:
    url, *numbers = sys.argv[1:]
    connections, seconds, body = map(int, numbers)
    start = time.perf_counter()
    client = Client(url, connections, seconds, body)
    threads = [threading.Thread(target=client.keep_busy, args=(number,)) for number in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = {"requests": sum(client.answers), "seconds": time.perf_counter() - start, "errors": sum(client.errors)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
