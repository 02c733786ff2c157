-- What all scripts share: time, names, and the broker's moves. Before it stand H and R, made from the configuration.
--
-- KEYS[1]  the prefix of every key, with the deployment's hash tag in it: "{cofferdam}:"
-- ARGV[1]  JSON: what the script itself wants, and "now" us in place of the server's time (tests)
-- ARGV[2…] bytes that are not text, named from ARGV[1] by their index
-- H        the handlers by name: {g: group, d: max deliveries, o: ordered, p: parks, c: concurrency}
-- R        the rules (see rules.rs)
--
-- Keys, after the prefix:
--   job:ID      hash   env(elope), x (signature of "executor lost"), h, l(ane; '' for an unordered job, which is a lane of
--                      its own), s(tatus), d(eliveries), f(ence), nb, sub, st(arted), fi(nished), r(esult), ls (its lease
--                      or ''), ct + cd (last commit's token and delivery), pb (payload bytes), ow(ner), in(stances),
--                      aw(aited), ik + fp (idempotency), tr(ace), kc + ko + kb (class, place and bytes as a kept record),
--                      rc (the call that retried it); rs + rm of an unordered job as of a lane
--   q:LANE      list   an ordered lane's jobs in submission order
--   lane:LANE   hash   of an ordered lane: h, ls (live lease or ''), v(ersion), mk (who knows the state), pk (parked),
--                      ca(utious), rs + rm (place in the ready set: score and member)
--   ready:H     zset   lanes that can be claimed from that time on, us; member = place, ":", lane
--   lease:N     hash   t(oken), c(onsumer), l(ane or job), h, run (its jobs' ids, 32 characters each), x (its end)
--   leases      zset   N -> end; held:ID zset of a consumer's leases
--   node:ID     hash   of a process: g(roup, of an executor), room, call + claims (its last step and what that claimed),
--                      and what it tells of itself; nodes zset -> end, unless renewed; revoked:ID list for an executor
--   m:MAP       hash   entries; mx zset MAP -> end; mb hash MAP -> bytes
--   idem:…      string job of an idempotency key
--   kept:0, 1   zset   finished records (place of the end, ":", job) -> end of their time, by class
--   quarantine:ID      a job that nobody of the deployment signed, for a week
--   all         zset   records -> place of submission
--   count       hash   figures; paused set; fence, place: counters
--   inbox:I     stream doorbells; bell:G stream, wakes executors of a group
--
-- Every script checks all its conditions first and writes afterwards; "done" is its last word.

local P = KEYS[1]
local A = cjson.decode(ARGV[1])
local call = redis.call
local clock = call('TIME')
local now = A.now or clock[1] * 1000000 + clock[2]
local notices = {}

local function int(x) return string.format('%.0f', x) end
local function job_key(id) return P .. 'job:' .. id end
local function is_free(lane) return not string.find(lane, ':', 1, true) end
-- The hash that holds a lane's books.
local function book(lane) return is_free(lane) and job_key(lane) or P .. 'lane:' .. lane end
-- What is known of a handler that no process of this configuration has.
local NOBODY = {d = 1, o = false, p = false, c = 0}
local function conf(h) return H[h] or NOBODY end
local function given(field) return field and field ~= '' end

-- Figures change once a script, whatever it does.
local counts = {}
local function count(field, by) counts[field] = (counts[field] or 0) + by end
local function figure(field) return tonumber(call('HGET', P .. 'count', field) or '0') + (counts[field] or 0) end

-- What others should know: an event of a job, its cause, its trace.
local function note(name, id, cause, trace) notices[#notices + 1] = {name, id, cause, trace or ''} end

-- Durations in the buckets of ports::Histogram.
local BOUNDS = {100, 500, 1000, 5000, 10000, 50000, 100000, 500000, 1000000, 5000000, 10000000, 60000000, 300000000}
local function observe(name, h, micros)
  local bucket = #BOUNDS
  for i, bound in ipairs(BOUNDS) do
    if micros <= bound then bucket = i - 1; break end
  end
  count(name .. ':' .. h .. ':' .. bucket, 1)
  count(name .. ':' .. h .. ':sum', math.max(0, micros))
end

-- A group's executors look again; once a script.
local rung = {}
local function ring(group)
  if not group or rung[group] then return end
  rung[group] = true
  call('XADD', P .. 'bell:' .. int(group), 'MAXLEN', '~', 64, '*', 'w', '1')
end

local paused
local function is_paused(h)
  if not paused then
    paused = {}
    for _, name in ipairs(call('SMEMBERS', P .. 'paused')) do paused[name] = true end
  end
  return paused[h]
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
  local entries = call('HGETALL', P .. 'm:' .. name)
  if #entries == 0 then return entries end
  if not map_lives(name) then map_free(name); return {} end
  if ttl and call('ZSCORE', P .. 'mx', name) then call('ZADD', P .. 'mx', int(now + ttl), name) end
  return entries
end
-- Changes: a list of {index of the key in ARGV, index of the value, or 0 to remove}.
local function map_bytes_after(name, changes)
  local lives = map_lives(name)
  local bytes = lives and tonumber(call('HGET', P .. 'mb', name) or '0') or 0
  for _, change in ipairs(changes) do
    local key = ARGV[change[1]]
    local old = lives and call('HSTRLEN', P .. 'm:' .. name, key) or 0
    if old > 0 then bytes = bytes - #key - old + R.tag end
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

-- Numbers that grow with every use: a script takes a block of them, the rest of which nobody uses. Written with 16
-- digits, so that their order is that of their texts too.
local place_at, place_end = 0, 0
local function next_place()
  if place_at == place_end then
    place_end = call('INCRBY', P .. 'place', 4096)
    place_at = place_end - 4096
  end
  place_at = place_at + 1
  return place_at
end
local function digits(n) return string.format('%016.0f', n) end
-- Fences never repeat, whatever the clock does.
local function take_fences(n)
  local first = math.max(tonumber(call('GET', P .. 'fence') or '0') + 1, now)
  call('SET', P .. 'fence', int(first + n - 1))
  return first
end

-- A job's books as a table.
local FIELDS = {'h', 'l', 's', 'd', 'st', 'pb', 'in', 'nb', 'aw', 'tr', 'x', 'ls', 'f', 'rm', 'ct', 'cd', 'ow'}
local function read_job(id)
  local values, job = call('HMGET', job_key(id), unpack(FIELDS)), {}
  if not values[1] then return nil end
  for i, field in ipairs(FIELDS) do job[field] = values[i] end
  job.lane = job.l == '' and id or job.l
  job.d = tonumber(job.d)
  return job
end

-- Enters a lane into its handler's ready set; "head" is its first job's not-before. The fields that its books take.
local function enter_ready(h, lane, head)
  local score = math.max(head, now)
  local member = digits(next_place()) .. ':' .. lane
  call('ZADD', P .. 'ready:' .. h, int(score), member)
  if not is_paused(h) then ring(conf(h).g) end
  return int(score), member
end

-- Puts the lane into its handler's ready set if it belongs there, takes it out if not, and removes one with neither
-- jobs nor state.
local function make_ready(lane)
  local key, free = book(lane), is_free(lane)
  local h, lease, parked, score, member, s, nb = unpack(call('HMGET', key, 'h', 'ls', 'pk', 'rs', 'rm', 's', 'nb'))
  if not h then return end
  local head = not given(lease) and not parked and (free and s == 'queued' or not free and call('LINDEX', P .. 'q:' .. lane, 0))
  if not head then
    if given(member) then
      call('ZREM', P .. 'ready:' .. h, member)
      call('HSET', key, 'rm', '')
    end
    if not free and not given(lease) and call('EXISTS', P .. 'q:' .. lane, P .. 'm:' .. state_map(lane)) == 0 then
      call('DEL', key)
      count('lanes:' .. h, -1)
    end
    return
  end
  nb = tonumber(free and nb or call('HGET', job_key(head), 'nb'))
  if given(member) then
    score = tonumber(score)
    if score >= nb and (score <= now or score == nb) then return end
    call('ZREM', P .. 'ready:' .. h, member)
  end
  score, member = enter_ready(h, lane, nb)
  call('HSET', key, 'rs', score, 'rm', member)
end

-- Enters a queued job at the tail of its lane.
local function enqueue(id, h, l, bytes)
  count('queued', 1)
  count('queued:' .. h, 1)
  count('bytes', bytes)
  if l == '' then count('lanes:' .. h, 1)
  else
    if call('HSETNX', P .. 'lane:' .. l, 'h', h) == 1 then count('lanes:' .. h, 1) end
    call('RPUSH', P .. 'q:' .. l, id)
  end
end

-- job: {id, h, lane: '' if unordered, ow, in, aw, tr, nb: us from now, env, x: indices, pb, ik, fp}
local function accept(job)
  local nb, place = now + job.nb, next_place()
  local fields = {'env', ARGV[job.env], 'x', ARGV[job.x], 'h', job.h, 'l', job.lane, 's', 'queued', 'd', 0, 'f', 0,
    'nb', int(nb), 'sub', int(now), 'pb', job.pb, 'ow', job.ow, 'in', job['in'], 'aw', job.aw, 'tr', job.tr, 'ls', ''}
  local function add(...) for _, value in ipairs({...}) do fields[#fields + 1] = value end end
  if job.ik then
    add('ik', job.ik, 'fp', job.fp)
    call('SET', P .. 'idem:' .. job.ik, job.id)
  end
  if job.lane == '' then
    local score, member = enter_ready(job.h, job.id, nb)
    add('rs', score, 'rm', member)
  end
  call('HSET', job_key(job.id), unpack(fields))
  call('ZADD', P .. 'all', place, job.id)
  count('submitted:' .. job.h, 1)
  enqueue(job.id, job.h, job.lane, job.pb)
  if job.lane ~= '' then make_ready(job.lane) end
end

-- The fields of a job whose delivery starts, for its hash.
local function started(h, deliveries, not_before)
  count('queued', -1)
  count('queued:' .. h, -1)
  count('running:' .. h, 1)
  if deliveries == 0 then observe('wait', h, now - not_before) else count('redelivered', 1) end
  return 's', 'running', 'st', int(now), 'd', deliveries + 1
end

-- A running job is queued again; it never left its lane.
local function requeue(id, h, not_before, deliveries)
  call('HSET', job_key(id), 's', 'queued', 'nb', int(not_before), 'ls', '', 'd', deliveries)
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
local function drop_record(class, member)
  local id = string.sub(member, 18)
  local ik, bytes = unpack(call('HMGET', job_key(id), 'ik', 'kb'))
  call('ZREM', P .. 'kept:' .. class, member)
  count('keptn', -1)
  count('keptb', -tonumber(bytes or '0'))
  if ik then call('DEL', P .. 'idem:' .. ik) end
  call('DEL', job_key(id))
  call('ZREM', P .. 'all', id)
end
local function drop_records(most)
  local kept, bytes = figure('keptn'), figure('keptb')
  for _ = 1, most do
    local full = kept > 1 and (kept > R.keepn or bytes > R.keepb)
    local oldest, of
    for class = 0, 1 do
      local first = call('ZRANGE', P .. 'kept:' .. class, '-inf', full and '+inf' or int(now), 'BYSCORE', 'LIMIT', 0, 1)[1]
      if first and (not oldest or first < oldest) then oldest, of = first, class end
    end
    if not oldest then return end
    bytes = bytes - tonumber(call('HGET', job_key(string.sub(oldest, 18)), 'kb') or '0')
    kept = kept - 1
    drop_record(of, oldest)
  end
end
local has_kept = false
-- The fields of a record that is kept from now on, for its hash.
local function kept(id, aw, pb, s, result)
  local class = aw == '1' and 1 or 0
  local bytes = 512 + #result + (s == 'succeeded' and 0 or tonumber(pb))
  local place = digits(next_place())
  call('ZADD', P .. 'kept:' .. class, int(now + (class == 1 and R.attl or R.ttl)), place .. ':' .. id)
  count('keptn', 1)
  count('keptb', bytes)
  has_kept = true
  return 'kc', class, 'kb', bytes, 'ko', place
end

-- Doorbells go to instances that listen. A result too large for a stream is read from the record.
local listening = {}
local function doorbell(instances, id, status, result)
  for instance in string.gmatch(instances, '%S+') do
    local inbox = P .. 'inbox:' .. instance
    if listening[inbox] == nil then listening[inbox] = call('EXISTS', inbox) == 1 end
    if listening[inbox] then
      call('XADD', inbox, 'MAXLEN', '~', R.doorbells, '*', 'j', id, 's', status, 'r', #result <= R.small and result or '')
    end
  end
end

-- One more instance hears of a job's end.
local function watch(id, instances, instance)
  if not string.find(instances, instance, 1, true) then
    call('HSET', job_key(id), 'in', instances .. ' ' .. instance)
  end
end

-- Ends a job's life: out of its lane, into the records, the doorbell rung. The caller looks after its lease and calls
-- make_ready. "more": further fields for its hash.
local function finish(id, job, status, result, more)
  local h, fields = job.h, {'s', status, 'fi', int(now), 'r', result, 'ls', ''}
  if job.s == 'running' then
    count('running:' .. h, -1)
    observe('job', h, now - tonumber(job.st))
  else
    count('queued:' .. h, -1)
    count('queued', -1)
  end
  count('bytes', -tonumber(job.pb))
  count('finished:' .. h .. ':' .. status, 1)
  local parks = status == 'dead' and conf(h).p and job.l ~= ''
  local function add(...) for _, value in ipairs({...}) do fields[#fields + 1] = value end end
  if not parks then add(kept(id, job.aw, job.pb, status, result)) end
  if more then add(unpack(more)) end
  call('HSET', job_key(id), unpack(fields))
  doorbell(job['in'], id, status, result)
  if parks then call('HSET', P .. 'lane:' .. job.l, 'pk', 1)
  elseif job.l == '' then
    count('lanes:' .. h, -1)
    if given(job.rm) and job.s == 'queued' then call('ZREM', P .. 'ready:' .. h, job.rm) end
  else call('LREM', P .. 'q:' .. job.l, 1, id) end
end

local function read_lease(n)
  local token, consumer, lane, h, run, ends = unpack(call('HMGET', P .. 'lease:' .. n, 't', 'c', 'l', 'h', 'run', 'x'))
  if not lane then return nil end
  return {token = token, consumer = consumer, lane = lane, h = h, run = run, ends = tonumber(ends)}
end
local function first_of(run) return #run > 0 and string.sub(run, 1, 32) end
local function each(run)
  local at = -31
  return function()
    at = at + 32
    if at <= #run then return string.sub(run, at, at + 31) end
  end
end

-- Takes a lease out of the books.
local function remove_lease(n, lease)
  call('DEL', P .. 'lease:' .. n)
  call('ZREM', P .. 'leases', n)
  call('ZREM', P .. 'held:' .. lease.consumer, n)
  if not is_free(lease.lane) then
    call('HSET', P .. 'lane:' .. lease.lane, 'ls', '')
    for id in each(lease.run) do call('HSET', job_key(id), 'ls', '') end
  end
end

-- Ends a lease before its last commit, whatever its running job came to. Nobody knows the lane's state now.
local function end_lease(n, lease)
  lease = lease or read_lease(n)
  if not lease then return end
  remove_lease(n, lease)
  if not is_free(lease.lane) then call('HDEL', P .. 'lane:' .. lease.lane, 'mk') end
  local id = first_of(lease.run)
  local job = id and read_job(id)
  if job and job.s == 'running' then requeue(id, job.h, now, job.d - 1) end
  make_ready(lease.lane)
end

-- A delivery that came to nothing: queued again after a backoff, or dead. "jitter" is between 0 and 1, from outside.
local function again(id, job, cause, dead, jitter, more)
  if job.d >= conf(job.h).d then
    count('dead', 1)
    finish(id, job, 'dead', dead, more)
    note('queue.dead', id, cause, job.tr)
    return
  end
  local backoff = 0
  if cause ~= 'executor_lost' then backoff = math.floor(math.min(R.rm, R.rb * 2 ^ math.min(job.d - 1, 20)) * jitter) end
  requeue(id, job.h, now + backoff, job.d)
  if more then call('HSET', job_key(id), unpack(more)) end
  note('queue.redelivered', id, cause, job.tr)
end

-- The lease's executor is lost: its running job counts as delivered, and runs of this lane are short now.
local function lose_lease(n)
  local lease = read_lease(n)
  if not lease then
    call('ZREM', P .. 'leases', n)
    return
  end
  remove_lease(n, lease)
  if not is_free(lease.lane) then
    call('HDEL', P .. 'lane:' .. lease.lane, 'mk')
    call('HSET', P .. 'lane:' .. lease.lane, 'ca', 1)
  end
  local id = first_of(lease.run)
  local job = id and read_job(id)
  if job and job.s == 'running' then again(id, job, 'executor_lost', R.lost .. job.x, 0) end
  make_ready(lease.lane)
end

-- Tells a lease's consumer to stop or leave out a job.
local function revoke(n, lease, id)
  call('RPUSH', P .. 'revoked:' .. lease.consumer, n .. ' ' .. id)
  local group = call('HGET', P .. 'node:' .. lease.consumer, 'g')
  if group then ring(tonumber(group)) end
end

-- Leases that ran out, records whose time is up, maps that nobody met again. Bounded, so that no call is long.
local function sweep()
  for _, n in ipairs(call('ZRANGE', P .. 'leases', '-inf', int(now), 'BYSCORE', 'LIMIT', 0, 64)) do
    count('expired', 1)
    lose_lease(n)
  end
  for _, id in ipairs(call('ZRANGE', P .. 'nodes', '-inf', int(now), 'BYSCORE', 'LIMIT', 0, 16)) do
    call('DEL', P .. 'node:' .. id, P .. 'revoked:' .. id)
    call('ZREM', P .. 'nodes', id)
  end
  for _, name in ipairs(call('ZRANGE', P .. 'mx', '-inf', int(now), 'BYSCORE', 'LIMIT', 0, 64)) do map_free(name) end
  has_kept = true
end

-- More is due than one sweep takes.
local function is_due()
  for _, set in ipairs({'leases', 'mx', 'kept:0', 'kept:1'}) do
    if call('ZCOUNT', P .. set, '-inf', int(now)) > 0 then return true end
  end
  return false
end

local function done(answer)
  if has_kept then drop_records(64) end
  for field, by in pairs(counts) do
    if by ~= 0 then call('HINCRBY', P .. 'count', field, int(by)) end
  end
  return answer
end
