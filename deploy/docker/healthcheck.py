"""Docker's health check: exit code 0 if the worker's /healthz answers 200. Asks without any proxy that the environment names."""

import http.client
import os
import sys

worker = http.client.HTTPConnection(os.environ["POINTSMAN_HTTP_HOST"], int(os.environ["POINTSMAN_HTTP_PORT"]), timeout=4)
worker.request("GET", "/healthz")
answer = worker.getresponse()
print(answer.status, answer.read(200).decode(errors="replace"))
sys.exit(answer.status != 200)
