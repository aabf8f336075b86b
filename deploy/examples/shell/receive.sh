#!/bin/sh
# ./receive.sh pool: handles one message after another; a message that is not acknowledged stays pending
topic=pointsman:topic:$1
redis-cli -u "$REDIS_URL" XGROUP CREATE "$topic" shell-desk 0 MKSTREAM
while :; do
  # Without a terminal redis-cli prints a value a line: the stream, the entry's id, then names and values.
  entry=$(redis-cli -u "$REDIS_URL" XREADGROUP GROUP shell-desk "shell-$$" COUNT 1 BLOCK 5000 STREAMS "$topic" '>') || sleep 1
  [ "$entry" ] || continue
  printf '%s\n' "$entry" | grep -A 1 -x -e id -e pointsman.label -e traceparent
  redis-cli -u "$REDIS_URL" XACK "$topic" shell-desk "$(printf '%s\n' "$entry" | sed -n 2p)"
done
