"""Put the file of MODEL_URL at MODEL_FILE: whole and with the hash MODEL_SHA256, or not at all. Exit code 1: it has another hash."""

import hashlib
import os
import sys
import urllib.request
from pathlib import Path

target, wanted = Path(os.environ["MODEL_FILE"]), os.environ["MODEL_SHA256"].lower()
partial = target.with_name(target.name + ".partial")
found = hashlib.sha256()
with urllib.request.urlopen(os.environ["MODEL_URL"], timeout=60) as source, partial.open("wb") as file:
    while block := source.read(1 << 20):
        found.update(block)
        file.write(block)
if found.hexdigest() != wanted:
    partial.unlink()
    sys.exit(f"the file of MODEL_URL has the SHA-256 {found.hexdigest()} and not {wanted}, which POINTSMAN_MODEL_SHA256 asks for")
partial.replace(target)
print(f"{target}: {target.stat().st_size} bytes, SHA-256 {wanted}")
