-- Steering and looking.
--
-- "do"     "cancel" {id, r: index of the signed outcome} | "retry" {id} | "pause" {h, on} | "records" {ids} |
--          "list" {h, s, ow, most} | "stats" | "sizes" | "subscribe" {in} | "unsubscribe" {in}
-- "ow"     sees this owner's jobs only; absent: all
-- Answers  records {id, env, s, d, sub, st, fi, r, waiting: {why, what}}; "absent" where there is none; a status for a
--          job that cannot be retried; figures as a flat list

local function sees(id)
  local owner = call('HGET', job_key(id), 'ow')
  return owner and (not A.ow or owner == A.ow)
end

local function waiting(id, h, lane, nb, d)
  if call('SISMEMBER', P .. 'paused', h) == 1 then return {'paused', ''} end
  local head = call('LINDEX', P .. 'q:' .. lane, 0)
  if head and head ~= id then return {'lane', head} end
  if nb > now then return {d > 0 and 'backoff' or 'delay', int(nb)} end
  for _, con in ipairs(call('ZRANGE', P .. 'cons', 0, -1)) do
    if tonumber(call('HGET', P .. 'con:' .. con, 'g') or '-1') == H[h].g then return {'workers', ''} end
  end
  return {'executor', ''}
end

local function record(id)
  local f = call('HMGET', job_key(id), 'env', 's', 'd', 'sub', 'st', 'fi', 'r', 'h', 'l', 'nb')
  if not f[1] then return 'absent' end
  local w = f[2] == 'queued' and waiting(id, f[8], f[9], tonumber(f[10]), tonumber(f[3])) or {}
  return {id, f[1], f[2], f[3], f[4], f[5] or '', f[6] or '', f[7] or '', w}
end

local ended = {succeeded = 1, failed = 1, cancelled = 1, timed_out = 1, dead = 1}

local function unpark(id, lane)
  if call('HEXISTS', lane_key(lane), 'pk') == 1 and call('LINDEX', P .. 'q:' .. lane, 0) == id then
    call('HDEL', lane_key(lane), 'pk')
    return true
  end
end

local function cancel(id)
  local s, lane, lease = unpack(call('HMGET', job_key(id), 's', 'l', 'ls'))
  if ended[s] then
    if unpark(id, lane) then
      call('LPOP', P .. 'q:' .. lane)
      keep_record(id)
      make_ready(lane)
    end
    return
  end
  finish(id, 'cancelled', ARGV[A.r])
  if lease then
    revoke(lease, id)
    if s == 'running' then end_lease(lease) else call('LREM', P .. 'run:' .. lease, 1, id) end
  end
  make_ready(lane)
end

local function retry(id)
  local h, lane, bytes = unpack(call('HMGET', job_key(id), 'h', 'l', 'pb'))
  forget(id)
  call('HSET', job_key(id), 's', 'queued', 'd', 0, 'nb', int(now), 'aw', 0)
  call('HDEL', job_key(id), 'st', 'fi', 'r', 'ct', 'cd')
  if unpark(id, lane) then
    count('queued', 1)
    count('queued:' .. h, 1)
    count('bytes', bytes)
    make_ready(lane)
  else
    enqueue(id, h, lane, bytes)
  end
end

local function pause(h, on)
  if not on then
    call('SREM', P .. 'paused', h)
    ring(H[h].g)
    return
  end
  call('SADD', P .. 'paused', h)
  -- Of each run only the running job goes on.
  for _, n in ipairs(call('ZRANGE', P .. 'leases', 0, -1)) do
    if call('HGET', P .. 'lease:' .. n, 'h') == h then
      for _, id in ipairs(call('LRANGE', P .. 'run:' .. n, 1, -1)) do
        revoke(n, id)
        call('HDEL', job_key(id), 'ls')
      end
      call('LTRIM', P .. 'run:' .. n, 0, 0)
    end
  end
end

local what = A['do']
if what == 'cancel' or what == 'retry' then
  if not sees(A.id) then return 'absent' end
  if what == 'cancel' then cancel(A.id)
  else
    local s = call('HGET', job_key(A.id), 's')
    if not ended[s] or s == 'succeeded' then return s end
    retry(A.id)
  end
  return record(A.id)
elseif what == 'records' then
  local out = {}
  for i, id in ipairs(A.ids) do out[i] = sees(id) and record(id) or 'absent' end
  return out
elseif what == 'pause' then
  if not H[A.h] then return 'absent' end
  pause(A.h, A.on)
  return 'ok'
elseif what == 'list' then
  local out, from = {}, 0
  while #out < A.most do
    local ids = call('ZREVRANGE', P .. 'all', from, from + 255)
    if #ids == 0 then break end
    from = from + #ids
    for _, id in ipairs(ids) do
      local h, s = unpack(call('HMGET', job_key(id), 'h', 's'))
      if #out < A.most and sees(id) and (not A.h or A.h == h) and (not A.s or A.s == s) then out[#out + 1] = record(id) end
    end
  end
  return out
elseif what == 'stats' then
  local ready, groups = {}, {}
  for h in pairs(H) do
    local first = call('ZRANGE', P .. 'ready:' .. h, 0, 0, 'WITHSCORES')[2]
    ready[#ready + 1] = h
    ready[#ready + 1] = first and int(math.max(0, now - tonumber(first))) or '0'
  end
  for _, con in ipairs(call('ZRANGE', P .. 'cons', 0, -1)) do groups[#groups + 1] = call('HGET', P .. 'con:' .. con, 'g') or '' end
  return {call('HGETALL', P .. 'count'), ready, call('SMEMBERS', P .. 'paused'), groups,
    call('ZCARD', P .. 'all'), call('ZCARD', P .. 'leases')}
elseif what == 'subscribe' then
  -- A stream that is there, empty: doorbells are published to those alone.
  if call('EXISTS', P .. 'inbox:' .. A['in']) == 0 then
    call('XADD', P .. 'inbox:' .. A['in'], '*', 'j', '')
    call('XTRIM', P .. 'inbox:' .. A['in'], 'MAXLEN', 0)
  end
  return 'ok'
elseif what == 'unsubscribe' then
  call('DEL', P .. 'inbox:' .. A['in'])
  return 'ok'
end
