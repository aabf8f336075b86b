#!/bin/sh
# ./send.sh "My pool pump is humming"
hex() { od -An -N"$1" -tx1 /dev/urandom | tr -d ' \n'; }
redis-cli -u "$REDIS_URL" XADD pointsman:queries '*' text "$1" id "$$" traceparent "00-$(hex 16)-$(hex 8)-01"
