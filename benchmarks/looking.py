"""Ask a server for its list of models now and then, and say how long that took: ``python -m benchmarks.looking URL``.

Ends when its own input does, and then prints the seconds of each as a JSON list. It reads nothing else meanwhile, so
that what it tells is the server's time and not its own.
"""

from __future__ import annotations

import http.client
import json
import select
import sys
import time
from urllib.parse import urlsplit

PAUSE = 0.25  # seconds between two


def main() -> None:
    """Look until the input ends, at least once."""
    address = urlsplit(sys.argv[1]).netloc
    listed: list[float] = []
    print("begun", flush=True)
    while not listed or not select.select([sys.stdin], [], [], PAUSE)[0]:
        begin = time.monotonic()
        connection = http.client.HTTPConnection(address, timeout=60)
        connection.request("GET", "/v1/models")
        json.load(connection.getresponse())
        connection.close()
        listed.append(time.monotonic() - begin)
    print(json.dumps(listed), flush=True)


if __name__ == "__main__":
    main()
