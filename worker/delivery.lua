-- Publish and acknowledge, atomically, one batch of entries.
--
-- KEYS[1]  the stream of queries
-- KEYS[2]  the sorted set of message ids published of late
-- KEYS[3+] the destination streams
-- ARGV     group, "delete" or "keep", for how many ms a message id is remembered (0: not at all), then per entry:
--          id, index of its destination in KEYS, entries at which that destination is full (0: never),
--          message id ("" for none), number of field values, name, value, ...
--
-- Returns per entry: the id it got in its destination; false if it was no longer pending (another worker
-- has published it); 0 if its message was published before, so that it was acknowledged alone; or a table
-- {err = ...} if Redis refused it, in which case it is still pending.
--
-- The order matters. XADD comes before XACK: Redis does not roll a script back, so acknowledging first would
-- lose the entry when XADD then fails. The pending check comes before XADD: without it an entry that two
-- workers hold would be published twice. For the same reason the script first does, to no effect, what it must
-- be able to do after XADD: where permissions or the keys' types forbid it, the batch fails before anything is published.
-- Of these ZADD is the first, since it needs memory: Redis asks for memory until a script's first write, and then no more.

local source, seen, group, delete, remember_ms = KEYS[1], KEYS[2], ARGV[1], ARGV[2] == "delete", tonumber(ARGV[3])
local results, at, now_ms = {}, 4, 0

redis.call("ZADD", seen, "XX", 0, "")
redis.call("XACK", source, group, "0-0")
if delete then redis.call("XDEL", source, "0-0") end
if remember_ms > 0 then
  local time = redis.call("TIME")
  now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
  redis.call("ZREMRANGEBYSCORE", seen, "-inf", "(" .. now_ms - remember_ms)
  redis.call("ZREM", seen, "")
  redis.call("PEXPIRE", seen, remember_ms)
end

local function acknowledge(id)
  redis.call("XACK", source, group, id)
  if delete then redis.call("XDEL", source, id) end
end

while at <= #ARGV do
  local id, destination, limit, message_id = ARGV[at], KEYS[tonumber(ARGV[at + 1])], tonumber(ARGV[at + 2]), ARGV[at + 3]
  local first = at + 5
  at = first + tonumber(ARGV[at + 4])
  local remember = remember_ms > 0 and message_id ~= ""

  local pending = redis.pcall("XPENDING", source, group, id, id, 1)
  local length = limit > 0 and redis.pcall("XLEN", destination) or 0
  if pending.err and not string.find(pending.err, "NOGROUP", 1, true) then
    results[#results + 1] = pending
  elseif pending.err or #pending == 0 then
    results[#results + 1] = false
  elseif remember and redis.call("ZSCORE", seen, message_id) then
    acknowledge(id)
    results[#results + 1] = 0
  elseif type(length) == "table" then
    results[#results + 1] = length
  elseif limit > 0 and length >= limit then
    results[#results + 1] = { err = "FULL " .. destination .. " holds " .. length .. " entries" }
  else
    -- Remembered first, since that may fail for want of memory or permission; forgotten again if XADD then fails.
    local added = remember and redis.pcall("ZADD", seen, string.format("%.0f", now_ms), message_id)
    if not (type(added) == "table" and added.err) then
      added = redis.pcall("XADD", destination, "*", unpack(ARGV, first, at - 1))
      if remember and type(added) == "table" and added.err then redis.call("ZREM", seen, message_id) end
    end
    if type(added) == "table" and added.err then
      results[#results + 1] = added
    else
      acknowledge(id)
      results[#results + 1] = added
    end
  end
end

if remember_ms > 0 then redis.call("PEXPIRE", seen, remember_ms) end
return results
