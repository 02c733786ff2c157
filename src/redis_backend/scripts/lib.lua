-- What all scripts share: time, names, and the broker's moves. Put before each of them.
--
-- KEYS[1]  the prefix of every key, with the deployment's hash tag in it: "{cofferdam}:"
-- ARGV[1]  JSON: "now" us, in place of the server's time (tests), "H" the handlers by name {g: group, d: max deliveries,
--          o: ordered, p: parks, c: concurrency}, "R" the rules (see rules.rs), and what the script itself wants
-- ARGV[2…] bytes that are not text, named from ARGV[1] by their index
--
-- Keys, after the prefix:
--   job:ID      hash   env, h, l(ane), s(tatus), d(eliveries), f(ence), nb, sub, sq, st(arted), fi(nished), r(esult),
--                      ls (its lease), ct + cd (last commit's token and delivery), pb (payload bytes), ow(ner),
--                      in(stance), aw(aited), ik + fp (idempotency), tr(ace), kb (bytes kept), kc + ko (class and place there)
--   q:LANE      list   jobs in submission order
--   lane:LANE   hash   h, ls (live lease), v(ersion), mk (who knows the state), pk (parked), ca(utious), rs + rm (place
--                      in the ready set: score and member)
--   ready:H     zset   lanes that can be claimed from that time on, us; member = place, ":", lane
--   lease:N     hash   t(oken), c(onsumer), l(ane), h; run:N list of its jobs; leases zset N -> end
--   con:ID      hash   g(roup), room, x (end, unless renewed); held:ID zset of leases; revoked:ID list; cons zset -> end
--   m:MAP       hash   entries; mx zset MAP -> end; mb hash MAP -> bytes
--   idem:…      string job of an idempotency key
--   kept:0, 1   zset   finished records (place of the end, ":", job) -> end of their time, by class
--   quarantine:ID      a job that nobody of the deployment signed, for a week
--   all         zset   records -> place of submission
--   count       hash   figures; paused set; fence, place, number counters
--   inbox:I     stream doorbells; bell:G stream, wakes executors of a group
--
-- Every script checks all its conditions first and writes afterwards.

local P = KEYS[1]
local A = cjson.decode(ARGV[1])
local R, H = A.R, A.H
local call = redis.call
local clock = call('TIME')
local now = A.now or clock[1] * 1000000 + clock[2]
local answers = {}

local function int(x) return string.format('%.0f', x) end
local function count(field, by) call('HINCRBY', P .. 'count', field, by) end
local function figure(field) return tonumber(call('HGET', P .. 'count', field) or '0') end
local function job_key(id) return P .. 'job:' .. id end
local function lane_key(lane) return P .. 'lane:' .. lane end

-- Durations in the buckets of ports::Histogram.
local BOUNDS = {100, 500, 1000, 5000, 10000, 50000, 100000, 500000, 1000000, 5000000, 10000000, 60000000, 300000000}
local function observe(name, h, micros)
  local bucket = #BOUNDS
  for i, bound in ipairs(BOUNDS) do
    if micros <= bound then bucket = i - 1; break end
  end
  count(name .. ':' .. h .. ':' .. bucket, 1)
  count(name .. ':' .. h .. ':sum', int(math.max(0, micros)))
end

-- A group's executors look again; "rung" once a script.
local rung = {}
local function ring(group)
  if rung[group] then return end
  rung[group] = true
  call('XADD', P .. 'bell:' .. int(group), 'MAXLEN', '~', 64, '*', 'w', '1')
end

-- Maps with a time to live. Past its time a map is absent at once; who meets it frees it.
local function map_free(name)
  call('DEL', P .. 'm:' .. name)
  call('ZREM', P .. 'mx', name)
  call('HDEL', P .. 'mb', name)
end
local function map_lives(name)
  local ends = call('ZSCORE', P .. 'mx', name)
  return not ends or now < tonumber(ends)
end
local function map_load(name, ttl)
  if not map_lives(name) then map_free(name); return {} end
  local entries = call('HGETALL', P .. 'm:' .. name)
  if ttl and #entries > 0 and call('ZSCORE', P .. 'mx', name) then
    call('ZADD', P .. 'mx', int(now + ttl), name)
  end
  return entries
end
-- Changes: a list of {key, index of the value in ARGV, or 0 to remove}.
local function map_bytes_after(name, changes)
  local lives = map_lives(name)
  local bytes = lives and tonumber(call('HGET', P .. 'mb', name) or '0') or 0
  for _, change in ipairs(changes) do
    local key = ARGV[change[1]]
    local old = lives and call('HSTRLEN', P .. 'm:' .. name, key) or 0
    if lives and (old > 0 or call('HEXISTS', P .. 'm:' .. name, key) == 1) then bytes = bytes - #key - old + R.tag end
    if change[2] > 0 then bytes = bytes + #key + #ARGV[change[2]] - R.tag end
  end
  return bytes
end
local function map_apply(name, changes, ttl)
  local bytes = map_bytes_after(name, changes)
  if not map_lives(name) then map_free(name) end
  for _, change in ipairs(changes) do
    if change[2] > 0 then call('HSET', P .. 'm:' .. name, ARGV[change[1]], ARGV[change[2]])
    else call('HDEL', P .. 'm:' .. name, ARGV[change[1]]) end
  end
  if call('EXISTS', P .. 'm:' .. name) == 0 then map_free(name); return end
  call('HSET', P .. 'mb', name, int(bytes))
  if ttl then call('ZADD', P .. 'mx', int(now + ttl), name) else call('ZREM', P .. 'mx', name) end
end

local function state_map(lane) return 'state:' .. lane end

-- Numbers that grow with every use, padded so that their order is that of their texts too. Fences never repeat,
-- whatever the clock does.
local function next_number() return string.format('%016.0f', call('INCR', P .. 'number')) end
local function take_fences(n)
  local first = math.max(tonumber(call('GET', P .. 'fence') or '0') + 1, now)
  call('SET', P .. 'fence', int(first + n - 1))
  return first
end

-- Puts the lane into its handler's ready set if it belongs there, takes it out if not, and removes one with neither
-- jobs nor state.
local function make_ready(lane)
  local key = lane_key(lane)
  local h, lease, parked, score, member = unpack(call('HMGET', key, 'h', 'ls', 'pk', 'rs', 'rm'))
  if not h then return end
  local ready = P .. 'ready:' .. h
  local head = not lease and not parked and call('LINDEX', P .. 'q:' .. lane, 0)
  if not head then
    if member then
      call('ZREM', ready, member)
      call('HDEL', key, 'rs', 'rm')
    end
    if not lease and call('EXISTS', P .. 'q:' .. lane, P .. 'm:' .. state_map(lane)) == 0 then
      call('DEL', key)
      count('lanes:' .. h, -1)
    end
    return
  end
  local not_before = tonumber(call('HGET', job_key(head), 'nb'))
  if member then
    score = tonumber(score)
    if score >= not_before and (score <= now or score == not_before) then return end
    call('ZREM', ready, member)
  end
  score = math.max(not_before, now)
  member = string.format('%016.0f:%s', call('INCR', P .. 'place'), lane)
  call('ZADD', ready, int(score), member)
  call('HSET', key, 'rs', int(score), 'rm', member)
  if call('SISMEMBER', P .. 'paused', h) == 0 then ring(H[h].g) end
end

-- Enters a queued job at the tail of its lane.
local function enqueue(id, h, lane, bytes)
  count('queued', 1)
  count('queued:' .. h, 1)
  count('bytes', bytes)
  if call('HSETNX', lane_key(lane), 'h', h) == 1 then count('lanes:' .. h, 1) end
  call('RPUSH', P .. 'q:' .. lane, id)
  make_ready(lane)
end

-- job: {id, h, lane, ow, in, aw, tr, nb: us from now, env: index, pb, ik, fp}
local function accept(job, env)
  local place = call('INCR', P .. 'place')
  call('HSET', job_key(job.id), 'env', env, 'h', job.h, 'l', job.lane, 's', 'queued', 'd', 0, 'f', 0,
    'nb', int(now + job.nb), 'sub', int(now), 'sq', place, 'pb', job.pb, 'ow', job.ow, 'in', job['in'],
    'aw', job.aw, 'tr', job.tr)
  if job.ik then
    call('HSET', job_key(job.id), 'ik', job.ik, 'fp', job.fp)
    call('SET', P .. 'idem:' .. job.ik, job.id)
  end
  call('ZADD', P .. 'all', place, job.id)
  count('submitted:' .. job.h, 1)
  enqueue(job.id, job.h, job.lane, job.pb)
end

local function start(id, h)
  local key = job_key(id)
  local deliveries = call('HINCRBY', key, 'd', 1)
  call('HSET', key, 's', 'running', 'st', int(now))
  count('queued', -1)
  count('queued:' .. h, -1)
  count('running:' .. h, 1)
  if deliveries == 1 then observe('wait', h, now - tonumber(call('HGET', key, 'nb')))
  else count('redelivered', 1) end
end

-- A running job is queued again; it never left its lane.
local function requeue(id, h, not_before)
  call('HSET', job_key(id), 's', 'queued', 'nb', int(not_before))
  call('HDEL', job_key(id), 'ls')
  count('running:' .. h, -1)
  count('queued:' .. h, 1)
  count('queued', 1)
end

-- Finished records, by their time to live and within a number and a size, oldest first.
local function forget(id)
  local class, bytes, place = unpack(call('HMGET', job_key(id), 'kc', 'kb', 'ko'))
  if class then
    call('ZREM', P .. 'kept:' .. class, place .. ':' .. id)
    call('HDEL', job_key(id), 'kc', 'kb', 'ko')
    count('keptn', -1)
    count('keptb', -tonumber(bytes))
  end
end
local function drop_record(id)
  forget(id)
  local ik = call('HGET', job_key(id), 'ik')
  if ik then call('DEL', P .. 'idem:' .. ik) end
  call('DEL', job_key(id))
  call('ZREM', P .. 'all', id)
end
local function drop_records(most)
  for _ = 1, most do
    local kept = figure('keptn')
    local full = kept > 1 and (kept > R.keepn or figure('keptb') > R.keepb)
    local oldest
    for class = 0, 1 do
      local first = call('ZRANGE', P .. 'kept:' .. class, '-inf', full and '+inf' or int(now), 'BYSCORE', 'LIMIT', 0, 1)[1]
      if first and (not oldest or first < oldest) then oldest = first end
    end
    if not oldest then return end
    drop_record(string.sub(oldest, 18))
  end
end
local function keep_record(id)
  local key = job_key(id)
  local aw, result, env, s = unpack(call('HMGET', key, 'aw', 'r', 'pb', 's'))
  local class = aw == '1' and 1 or 0
  local bytes = 512 + #(result or '') + (s == 'succeeded' and 0 or tonumber(env))
  local ttl = class == 1 and R.attl or R.ttl
  local place = string.format('%016.0f', call('INCR', P .. 'place'))
  call('HSET', key, 'kc', class, 'kb', bytes, 'ko', place)
  call('ZADD', P .. 'kept:' .. class, int(now + ttl), place .. ':' .. id)
  count('keptn', 1)
  count('keptb', bytes)
  drop_records(64)
end

-- Ends a job's life: out of its lane, into the records, the doorbell rung. The caller looks after its lease and calls
-- make_ready.
local function finish(id, status, result)
  local key = job_key(id)
  local h, lane, s, started, bytes, inbox = unpack(call('HMGET', key, 'h', 'l', 's', 'st', 'pb', 'in'))
  if s == 'running' then
    count('running:' .. h, -1)
    observe('job', h, now - tonumber(started))
  else
    count('queued:' .. h, -1)
    count('queued', -1)
  end
  count('bytes', -tonumber(bytes))
  count('finished:' .. h .. ':' .. status, 1)
  call('HSET', key, 's', status, 'fi', int(now), 'r', result)
  call('HDEL', key, 'ls')
  if call('EXISTS', P .. 'inbox:' .. inbox) == 1 then
    call('XADD', P .. 'inbox:' .. inbox, 'MAXLEN', '~', R.doorbells, '*', 'j', id, 's', status, 'r', result)
  end
  if status == 'dead' and H[h].p and H[h].o then
    call('HSET', lane_key(lane), 'pk', 1)
    return
  end
  call('LREM', P .. 'q:' .. lane, 1, id)
  keep_record(id)
end

-- Takes a lease out of the books; its lane, handler and the jobs it had left.
local function remove_lease(n)
  local lane, consumer, h = unpack(call('HMGET', P .. 'lease:' .. n, 'l', 'c', 'h'))
  if not lane then return nil end
  local jobs = call('LRANGE', P .. 'run:' .. n, 0, -1)
  call('DEL', P .. 'lease:' .. n, P .. 'run:' .. n)
  call('ZREM', P .. 'leases', n)
  call('ZREM', P .. 'held:' .. consumer, n)
  call('HDEL', lane_key(lane), 'ls')
  for _, id in ipairs(jobs) do call('HDEL', job_key(id), 'ls') end
  return lane, h, jobs, consumer
end

-- Ends a lease before its last commit, whatever its running job came to. Nobody knows the lane's state now.
local function end_lease(n)
  local lane, h, jobs = remove_lease(n)
  if not lane then return end
  call('HDEL', lane_key(lane), 'mk')
  if jobs[1] and call('HGET', job_key(jobs[1]), 's') == 'running' then
    requeue(jobs[1], h, now)
    call('HINCRBY', job_key(jobs[1]), 'd', -1)
  end
  make_ready(lane)
end

-- A delivery that came to nothing: queued again after a backoff, or dead. "jitter" is between 0 and 1, from outside.
local function again(id, cause, dead, jitter)
  local h, d = unpack(call('HMGET', job_key(id), 'h', 'd'))
  d = tonumber(d)
  if d >= H[h].d then
    count('dead', 1)
    finish(id, 'dead', dead)
    answers[#answers + 1] = {'queue.dead', id, cause}
    return
  end
  local backoff = 0
  if cause ~= 'executor_lost' then
    backoff = math.floor(math.min(R.rm, R.rb * 2 ^ math.min(d - 1, 20)) * jitter)
  end
  requeue(id, h, now + backoff)
  answers[#answers + 1] = {'queue.redelivered', id, cause}
end

-- The lease's executor is lost: its running job counts as delivered, and runs of this lane are short now.
local function lose_lease(n, dead)
  local lane, _, jobs = remove_lease(n)
  if not lane then return end
  call('HDEL', lane_key(lane), 'mk')
  call('HSET', lane_key(lane), 'ca', 1)
  if jobs[1] and call('HGET', job_key(jobs[1]), 's') == 'running' then again(jobs[1], 'executor_lost', dead, 0) end
  make_ready(lane)
end

-- Tells a lease's consumer to stop or leave out a job.
local function revoke(n, id)
  local consumer = call('HGET', P .. 'lease:' .. n, 'c')
  if consumer then
    call('RPUSH', P .. 'revoked:' .. consumer, n .. ' ' .. id)
    local group = call('HGET', P .. 'con:' .. consumer, 'g')
    if group then ring(tonumber(group)) end
  end
end

-- Leases that ran out, records whose time is up, maps that nobody met again. Bounded, so that no call is long.
local function sweep(dead)
  for _, n in ipairs(call('ZRANGE', P .. 'leases', '-inf', int(now), 'BYSCORE', 'LIMIT', 0, 64)) do lose_lease(n, dead) end
  for _, id in ipairs(call('ZRANGE', P .. 'cons', '-inf', int(now), 'BYSCORE', 'LIMIT', 0, 16)) do
    call('DEL', P .. 'con:' .. id, P .. 'revoked:' .. id)
    call('ZREM', P .. 'cons', id)
  end
  for _, name in ipairs(call('ZRANGE', P .. 'mx', '-inf', int(now), 'BYSCORE', 'LIMIT', 0, 64)) do map_free(name) end
  drop_records(64)
end

-- More is due than one sweep takes.
local function is_due()
  for _, set in ipairs({'leases', 'mx', 'kept:0', 'kept:1'}) do
    if call('ZCOUNT', P .. set, '-inf', int(now)) > 0 then return true end
  end
  return false
end
