-- What happens to leases besides commits.
--
-- "do"     "connect" {con, g} | "leave" {con, workers} | "release" {con, n, t} | "extend" {con} | "sweep" |
--          "quarantine" {con, n, t, id}: a job of this lease that nobody of the deployment signed
-- Answers  {notices, us until something is due or "", 0: call again}

local function of_group(id) return tonumber(call('HGET', P .. 'con:' .. id, 'g') or '-1') end

if A['do'] == 'connect' then
  call('HSET', P .. 'con:' .. A.con, 'g', A.g, 'room', 0)
  call('ZADD', P .. 'cons', int(now + R.con), A.con)
elseif A['do'] == 'leave' then
  -- Leases start in their order, at most one a worker: those behind cannot have started.
  for i, n in ipairs(call('ZRANGE', P .. 'held:' .. A.con, 0, -1)) do
    if i <= A.workers then lose_lease(n, '') else end_lease(n) end
  end
  call('DEL', P .. 'con:' .. A.con, P .. 'revoked:' .. A.con, P .. 'held:' .. A.con)
  call('ZREM', P .. 'cons', A.con)
elseif A['do'] == 'release' then
  local token, consumer = unpack(call('HMGET', P .. 'lease:' .. A.n, 't', 'c'))
  if token == A.t and consumer == A.con then end_lease(A.n) end
elseif A['do'] == 'quarantine' then
  local token, consumer, lane = unpack(call('HMGET', P .. 'lease:' .. A.n, 't', 'c', 'l'))
  if token == A.t and consumer == A.con then
    end_lease(A.n)
    local key = job_key(A.id)
    local h, bytes = unpack(call('HMGET', key, 'h', 'pb'))
    count('queued', -1)
    count('queued:' .. h, -1)
    count('bytes', -(tonumber(bytes) or 0))
    count('forged', 1)
    call('LREM', P .. 'q:' .. lane, 1, A.id)
    call('ZREM', P .. 'all', A.id)
    call('RENAME', key, P .. 'quarantine:' .. A.id)
    call('PEXPIRE', P .. 'quarantine:' .. A.id, R.quarantine)
    make_ready(lane)
  end
elseif A['do'] == 'extend' then
  if call('EXISTS', P .. 'con:' .. A.con) == 1 then
    call('ZADD', P .. 'cons', int(now + R.con), A.con)
    for _, n in ipairs(call('ZRANGE', P .. 'held:' .. A.con, 0, -1)) do
      if tonumber(call('ZSCORE', P .. 'leases', n) or '0') > now then call('ZADD', P .. 'leases', int(now + R.vis), n) end
    end
  end
end
sweep('')
-- Whose lanes became ready by time alone since the last look.
local since = tonumber(call('GET', P .. 'ticked') or '0')
call('SET', P .. 'ticked', int(now))
for h, handler in pairs(H) do
  if call('SISMEMBER', P .. 'paused', h) == 0 then
    for _, before in ipairs({0, R.aff}) do
      if call('ZCOUNT', P .. 'ready:' .. h, '(' .. int(since - before), int(now - before)) > 0 then ring(handler.g) end
    end
  end
end
local due = ''
for h in pairs(H) do
  local nearest = call('ZRANGE', P .. 'ready:' .. h, '(' .. int(now), '+inf', 'BYSCORE', 'LIMIT', 0, 1, 'WITHSCORES')[2]
  if nearest and (due == '' or tonumber(nearest) - now < due) then due = tonumber(nearest) - now end
end
if is_due() then due = 0 end
return {answers, due == '' and '' or int(due)}
