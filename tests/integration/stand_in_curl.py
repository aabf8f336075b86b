"""Stands in for curl on a machine that has none: the few options that the examples use."""

from __future__ import annotations

import argparse
import sys
import urllib.error
import urllib.request


def main() -> int:
    parser = argparse.ArgumentParser()
    for flag in ("-s", "-S", "-f"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("-H", action="append", default=[])
    parser.add_argument("-d")
    parser.add_argument("url")
    given = parser.parse_args()
    headers = dict(header.split(": ", 1) for header in given.H)
    body = None if given.d is None else given.d.encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(given.url, body, headers)) as answer:
            sys.stdout.write(answer.read().decode())
    except urllib.error.HTTPError as error:
        if given.f:
            return 22
        sys.stdout.write(error.read().decode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
