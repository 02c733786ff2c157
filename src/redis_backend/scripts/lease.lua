-- What happens to leases besides steps.
--
-- "do"     "leave" {con, workers: how many of its leases can have started} | "extend" {con, ns: list of {lease, job of an
--          unordered one or ""}} | "sweep" |
--          "tell" {con, fields: what the process says of itself, for so many us: ttl, rc: as in "broken",
--          call: this call's name} |
--          "quarantine" {con, n, t, o, id}: a job of this lease that nobody of the deployment signed
-- Answers  {notices, us until something is due or "", 0: call again; "extend": leases that are over}

local over = {}
local what = A['do']
if what == 'leave' then
  -- Leases start in their order, at most one a worker: those behind cannot have started.
  local mine, started = {}, 0
  for _, member in ipairs(call('ZRANGE', P .. 'leases', 0, -1)) do
    if string.find(member, ' ' .. A.con .. ' ', 1, true) then mine[#mine + 1] = member end
  end
  table.sort(mine)
  each_lease(mine, function(lease)
    started = started + 1
    if started <= A.workers then lose_lease(lease) else end_lease(lease) end
  end)
  call('DEL', P .. 'node:' .. A.con, P .. 'revoked:' .. A.con)
  call('ZREM', P .. 'nodes', A.con)
elseif what == 'quarantine' then
  local lease = read_lease(A.n, A.o)
  if lease and lease.token == A.t and lease.consumer == A.con then
    end_lease(lease)
    quarantine(A.id, lease.h, lease.lane)
    if lease.id == '' then make_ready(lease.lane) end
  end
elseif what == 'extend' then
  for _, named in ipairs(A.ns) do
    local lease = read_lease(named[1], named[2])
    if lease and lease.consumer == A.con and lease.ends > now then
      renew(lease)
      count('renewed', 1)
    else over[#over + 1] = named[1] end
  end
elseif what == 'tell' then
  local node = P .. 'node:' .. A.con
  if broken(call('HGET', node, 'rc')) then call('HSET', node, 'rc', A.call) end
  call('HSET', node, unpack(A.fields))
  call('ZADD', P .. 'nodes', int(now + A.ttl), A.con)
end
sweep()
-- Whose lanes became ready by time alone since the last look.
local since = num(call('GET', P .. 'ticked'))
call('SET', P .. 'ticked', int(now))
local due = ''
for h, handler in pairs(H) do
  for _, before in ipairs({0, R.aff}) do
    if not is_paused(h) and call('ZCOUNT', P .. 'ready:' .. h, '(' .. int(since - before), int(now - before)) > 0 then
      ring(handler.g)
    end
  end
  local nearest = call('ZRANGE', P .. 'ready:' .. h, '(' .. int(now), '+inf', 'BYSCORE', 'LIMIT', 0, 1, 'WITHSCORES')[2]
  if nearest and (due == '' or tonumber(nearest) - now < due) then due = tonumber(nearest) - now end
end
local answer = done({notices, '', over})
if is_due() then due = 0 end
answer[2] = due == '' and '' or int(due)
return answer
