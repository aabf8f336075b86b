-- Publish and acknowledge, atomically, one batch of entries.
--
-- KEYS[1]  the stream of queries
-- KEYS[2+] the destination streams
-- ARGV     group, "delete" or "keep", then per entry:
--          id, index of its destination in KEYS, number of field values, name, value, ...
--
-- Returns per entry: the id it got in its destination; false if it was no longer pending (another worker
-- has published it); or a table {err = ...} if Redis refused it, in which case it is still pending.
--
-- The order matters. XADD comes before XACK: Redis does not roll a script back, so acknowledging first would
-- lose the entry when XADD then fails. The pending check comes before XADD: without it an entry that two
-- workers hold would be published twice.

local source, group, delete = KEYS[1], ARGV[1], ARGV[2] == "delete"
local results, at = {}, 3

while at <= #ARGV do
  local id, destination, count = ARGV[at], KEYS[tonumber(ARGV[at + 1])], tonumber(ARGV[at + 2])
  local first = at + 3
  at = first + count

  local pending = redis.pcall("XPENDING", source, group, id, id, 1)
  if pending.err and not string.find(pending.err, "NOGROUP", 1, true) then
    results[#results + 1] = pending
  elseif pending.err or #pending == 0 then
    results[#results + 1] = false
  else
    local added = redis.pcall("XADD", destination, "*", unpack(ARGV, first, at - 1))
    if type(added) == "table" and added.err then
      results[#results + 1] = added
    else
      redis.call("XACK", source, group, id)
      if delete then redis.call("XDEL", source, id) end
      results[#results + 1] = added
    end
  end
end

return results
