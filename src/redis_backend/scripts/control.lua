-- Commands about jobs and handlers, looks at them, and named maps (ports::KeyValue).
--
-- "cancel"  {id, r: index of the signed outcome}: whether that has ended it, its record
-- "retry"   {id, call: this call's name}: the status of a job that cannot be retried, "full" if there is no room, or nil; its record
-- "records" {ids, in: an instance that hears of their ends, or absent}: their records
-- "pause"   {h, on}: whether there is such a handler
-- "payload" {id}: its envelope, and its payload unless that is not kept any more
-- "list"    {h, s: statuses, k: the end of their lanes' names, tr: trace, before: us, most, after: a number of submission}: ids, newest
--           first, of those before it; the number of the last one; where the next look goes on, if "most" were not found among
--           so many records: a look is no longer than other calls can wait
-- "lanes"   {h, most}: of its lanes in which jobs wait the record of the head, or nil, and how many jobs there are
-- "stats"   {}: figures as a flat list; how long each handler's oldest job waits, us; nodes; records; leases; idempotency keys
-- "load"    {map, ttl}: a flat list of entries; "get" {map, key: index}: a value or nil; "apply" {map, ch: changes, ttl};
-- "delete"  {map}; ttl in us or absent
-- "ow"      sees this owner's jobs only; absent: all
--
-- A record is {id, env, s, d, st or nil, fi or nil, r, {why it waits, for what}, ex, at, pg}; nil where there is none.

local function sees(id)
  if not is_sound(id) then return false end
  local owner = call('HGET', job_key(id), 'ow')
  return owner and (not A.ow or owner == A.ow)
end

local function waiting(id, h, l, nb, dl)
  if is_paused(h) or l ~= '' and call('HGET', P .. 'lane:' .. l, 'pk') == 'forged' then return {'paused', ''} end
  local head = l ~= '' and call('LINDEX', P .. 'q:' .. l, 0)
  if head and head ~= id then return {'lane', head} end
  if nb > now then return {dl > 0 and 'backoff' or 'delay', int(nb)} end
  local executor = conf(h).g and ' ' .. int(conf(h).g) .. ':'
  for _, node in ipairs(call('ZRANGE', P .. 'nodes', 0, -1)) do
    local executors = ' ' .. (call('HGET', P .. 'node:' .. node, 'ex') or '')
    if executor and string.find(executors, executor, 1, true) then return {'workers', ''} end
  end
  return {'executor', ''}
end

local function short(text, most) return text and #text <= most and text or '' end

local function record(id)
  if not sees(id) or call('HSTRLEN', job_key(id), 'r') > R.envelope then return false end
  local env, s, d, st, fi, r, h, l, nb, dl, ex, at, pg =
    unpack(call('HMGET', job_key(id), 'env', 's', 'd', 'st', 'fi', 'r', 'h', 'l', 'nb', 'dl', 'ex', 'at', 'pg'))
  local why = s == 'queued' and waiting(id, h, l, num(nb), num(dl)) or {'', ''}
  -- Nobody has signed the first two: what is too long for what they are is nothing.
  return {id, env, s or '', int(num(d)), st and int(num(st)), fi and int(num(fi)), r or '', why, short(ex, 64), short(at, 1024), short(pg, 2048)}
end

local function unpark(id, h, lane)
  if call('HEXISTS', P .. 'lane:' .. lane, 'pk') == 1 and call('LINDEX', P .. 'q:' .. lane, 0) == id then
    call('HDEL', P .. 'lane:' .. lane, 'pk')
    call('SREM', P .. 'parked:' .. h, lane)
    count(of(h).parked, -1)
    return true
  end
end

-- True if this has ended it.
local function cancel(id)
  local job = read_job(id)
  if ENDED[job.s] then
    if job.l ~= '' and unpark(id, job.h, job.l) then
      call('LPOP', P .. 'q:' .. job.l)
      call('HSET', job_key(id), kept(id, job, job.s))
      make_ready(job.l)
    end
    return
  end
  local lease = lease_of(id, job)
  finish(id, job, 'cancelled', ARGV[A.r], '', '')
  if lease then
    revoke(lease, id)
    if job.s == 'running' then end_lease(lease, true)
    else
      local at = string.find(lease.run, id, 1, true)
      call('HSET', P .. 'lease:' .. lease.n, 'run', string.sub(lease.run, 1, at - 1) .. string.sub(lease.run, at + 32))
    end
  end
  if job.l ~= '' then make_ready(job.l) end
  return true
end

local function retry(id)
  local h, l, ow, bytes, fu, s, ended = unpack(call('HMGET', job_key(id), 'h', 'l', 'ow', 'pb', 'fu', 's', 'fi'))
  bytes = num(bytes)
  forget(id)
  end_attempt(id, s, num(ended))
  call('HSET', job_key(id), 's', 'queued', 'd', '0', 'nb', now_text, 'ws', now_text, 'aw', '0', 'ls', '', 'rm', '', 'rc', A.call)
  call('HDEL', job_key(id), 'dl', 'st', 'fi', 'r', 'ct', 'cd', 'pg')
  if l ~= '' and unpark(id, h, l) then
    zadd(of(h).waits, now_text, id)
    count('queued', 1)
    count(of(h).queued, 1)
    count_live(ow, bytes, fu, 1)
  else enqueue(id, h, l, ow, bytes, fu, now_text) end
  make_ready(l == '' and id or l)
end

local function pause(h, on)
  if not on then
    if is_paused(h) then
      local from, to = string.find(known.paused, ' ' .. h .. ' ', 1, true)
      sets.paused = string.sub(known.paused, 1, from - 1) .. string.sub(known.paused, to + 1)
    end
    look_at_forged(h)
    ring(H[h].g)
    return
  end
  if not is_paused(h) then sets.paused = (known.paused == '0' and '' or known.paused) .. ' ' .. h .. ' ' end
  -- Of each run only the running job goes on.
  for _, member in ipairs(call('ZRANGE', P .. 'leases', 0, -1)) do
    local n = string.match(member, '^(%S+) %S+ %S+ $')
    local lease = n and read_lease(n)
    if lease and lease.h == h and #lease.run > 32 then
      for id in each(string.sub(lease.run, 33)) do
        revoke(lease, id)
        call('HSET', job_key(id), 'ls', '')
        may_have_begun(id)
      end
      call('HSET', P .. 'lease:' .. n, 'run', first_of(lease.run))
    end
  end
end

callable('cancel', function()
  local has_ended = sees(A.id) and cancel(A.id) or false
  return done({has_ended, record(A.id)})
end)

callable('retry', function()
  if not sees(A.id) then return {false, false} end
  local s, by = unpack(call('HMGET', job_key(A.id), 's', 'rc'))
  if by ~= A.call then
    if not ENDED[s] or s == 'succeeded' then return {s, false} end
    local ow, bytes, fu = unpack(call('HMGET', job_key(A.id), 'ow', 'pb', 'fu'))
    if is_full_for(ow, num(bytes), fu) then return {'full', false} end
    retry(A.id)
  end
  return done({false, record(A.id)})
end)

callable('records', function()
  local out = {}
  for i, id in ipairs(A.ids) do
    out[i] = record(id)
    if A['in'] and out[i] and not ENDED[out[i][3]] then watch(id, call('HGET', job_key(id), 'in'), A['in']) end
  end
  return out
end)

callable('pause', function()
  if not H[A.h] then return false end
  pause(A.h, A.on)
  return done(true)
end)

callable('payload', function()
  if not sees(A.id) then return false end
  local env, s, payload = unpack(call('HMGET', job_key(A.id), 'env', 's', 'pl'))
  return {env, s ~= 'succeeded' and payload}
end)

callable('list', function()
  local below = math.min(type(A.after) == 'number' and A.after or math.huge, A.before or math.huge)
  local out, last, from, looked = {}, false, below < math.huge and '(' .. int(below) or '+inf', 0
  while #out < A.most do
    if looked >= R.look then return {out, last, tonumber(string.sub(from, 2))} end
    looked = looked + 256
    local members = call('ZRANGE', P .. 'all', from, '-inf', 'BYSCORE', 'REV', 'LIMIT', 0, 256, 'WITHSCORES')
    if #members == 0 then break end
    from = '(' .. members[#members]
    for at = 1, #members, 2 do
      local id = members[at]
      if #out < A.most and sees(id) then
        local h, s, l, tr = unpack(call('HMGET', job_key(id), 'h', 's', 'l', 'tr'))
        if (not A.h or A.h == h) and (not A.s or A.s[s]) and (not A.tr or A.tr == tr)
          and (not A.k or string.sub(l or '', -#A.k) == A.k) then out[#out + 1], last = id, tonumber(members[at + 1]) end
      end
    end
  end
  return {out, last, false}
end)

callable('lanes', function()
  local out, seen = {}, {}
  local function add(lane)
    if seen[lane] or #out == A.most then return end
    seen[lane] = true
    local head = is_free(lane) and lane or call('LINDEX', P .. 'q:' .. lane, 0)
    if head and sees(head) then out[#out + 1] = {record(head), is_free(lane) and 1 or call('LLEN', P .. 'q:' .. lane)} end
  end
  -- Of many that are parked some, so that those which wait have room.
  for _, lane in ipairs(call('SRANDMEMBER', P .. 'parked:' .. A.h, math.ceil(A.most / 2))) do add(lane) end
  for _, id in ipairs(call('ZRANGE', P .. 'waits:' .. A.h, 0, 16 * A.most)) do
    local l = is_sound(id) and call('HGET', job_key(id), 'l')
    if l then add(l == '' and id or l) end
  end
  return out
end)

callable('stats', function()
  local ready, nodes = {}, {}
  for h in pairs(H) do
    local first = call('ZRANGE', P .. 'waits:' .. h, 0, 0, 'WITHSCORES')[2]
    ready[#ready + 1] = h
    ready[#ready + 1] = first and int(math.max(0, now - tonumber(first))) or '0'
  end
  for _, node in ipairs(call('ZRANGE', P .. 'nodes', int(now), '+inf', 'BYSCORE')) do
    local host, pid, waiters, executors = unpack(call('HMGET', P .. 'node:' .. node, 'host', 'pid', 'waiters', 'ex'))
    nodes[#nodes + 1] = {node, host or '', int(num(pid)), int(num(waiters)), executors or ''}
  end
  return {call('HGETALL', P .. 'count'), ready, nodes, call('ZCARD', P .. 'all'), call('ZCARD', P .. 'leases'), call('ZCARD', P .. 'idems')}
end)

callable('load', function() return map_load(A.map, A.ttl) end)
callable('apply', function() map_apply(A.map, A.ch, R.tag, A.ttl) end)
