-- What all scripts share: time, names, and the broker's moves. Before it stand H and R, made from the configuration.
--
-- KEYS[1]  the prefix of every key, with the deployment's hash tag in it: "{cofferdam}:"
-- ARGV[1]  JSON: what the script itself wants, and "now" us in place of the server's time (tests)
-- ARGV[2…] bytes that are not text, named from ARGV[1] by their index
-- H        the handlers by name: {g: group, d: max deliveries, o: ordered, p: parks, c: concurrency}
-- R        the rules (see rules.rs)
--
-- Keys, after the prefix:
--   job:ID      hash   env(elope), pl (payload, until it has succeeded), x (signature of "executor lost"), h, l(ane; '' for an unordered job, which is a lane of
--                      its own), s(tatus), d(eliveries), f(ence), nb, st(arted), fi(nished), r(esult), ls (its lease or ''),
--                      ct + cd (last commit's token and delivery), pb (payload bytes), ow(ner), in(stances: 16 characters each,
--                      a space between), aw(aited),
--                      ik + fp (idempotency), tr(ace), kc + km (class and member as a kept record), kb (its bytes, where
--                      they count), rc (the call that retried it);
--                      of an unordered job also rs + rm as of a lane, and of its lease lt, lc, lx (token, consumer, end)
--   q:LANE      list   an ordered lane's jobs in submission order
--   lane:LANE   hash   of an ordered lane: h, ls (live lease or ''), v(ersion), mk (who knows the state), pk (parked),
--                      ca(utious), rs + rm (place in the ready set: score and member)
--   ready:H     zset   lanes that can be claimed from that time on, us; member = number, ":", lane
--   lease:N     hash   of an ordered lane: t(oken), c(onsumer), l(ane), h, run (its jobs' ids, 32 characters each), x (end)
--   leases      zset   "N consumer handler job" -> end; the job's id only of an unordered one
--   node:ID     hash   of a process: g(roup, of an executor), room (1 or 0), seen, swept (when), call + claims (its last step
--                      that claimed, and what), rv (something is revoked), rc (see "broken"), and what it tells of itself;
--                      nodes zset -> end, unless renewed; revoked:ID list for an executor
--   m:MAP       hash   entries; mx zset MAP -> end; mb hash MAP -> bytes
--   idem:…      string job of an idempotency key
--   kept:0, 1   zset   finished records (number of the end, ":", job, and ":", idempotency scope) -> end of their time
--   quarantine:ID      a job that nobody of the deployment signed, for a week
--   all         zset   records -> number of submission
--   count       hash   figures; paused set; fence: the last number; ticked: when that was done
--   inbox:I     stream doorbells, several an entry; bell:G stream, wakes executors of a group
--
-- Every script checks all its conditions first and writes afterwards; "done" is its last word. Figures, members of sorted
-- sets and doorbells are written once a script, by "flush": a call costs as much as the command that it brings.

local P = KEYS[1]
local A = cjson.decode(ARGV[1])
local call = redis.call
local clock = call('TIME')
local now = A.now or clock[1] * 1000000 + clock[2]
local notices = {}

local function int(x) return string.format('%d', x) end
-- A number that stands in Redis. What is none, which only a stranger can have written, is 0: no script ends half-way.
local function num(text)
  local x = tonumber(text or '0')
  return x and x >= 0 and x <= 2 ^ 53 and x or 0
end
local now_text = int(now)
local function digits(n) return string.format('%016d', n) end
local function job_key(id) return P .. 'job:' .. id end
local function is_free(lane) return not string.find(lane, ':', 1, true) end
-- The hash that holds a lane's books.
local function book(lane) return is_free(lane) and job_key(lane) or P .. 'lane:' .. lane end
-- What is known of a handler that no process of this configuration has.
local NOBODY = {d = 1, o = false, p = false, c = 0}
local function conf(h) return H[h] or NOBODY end
local function given(field) return field and field ~= '' end

local counts, adds, removes, bells = {}, {}, {}, {}
local function count(field, by) counts[field] = (counts[field] or 0) + by end
local function zadd(key, score, member)
  adds[key] = adds[key] or {}
  adds[key][member] = int(score)
end
local function zrem(key, member)
  if adds[key] then adds[key][member] = nil end
  local list = removes[key] or {}
  removes[key], list[#list + 1] = list, member
end
local function flush()
  for key, list in pairs(removes) do call('ZREM', P .. key, unpack(list)) end
  for key, scores in pairs(adds) do
    local list = {}
    for member, score in pairs(scores) do list[#list + 1], list[#list + 2] = score, member end
    if #list > 0 then call('ZADD', P .. key, unpack(list)) end
  end
  for inbox, entries in pairs(bells) do
    for _, entry in ipairs(entries) do call('XADD', inbox, 'MAXLEN', '~', R.doorbells, '*', unpack(entry)) end
  end
  adds, removes, bells = {}, {}, {}
end

-- "rc" connections of this process broke since it last said so. True if they are counted now, which is once, however often
-- the call is repeated: "last" is the last call that they were counted in.
local function broken(last)
  if A.rc == 0 or last == A.call then return false end
  count('reconnects', A.rc)
  return true
end

-- What others should know: an event of a job, its cause, its trace.
local function note(name, id, cause, trace) notices[#notices + 1] = {name, id, cause, trace or ''} end

-- Durations in the buckets of ports::Histogram.
local BOUNDS = {100, 500, 1000, 5000, 10000, 50000, 100000, 500000, 1000000, 5000000, 10000000, 60000000, 300000000}
local function observe(names, micros)
  local bucket = 0
  while bucket < #BOUNDS and micros > BOUNDS[bucket + 1] do bucket = bucket + 1 end
  count(names .. bucket, 1)
  count(names .. 'sum', math.max(0, micros))
end
-- The names of a handler's figures, made once a script.
local figures = {}
local function of(h)
  local names = figures[h]
  if not names then
    names = {queued = 'queued:' .. h, running = 'running:' .. h, submitted = 'submitted:' .. h, finished = 'finished:' .. h .. ':',
      wait = 'wait:' .. h .. ':', job = 'job:' .. h .. ':', lanes = 'lanes:' .. h}
    figures[h] = names
  end
  return names
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
  local bytes = lives and num(call('HGET', P .. 'mb', name)) or 0
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

-- Numbers that grow with every use and never repeat, whatever the clock does: fences, leases, places in an order. Written
-- with 16 digits, their order is that of their texts too.
local number
local function next_number()
  number = math.max(number or num(call('GET', P .. 'fence')), now - 1) + 1
  return number
end

-- A job's books as a table.
local FIELDS = {'h', 'l', 's', 'd', 'st', 'pb', 'in', 'nb', 'aw', 'tr', 'x', 'ls', 'f', 'rm', 'ct', 'cd', 'ik', 'lt', 'lc', 'lx'}
local NUMBERS = {'d', 'st', 'pb', 'nb', 'lx'}
local function read_job(id)
  local values, job = call('HMGET', job_key(id), unpack(FIELDS)), {}
  if not values[1] then return nil end
  for i, field in ipairs(FIELDS) do job[field] = values[i] end
  for _, field in ipairs(NUMBERS) do job[field] = num(job[field]) end
  return job
end

-- Enters a lane into its handler's ready set; "head" is its first job's not-before. The fields that its books take.
local function enter_ready(h, lane, head)
  local score, member = math.max(head, now), digits(next_number()) .. ':' .. lane
  zadd('ready:' .. h, score, member)
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
      zrem('ready:' .. h, member)
      call('HSET', key, 'rm', '')
    end
    if not free and not given(lease) and call('EXISTS', P .. 'q:' .. lane, P .. 'm:' .. state_map(lane)) == 0 then
      call('DEL', key)
      count(of(h).lanes, -1)
    end
    return
  end
  nb = num(free and nb or call('HGET', job_key(head), 'nb'))
  if given(member) then
    score = num(score)
    if score >= nb and (score <= now or score == nb) then return end
    zrem('ready:' .. h, member)
  end
  score, member = enter_ready(h, lane, nb)
  call('HSET', key, 'rs', score, 'rm', member)
end

-- Enters a queued job at the tail of its lane.
local function enqueue(id, h, l, bytes)
  count('queued', 1)
  count(of(h).queued, 1)
  count('bytes', bytes)
  if l == '' then return end
  if call('HSETNX', P .. 'lane:' .. l, 'h', h) == 1 then count(of(h).lanes, 1) end
  call('RPUSH', P .. 'q:' .. l, id)
end

-- job: {id, h, lane: '' if unordered, ow, in, aw, tr, nb: us from now, env, pl, x: indices, pb, ik, fp}
local function accept(job)
  local nb, key, score, member = now + job.nb, job_key(job.id), '', ''
  if job.lane == '' then score, member = enter_ready(job.h, job.id, nb) end
  call('HSET', key, 'env', ARGV[job.env], 'pl', ARGV[job.pl], 'x', ARGV[job.x], 'h', job.h, 'l', job.lane, 's', 'queued', 'd', '0',
    'nb', int(nb), 'pb', int(job.pb), 'ow', job.ow, 'in', job['in'], 'aw', job.aw, 'tr', job.tr, 'ls', '', 'rs', score, 'rm', member)
  if job.ik then
    call('HSET', key, 'ik', job.ik, 'fp', job.fp)
    call('SET', P .. 'idem:' .. job.ik, job.id)
  end
  zadd('all', next_number(), job.id)
  count(of(job.h).submitted, 1)
  enqueue(job.id, job.h, job.lane, job.pb)
  if job.lane ~= '' then make_ready(job.lane) end
end

-- The fields of a job whose delivery starts, for its hash.
local function started(h, deliveries, not_before)
  local names = of(h)
  count('queued', -1)
  count(names.queued, -1)
  count(names.running, 1)
  if deliveries == 0 then observe(names.wait, now - not_before) else count('redelivered', 1) end
  return 's', 'running', 'st', now_text, 'd', int(deliveries + 1)
end

-- A running job is queued again; it never left its lane.
local function requeue(id, h, not_before, deliveries)
  call('HSET', job_key(id), 's', 'queued', 'nb', int(not_before), 'ls', '', 'd', int(deliveries))
  count(of(h).running, -1)
  count(of(h).queued, 1)
  count('queued', 1)
end

-- Finished records, by their time to live, and where that is asked for within a number and a size, oldest first.
local function forget(id)
  local class, member, bytes = unpack(call('HMGET', job_key(id), 'kc', 'km', 'kb'))
  if class then
    zrem('kept:' .. class, member)
    call('HDEL', job_key(id), 'kc', 'km', 'kb')
    count('keptn', -1)
    count('keptb', -num(bytes))
  end
end
local function drop(class, members)
  local keys, ids = {}, {}
  for i, member in ipairs(members) do
    ids[i] = string.sub(member, 18, 49)
    keys[#keys + 1] = job_key(ids[i])
    if #member > 49 then keys[#keys + 1] = P .. 'idem:' .. string.sub(member, 51) end
  end
  call('DEL', unpack(keys))
  call('ZREM', P .. 'all', unpack(ids))
  call('ZREM', P .. 'kept:' .. class, unpack(members))
end
local function drop_expired(most)
  for class = 0, 1 do
    local members = call('ZRANGE', P .. 'kept:' .. class, '-inf', int(now), 'BYSCORE', 'LIMIT', 0, most)
    if #members > 0 then
      if R.limited then
        for _, member in ipairs(members) do
          count('keptb', -num(call('HGET', job_key(string.sub(member, 18, 49)), 'kb')))
        end
      end
      count('keptn', -#members)
      drop(class, members)
    end
  end
end
local function drop_too_many(most)
  local kept, bytes = unpack(call('HMGET', P .. 'count', 'keptn', 'keptb'))
  kept, bytes = num(kept) + (counts.keptn or 0), num(bytes) + (counts.keptb or 0)
  for _ = 1, most do
    if kept <= 1 or (kept <= R.keepn and bytes <= R.keepb) then return end
    local oldest, of
    for class = 0, 1 do
      local first = call('ZRANGE', P .. 'kept:' .. class, '-inf', '+inf', 'BYSCORE', 'LIMIT', 0, 1)[1]
      if first and (not oldest or first < oldest) then oldest, of = first, class end
    end
    if not oldest then return end
    local size = num(call('HGET', job_key(string.sub(oldest, 18, 49)), 'kb'))
    kept, bytes = kept - 1, bytes - size
    count('keptn', -1)
    count('keptb', -size)
    drop(of, {oldest})
  end
end
local has_kept = false
-- The fields of a record that is kept from now on, for its hash.
local function kept(id, job, s, result)
  local class = job.aw == '1' and '1' or '0'
  local member = digits(next_number()) .. ':' .. id .. (job.ik and ':' .. job.ik or '')
  zadd('kept:' .. class, now + (class == '1' and R.attl or R.ttl), member)
  count('keptn', 1)
  has_kept = true
  if not R.limited then return 'kc', class, 'km', member end
  local bytes = 512 + #result + (s == 'succeeded' and 0 or job.pb)
  count('keptb', bytes)
  return 'kc', class, 'km', member, 'kb', int(bytes)
end

-- One more instance hears of a job's end.
local function watch(id, instances, instance)
  if not string.find(instances, instance, 1, true) then
    call('HSET', job_key(id), 'in', instances .. ' ' .. instance)
  end
end

-- Doorbells go to instances that listen. A result too large for a stream is read from the record.
local inboxes = {}
local function inbox_of(instance)
  local inbox = inboxes[instance]
  if inbox == nil then
    inbox = P .. 'inbox:' .. instance
    inbox = call('EXISTS', inbox) == 1 and inbox
    inboxes[instance] = inbox
  end
  return inbox
end
local function ring_inbox(inbox, id, status, result)
  local entries = bells[inbox] or {{}}
  bells[inbox] = entries
  local entry = entries[#entries]
  if #entry >= 6 * R.bells then
    entry = {}
    entries[#entries + 1] = entry
  end
  local at = #entry
  entry[at + 1], entry[at + 2], entry[at + 3], entry[at + 4], entry[at + 5] = 'j', id, 's', status, 'r'
  entry[at + 6] = #result <= R.small and result or ''
end
local function doorbell(instances, id, status, result)
  for at = 1, #instances, 17 do
    local inbox = inbox_of(string.sub(instances, at, at + 15))
    if inbox then ring_inbox(inbox, id, status, result) end
  end
end

-- Ends a job's life: out of its lane, into the records, the doorbell rung. The caller looks after its lease and calls
-- make_ready. "token" and "delivery" are those of the commit that ends it, or ''.
local function finish(id, job, status, result, token, delivery)
  local h, names, key = job.h, of(job.h), job_key(id)
  if job.s == 'running' then
    count(names.running, -1)
    observe(names.job, now - job.st)
  else
    count(names.queued, -1)
    count('queued', -1)
  end
  count('bytes', -job.pb)
  count(names.finished .. status, 1)
  local parks = status == 'dead' and conf(h).p and job.l ~= ''
  if parks then call('HSET', key, 's', status, 'fi', now_text, 'r', result, 'ls', '', 'ct', token, 'cd', delivery)
  else
    call('HSET', key, 's', status, 'fi', now_text, 'r', result, 'ls', '', 'ct', token, 'cd', delivery, kept(id, job, status, result))
    -- Only then it is never needed again.
    if status == 'succeeded' then call('HDEL', key, 'pl') end
  end
  doorbell(job['in'], id, status, result)
  if parks then call('HSET', P .. 'lane:' .. job.l, 'pk', 1)
  elseif job.l ~= '' then call('LREM', P .. 'q:' .. job.l, 1, id)
  elseif given(job.rm) and job.s == 'queued' then zrem('ready:' .. h, job.rm) end
end

-- A lease; of an unordered job "id" is given, and what is known of it may be.
local function read_lease(n, id, job)
  if given(id) then
    job = job or read_job(id)
    if not job or job.ls ~= n then return nil end
    return {n = n, id = id, token = job.lt, consumer = job.lc, lane = id, h = job.h, run = id, ends = job.lx, job = job}
  end
  local token, consumer, lane, h, run, ends = unpack(call('HMGET', P .. 'lease:' .. n, 't', 'c', 'l', 'h', 'run', 'x'))
  if not lane then return nil end
  return {n = n, id = '', token = token, consumer = consumer, lane = lane, h = h, run = run, ends = num(ends)}
end
-- The lease that a job is in.
local function lease_of(id, job)
  if not given(job.ls) then return nil end
  return read_lease(job.ls, job.l == '' and id or '', job)
end
local function member_of(lease) return lease.n .. ' ' .. lease.consumer .. ' ' .. lease.h .. ' ' .. lease.id end
local function renew(lease)
  local ends = int(now + R.vis)
  zadd('leases', ends, member_of(lease))
  if lease.id ~= '' then call('HSET', job_key(lease.id), 'lx', ends) else call('HSET', P .. 'lease:' .. lease.n, 'x', ends) end
end
local function first_of(run) return #run > 0 and string.sub(run, 1, 32) end
local function each(run)
  local at = -31
  return function()
    at = at + 32
    if at <= #run then return string.sub(run, at, at + 31) end
  end
end

-- Takes a lease out of the books; of an unordered job that is done with its own next change.
local function remove_lease(lease)
  zrem('leases', member_of(lease))
  if lease.id ~= '' then return end
  call('DEL', P .. 'lease:' .. lease.n)
  call('HSET', P .. 'lane:' .. lease.lane, 'ls', '')
  for id in each(lease.run) do call('HSET', job_key(id), 'ls', '') end
end

-- Ends a lease before its last commit, whatever its running job came to: that has been told before, or it is queued again,
-- uncounted. Nobody knows the lane's state now.
local function end_lease(lease)
  remove_lease(lease)
  if lease.id == '' then call('HDEL', P .. 'lane:' .. lease.lane, 'mk') end
  local id = first_of(lease.run)
  local job = id and read_job(id)
  if job and job.s == 'running' then requeue(id, job.h, now, job.d - 1) end
  make_ready(lease.lane)
end

-- A delivery that came to nothing: queued again after a backoff, or dead. "jitter" is between 0 and 1, from outside.
local function again(id, job, cause, dead, jitter, token, delivery)
  if job.d >= conf(job.h).d then
    count('dead', 1)
    finish(id, job, 'dead', dead, token, delivery)
    note('queue.dead', id, cause, job.tr)
    return
  end
  local backoff = 0
  if cause ~= 'executor_lost' then backoff = math.floor(math.min(R.rm, R.rb * 2 ^ math.min(job.d - 1, 20)) * jitter) end
  requeue(id, job.h, now + backoff, job.d)
  call('HSET', job_key(id), 'ct', token, 'cd', delivery)
  note('queue.redelivered', id, cause, job.tr)
end

-- The lease's executor is lost: its running job counts as delivered, and runs of this lane are short now.
local function lose_lease(lease)
  remove_lease(lease)
  if lease.id == '' then
    call('HDEL', P .. 'lane:' .. lease.lane, 'mk')
    call('HSET', P .. 'lane:' .. lease.lane, 'ca', 1)
  end
  local id = first_of(lease.run)
  local job = id and read_job(id)
  if job and job.s == 'running' then again(id, job, 'executor_lost', R.lost .. job.x, 0, '', '') end
  make_ready(lease.lane)
end

-- "work" for each of these members of the set "leases" whose lease is there.
local function each_lease(members, work)
  for _, member in ipairs(members) do
    local n, consumer, id = string.match(member, '^(%S+) (%S+) %S+ (%S*)$')
    local lease = n and read_lease(n, id)
    if lease and lease.consumer == consumer then work(lease) else zrem('leases', member) end
  end
end

-- What is in a job's place can be looked at: a hash, with an envelope of a job's size. Whoever can write here may have put
-- anything there.
local function is_sound(id)
  local length = redis.pcall('HSTRLEN', job_key(id), 'env')
  return type(length) == 'number' and length > 0 and length <= R.envelope and call('HSTRLEN', job_key(id), 'pl') <= R.mp
end
-- Puts a job aside that nobody of the deployment signed; nobody runs it, nobody waits for it. It is in no lease.
local function quarantine(id, h, lane)
  local key = job_key(id)
  local values = redis.pcall('HMGET', key, 'pb', 'rm')
  count('queued', -1)
  count(of(h).queued, -1)
  count('bytes', -num(values[1]))
  count('forged', 1)
  note('queue.forged', id, 'forged')
  if not is_free(lane) then call('LREM', P .. 'q:' .. lane, 1, id)
  elseif given(values[2]) then zrem('ready:' .. h, values[2]) end
  zrem('all', id)
  if call('EXISTS', key) == 1 then
    call('RENAME', key, P .. 'quarantine:' .. id)
    call('PEXPIRE', P .. 'quarantine:' .. id, R.quarantine)
  end
end

-- Tells a lease's consumer to stop or leave out a job.
local function revoke(lease, id)
  local node = P .. 'node:' .. lease.consumer
  call('RPUSH', P .. 'revoked:' .. lease.consumer, lease.n .. ' ' .. id)
  local group = call('HGET', node, 'g')
  if group then
    call('HSET', node, 'rv', 1)
    ring(tonumber(group))
  end
end

-- Leases that ran out, records whose time is up, maps that nobody met again. Bounded, so that no call is long.
local function sweep()
  flush()
  each_lease(call('ZRANGE', P .. 'leases', '-inf', int(now), 'BYSCORE', 'LIMIT', 0, 64), function(lease)
    count('expired', 1)
    lose_lease(lease)
  end)
  for _, id in ipairs(call('ZRANGE', P .. 'nodes', '-inf', int(now), 'BYSCORE', 'LIMIT', 0, 16)) do
    call('DEL', P .. 'node:' .. id, P .. 'revoked:' .. id)
    call('ZREM', P .. 'nodes', id)
  end
  for _, name in ipairs(call('ZRANGE', P .. 'mx', '-inf', int(now), 'BYSCORE', 'LIMIT', 0, 64)) do map_free(name) end
  drop_expired(512)
end

-- More is due than one sweep takes.
local function is_due()
  for _, set in ipairs({'leases', 'mx', 'kept:0', 'kept:1'}) do
    if call('ZCOUNT', P .. set, '-inf', int(now)) > 0 then return true end
  end
  return false
end

local function done(answer)
  flush()
  if has_kept and R.limited then drop_too_many(64) end
  if number then call('SET', P .. 'fence', int(number)) end
  for field, by in pairs(counts) do
    if by ~= 0 then call('HINCRBY', P .. 'count', field, int(by)) end
  end
  return answer
end
