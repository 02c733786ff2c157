-- What all functions share: time, names, and the broker's moves. One library: it is defined once, and called often.
--
-- KEYS[1]  the prefix of every key, with the deployment's hash tag in it: "{cofferdam}:"
-- ARGV[1]  JSON: the configuration, the same in every call of a process: H and R
-- ARGV[2]  JSON: what the function itself wants, and "now" us in place of the server's time (tests)
-- ARGV[3…] bytes that are not text, named from ARGV[2] by their index
-- H        the handlers by name: {g: group, d: max deliveries, o: ordered, p: parks, c: concurrency, rb, rm: backoff's base and
--          most, us, fu: names of the handlers that its group may submit to, or false: all}
-- R        the rules (see server.rs)
--
-- Keys, after the prefix:
--   job:ID      hash   env(elope), pl (payload, empty once it has succeeded), h, l(ane; '' for an unordered job, which is
--                      a lane of its own), s(tatus), d(eliveries that count), dl (the number that its last start was told), lo + sl (how often its
--                      executor, and its process, were lost with it), by (its end is to be signed;
--                      its lane's place in the order afterwards), f(ence), to (timeout), nb, ws (since when it waits),
--                      st(arted), fi(nished), r(esult), ls (its lease or ''),
--                      ct + cd (last commit's lease and delivery), pb (payload bytes), fu (1: another job submitted it), ow(ner), in(stances: 16 characters each,
--                      a space between), aw(aited),
--                      pg (how far its last delivery was), ex (who had that), at (those before, a line each: started, ended, executor, what came of it),
--                      tr(ace), kc + km (class and member as a kept record), rc (the call that retried it);
--                      of an unordered job also rs + rm as of a lane, and of its lease lc, lx, ly (consumer, end, deadline)
--   q:LANE      list   an ordered lane's jobs in submission order
--   lane:LANE   hash   of an ordered lane: h, ls (live lease or ''), v(ersion), mk (who knows the state), pk (parked:
--                      by a dead head, or 'forged' if its state is not what was signed),
--                      sg (signature of its whole state), rs + rm (place in the ready set: score and member)
--   ready:H     zset   lanes that can be claimed from that time on, us; member = number, ":", lane
--   dying       zset   jobs whose executors were lost too often: a process signs their ends with its next call
--   parked:H    set    lanes that a dead head holds
--   forged:H    set    lanes whose states are not what was signed
--   waits:H     zset   queued jobs -> since when each could have run, but for what hinders it
--   lease:N     hash   of an ordered lane: c(onsumer), l(ane), h, run (its jobs' ids, 32 characters each), x (end, unless it is
--                      renewed), y (deadline of the job that runs)
--   leases      zset   "N consumer handler job" -> end; the job's id only of an unordered one
--   node:ID     hash   of a web process: host, pid, waiters, ex (its executors: "group:leases", a space between), call + claims
--                      (its last turn that claimed, and what), rv (something is revoked); nodes zset -> end, unless renewed;
--                      a consumer is NODE, ".", number of the executor; revoked:ID list of "number lease job"
--   idle:G      set    nodes with room for leases of this group
--   m:MAP       hash   entries; mx zset MAP -> end; mb hash MAP -> bytes
--   idem:…      string job of an idempotency key, and the fingerprint of its payload; idems zset … -> end of its time
--   kept:0 … 2  zset   finished records (number of the end, ":", job) -> end of their time: succeeded, the same and awaited, others
--   quarantine:ID      a job that nobody of the deployment signed, for a week
--   all         zset   records -> number of submission
--   count       hash   figures; fence: the last number; paused: names, each with a space at both ends; swept, ticked: when;
--                      waits: executors that are kept free for a job that runs alone, "consumer group lane;" each
--   owners      hash   OWNER: its callers' jobs that have not ended, OWNER:bytes: of their payloads; none without authentication
--   inbox:I     stream ends of jobs for an instance, several an entry; wake:G stream, wakes other processes for a group
--   key                made from the prefix and the secret: whoever has another secret sees it
--
-- Every call checks all its conditions first and writes afterwards; "done" is its last word. Figures, members of sorted
-- sets, ends and new unordered jobs are written once a call, by "flush": a call costs as much as the command that it brings.

-- While a library is loaded there are no globals; afterwards each costs a search.
local function globals()
  return redis.call, redis.pcall, redis.sha1hex, cjson, string, table, math, unpack, pairs, ipairs, next, tonumber, type
end
local call, pcall, sha1hex, cjson, string, table, math, unpack, pairs, ipairs, next, tonumber, type

-- Of a deployment inside another one (R.life, ms) every key has a life: "done" gives it to those that the call has named.
local plain, named
local function noting(...)
  local _, key = ...
  if key then named[key] = true end
  return plain(...)
end

-- What a call has to itself: "begin" makes all of it anew, whatever the call before came to.
local P, ARGV, A, H, R, now, now_text
-- Figures as they are, as they are to be, and by how much they change.
local known, sets, counts
-- By how much change what the owners have.
local owners
-- What "flush" writes.
local adds, new, removes, streams, jobs, has_added
-- What others should know: events; groups that have work, or are told something at once; the soonest of what is ready by
-- time alone, us from now.
local notices, rung, urgent, soonest
-- The last number, jobs that were accepted, whether a record was kept.
local number, accepted, has_kept
-- Groups of which executors of this process have room after it.
local has_room
-- What stood in the place of the figures was none, and is gone: see mend.lua.
local had_no_count
-- Streams by instance, or false; ends for callers of this process; its instances. Its leases that ran out.
local inboxes, ends, here, ran_out

local function int(x) return string.format('%d', x) end
-- With 16 digits the order of numbers, and of times, is that of their texts.
local function digits(n) return string.format('%016d', n) end
-- A number that stands in Redis. What is none, which only a stranger can have written, is 0: no script ends half-way.
local function num(text)
  local x = tonumber(text or '0')
  return x and x >= 0 and x <= 2 ^ 53 and x or 0
end
local function job_key(id) return P .. 'job:' .. id end
local function is_free(lane) return not string.find(lane, ':', 1, true) end
-- The hash that holds a lane's books.
local function book(lane) return is_free(lane) and job_key(lane) or P .. 'lane:' .. lane end
-- What is known of a handler that no process of this configuration has.
local NOBODY = {d = 1, o = false, p = false, c = 0, rb = 0, rm = 0}
local function conf(h) return H[h] or NOBODY end
local function given(field) return field and field ~= '' end

local function look_up(names)
  local values = call('HMGET', P .. 'count', unpack(names))
  for i, name in ipairs(names) do known[name] = values[i] or '0' end
end
local function count(field, by) counts[field] = (counts[field] or 0) + by end
local function figure(field) return num(known[field]) + (counts[field] or 0) end
local function write_figures()
  local unknown, list = {}, {}
  if number then sets.fence = int(number) end
  for field in pairs(counts) do
    if not known[field] then unknown[#unknown + 1] = field end
  end
  if #unknown > 0 then look_up(unknown) end
  for field, by in pairs(counts) do
    if by ~= 0 then sets[field] = int(math.max(0, num(known[field]) + by)) end
  end
  for field, value in pairs(sets) do list[#list + 1], list[#list + 2] = field, value end
  if #list > 0 then call('HSET', P .. 'count', unpack(list)) end
  for name, by in pairs(owners) do
    local has = by == 0 and 0 or num(call('HGET', P .. 'owners', name)) + by
    if has > 0 then call('HSET', P .. 'owners', name, int(has))
    elseif by ~= 0 then call('HDEL', P .. 'owners', name) end
  end
end

-- "score" is a text; "is_new": such a member is nowhere in that set.
local function zadd(key, score, member, is_new)
  if not adds[key] then adds[key], new[key] = {}, {} end
  adds[key][member], new[key][member] = score, is_new
end
local function zrem(key, member)
  if adds[key] then
    adds[key][member] = nil
    if new[key][member] then return end
  end
  local list = removes[key] or {}
  removes[key], list[#list + 1] = list, member
end
local function append(list, ...)
  local more, length = {...}, #list
  for i = 1, #more do list[length + i] = more[i] end
end
-- Sets fields of a job; those of one that this call has accepted are written with it.
local function set_job(id, ...)
  if jobs[id] then append(jobs[id], ...) else call('HSET', job_key(id), ...) end
end
local function flush()
  for id, fields in pairs(jobs) do call('HSET', job_key(id), unpack(fields)) end
  for key, list in pairs(removes) do call('ZREM', P .. key, unpack(list)) end
  for key, scores in pairs(adds) do
    local list, length = {}, 0
    for member, score in pairs(scores) do
      list[length + 1], list[length + 2] = score, member
      length = length + 2
    end
    if length > 0 then call('ZADD', P .. key, unpack(list)) end
    has_added[key] = true
  end
  for inbox, entries in pairs(streams) do
    for _, entry in ipairs(entries) do call('XADD', inbox, 'MAXLEN', '~', R.entries, '*', unpack(entry)) end
  end
  adds, new, removes, streams, jobs = {}, {}, {}, {}, {}
end

-- An event of a job and its cause; of the job its trace and handler, of its last delivery the number and how long it took, us.
-- "r" is the outcome that led to it, if it is an index in ARGV.
local function note(name, id, cause, job, r)
  job = job or {}
  notices[#notices + 1] = {name, id, cause, job.tr or '', job.h or '', int(job.dl or 0), int(math.max(0, now - (job.st or now))),
    type(r) == 'number' and r or 0}
end

-- The names of a handler's figures. Durations are counted in the buckets of ports::Histogram.
local BOUNDS = {100, 500, 1000, 5000, 10000, 50000, 100000, 500000, 1000000, 5000000, 10000000, 60000000, 300000000, 600000000}
local function names_of(h)
  local names = {wait = {sum = 'wait:' .. h .. ':sum'}, job = {sum = 'job:' .. h .. ':sum'}, finished = 'finished:' .. h .. ':'}
  for _, name in ipairs({'queued', 'running', 'submitted', 'lanes', 'parked', 'waits'}) do names[name] = name .. ':' .. h end
  for bucket = 0, #BOUNDS do
    for _, name in ipairs({'wait', 'job'}) do names[name][bucket] = name .. ':' .. h .. ':' .. bucket end
  end
  return names
end
local function of(h) return H[h] and H[h].names or names_of(h) end
local function observe(names, micros)
  local bucket = 0
  while bucket < #BOUNDS and micros > BOUNDS[bucket + 1] do bucket = bucket + 1 end
  count(names[bucket], 1)
  count(names.sum, math.max(0, micros))
end

-- Configurations by their texts, with what follows from each: names, and the figures that decide something in every call.
local configs, configs_known = {}, 0
local function configure(text)
  local config = cjson.decode(text)
  config.figures = {'fence', 'queued', 'live', 'bytes', 'follow_ups', 'their_bytes', 'paused', 'swept', 'ticked', 'suspects',
    'waits', 'dying'}
  for h, handler in pairs(config.H) do
    if handler.fu then
      local may = {}
      for _, name in ipairs(handler.fu) do may[name] = true end
      handler.fu = may
    end
    handler.names = names_of(h)
    config.figures[#config.figures + 1] = handler.names.queued
  end
  if configs_known == 16 then configs, configs_known = {}, 0 end
  configs[text], configs_known = config, configs_known + 1
  return config
end
local function begin(keys, argv, mends)
  if not call then call, pcall, sha1hex, cjson, string, table, math, unpack, pairs, ipairs, next, tonumber, type = globals() end
  local config = configs[argv[1]] or configure(argv[1])
  P, ARGV, A, H, R = keys[1], argv, cjson.decode(argv[2]), config.H, config.R
  plain, named = plain or call, {}
  call = R.life and noting or plain
  now = A.now
  if not now then
    local clock = call('TIME')
    now = clock[1] * 1000000 + clock[2]
  end
  now_text = digits(now)
  known, sets, counts, owners = {}, {}, {}, {}
  adds, new, removes, streams, jobs, has_added = {}, {}, {}, {}, {}, {}
  notices, rung, urgent, soonest = {}, {}, {}, nil
  number, accepted, has_kept = nil, {}, false
  inboxes, ends, here, ran_out, has_room = {}, {}, {}, {}, {}
  had_no_count = mends and type(pcall('HLEN', P .. 'count')) ~= 'number'
  if had_no_count then
    call('DEL', P .. 'count')
    count('forged:state', 1)
  end
  look_up(config.figures)
end

-- There is work for a group, which nobody of this call takes; or its executors are told something. Other processes look.
local function ring(group) if group then rung[group] = true end end
local function is_due_in(micros) soonest = math.min(soonest or micros, micros) end

local function is_paused(h) return string.find(known.paused, ' ' .. h .. ' ', 1, true) end

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
-- Changes: a list of {index of the key in ARGV, index of the value, or 0 to remove}; each value has a tag of so many bytes.
local function map_bytes_after(name, changes, tag)
  local lives = map_lives(name)
  local bytes = lives and num(call('HGET', P .. 'mb', name)) or 0
  for _, change in ipairs(changes) do
    local key = ARGV[change[1]]
    local old = lives and call('HSTRLEN', P .. 'm:' .. name, key) or 0
    if old > 0 then bytes = bytes - #key - old + tag end
    if change[2] > 0 then bytes = bytes + #key + #ARGV[change[2]] - tag end
  end
  return bytes
end
local function map_apply(name, changes, tag, ttl)
  local bytes = map_bytes_after(name, changes, tag)
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

-- Numbers that grow with every use and never repeat, whatever the clock does: fences, leases, places in an order.
local function next_number()
  if not number then
    local last = num(known.fence)
    -- Of a day in the future only a stranger can have made it: outside systems would refuse all that comes after it.
    if last > now + 86400 * 1000000 then
      count('forged:state', 1)
      note('state.forged', '', 'fence')
      last = 0
    end
    number = math.max(last, now - 1)
  end
  number = number + 1
  return number
end

-- A job's books as a table.
local function read_job(id)
  local h, l, s, d, dl, lo, sl, st, pb, instances, nb, ws, to, aw, tr, by, ls, f, rm, ct, cd, lc, lx, ly, fu, ow = unpack(call('HMGET',
    job_key(id), 'h', 'l', 's', 'd', 'dl', 'lo', 'sl', 'st', 'pb', 'in', 'nb', 'ws', 'to', 'aw', 'tr', 'by', 'ls', 'f', 'rm', 'ct',
    'cd', 'lc', 'lx', 'ly', 'fu', 'ow'))
  if not h then return nil end
  return {h = h, l = l, s = s, d = num(d), dl = num(dl), lo = num(lo), sl = num(sl), st = num(st), pb = num(pb), ['in'] = instances,
    nb = num(nb), ws = num(ws), to = num(to), aw = aw, tr = tr, by = by, ls = ls, f = f, rm = rm, ct = ct, cd = cd, lc = lc,
    lx = num(lx), ly = num(ly), fu = fu, ow = ow}
end

-- Enters a lane into its handler's ready set; "head" is its first job's not-before, "place" a number that was kept for it, or
-- nil. The fields that its books take.
local function enter_ready(h, lane, head, place)
  local score, member = now_text, (place or digits(next_number())) .. ':' .. lane
  if head > now then
    score = digits(head)
    is_due_in(head - now)
  elseif not is_paused(h) then ring(conf(h).g) end
  zadd('ready:' .. h, score, member, true)
  return score, member
end

-- Puts the lane into its handler's ready set if it belongs there, takes it out if not, and removes one with neither
-- jobs nor state.
local function make_ready(lane, place)
  local key, free = book(lane), is_free(lane)
  local h, lease, parked, score, member, s, nb, dying = unpack(call('HMGET', key, 'h', 'ls', 'pk', 'rs', 'rm', 's', 'nb', 'by'))
  if not h then return end
  local head = not given(lease) and not parked and (free and s == 'queued' or not free and call('LINDEX', P .. 'q:' .. lane, 0))
  if head and not free then nb, dying = unpack(call('HMGET', job_key(head), 'nb', 'by')) end
  if not head or dying then
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
  nb = num(nb)
  if given(member) then
    score = num(score)
    if score >= nb and (score <= now or score == nb) then return end
    zrem('ready:' .. h, member)
  end
  score, member = enter_ready(h, lane, nb, place)
  call('HSET', key, 'rs', score, 'rm', member)
end

-- A job begins or ends its life, by 1 or -1: "fu" is given if another job has submitted it.
local function count_live(ow, bytes, fu, by)
  count('bytes', by * bytes)
  if given(fu) then
    count('follow_ups', by)
    count('their_bytes', by * bytes)
    return
  end
  count('live', by)
  if given(ow) then
    for name, more in pairs({[ow] = 1, [ow .. ':bytes'] = bytes}) do owners[name] = (owners[name] or 0) + by * more end
  end
end

-- There is no room for one more job with so many bytes of payload, or none in its owner's share: see ports::Share. "fu" as above.
local function is_full_for(ow, more, fu)
  if given(fu) then return figure('follow_ups') >= R.cap or figure('their_bytes') + more > R.bytes end
  local queued, bytes = figure('queued') - figure('follow_ups'), figure('bytes') - figure('their_bytes')
  if queued >= R.cap or bytes + more > R.bytes then return true end
  if not given(ow) then return false end
  local function has(name) return num(call('HGET', P .. 'owners', name)) + (owners[name] or 0) end
  local jobs, quarter = math.floor(R.cap / 4), math.floor(R.bytes / 4)
  -- While all of them have less than one may, nobody's share is looked up.
  if figure('live') + 1 <= jobs and bytes + more <= quarter then return false end
  local own = has(ow)
  local others_have = figure('live') > own
  return own + 1 > math.max(jobs, 1) and (others_have or queued + 1 > R.cap - jobs)
    or has(ow .. ':bytes') + more > quarter and (others_have or bytes + more > R.bytes - quarter)
end

-- Enters a queued job at the tail of its lane; it waits since "since", a text.
local function enqueue(id, h, l, ow, bytes, fu, since, is_new)
  zadd(of(h).waits, since, id, is_new)
  count('queued', 1)
  count(of(h).queued, 1)
  count_live(ow, bytes, fu, 1)
  if l == '' then return end
  if call('HSETNX', P .. 'lane:' .. l, 'h', h) == 1 then count(of(h).lanes, 1) end
  call('RPUSH', P .. 'q:' .. l, id)
end

-- job: {id, h, lane: '' if unordered, ow, in, aw, tr, nb: us from now, to: us, env, pl: indices, pb, ik, fp}
local function accept(job)
  local nb, score, member = now + job.nb, '', ''
  local since = nb == now and now_text or digits(nb)
  accepted[job.id] = job
  if job.lane == '' then score, member = enter_ready(job.h, job.id, nb) end
  jobs[job.id] = {'env', ARGV[job.env], 'pl', ARGV[job.pl], 'h', job.h, 'l', job.lane, 's', 'queued', 'd', '0',
    'nb', since, 'ws', since, 'to', int(job.to), 'pb', int(job.pb), 'ow', job.ow, 'in', job['in'], 'aw', job.aw, 'tr', job.tr,
    'ls', '', 'rs', score, 'rm', member, 'fu', job.fu or ''}
  if job.ik then
    call('SET', P .. 'idem:' .. job.ik, job.id .. ' ' .. job.fp)
    zadd('idems', digits(now + R.ittl), job.ik)
  end
  zadd('all', digits(next_number()), job.id)
  count(of(job.h).submitted, 1)
  enqueue(job.id, job.h, job.lane, job.ow, job.pb, job.fu, since, true)
  if job.lane == '' then return end
  call('HSET', job_key(job.id), unpack(jobs[job.id]))
  jobs[job.id] = nil
  make_ready(job.lane)
end

-- The fields of a job whose delivery starts, for its hash. "number" is that of the start before, "deliveries" those that count.
local function started(id, h, executor, number, deliveries, not_before)
  local names = of(h)
  zrem(names.waits, id)
  count('queued', -1)
  count(names.queued, -1)
  count(names.running, 1)
  if number == 0 then observe(names.wait, now - not_before) else count('redelivered', 1) end
  return 's', 'running', 'st', now_text, 'd', int(deliveries + 1), 'dl', int(number + 1), 'ex', executor
end

-- Its last delivery is over, as its record tells: of too many the oldest is forgotten.
local function end_attempt(id, outcome, ended)
  local key = job_key(id)
  local started, executor, past = unpack(call('HMGET', key, 'st', 'ex', 'at'))
  if not given(executor) then return end
  local lines = {}
  if #(past or '') > 1024 then past = '' end
  for line in string.gmatch(past or '', '[^\n]+') do lines[#lines + 1] = line end
  lines[#lines + 1] = int(num(started)) .. ' ' .. int(ended) .. ' ' .. executor .. ' ' .. outcome
  call('HSET', key, 'ex', '', 'at', table.concat(lines, '\n', math.max(1, #lines - R.past + 1)))
end

-- A running job is queued again; it never left its lane. "outcome": what came of its delivery, unless that has not begun.
local function requeue(id, job, not_before, outcome)
  local names = of(job.h)
  if outcome then end_attempt(id, outcome, now) end
  zadd(names.waits, digits(job.ws), id)
  call('HSET', job_key(id), 's', 'queued', 'nb', digits(not_before), 'ls', '', 'pg', '', 'ex', '', 'd', int(job.d), 'dl', int(job.dl))
  count(names.running, -1)
  count(names.queued, 1)
  count('queued', 1)
end

-- Finished records, by their time to live.
local KEPT = {'0', '1', '2'}
local function forget(id)
  local class, member = unpack(call('HMGET', job_key(id), 'kc', 'km'))
  if class then
    zrem('kept:' .. class, member)
    call('HDEL', job_key(id), 'kc', 'km')
  end
end
local function drop(class, members)
  local keys, ids = {}, {}
  for i, member in ipairs(members) do
    ids[i] = string.sub(member, 18, 49)
    keys[i] = job_key(ids[i])
  end
  if #members == 0 then return end
  call('DEL', unpack(keys))
  call('ZREM', P .. 'all', unpack(ids))
  call('ZREM', P .. 'kept:' .. class, unpack(members))
end
local function drop_expired(most)
  for _, class in ipairs(KEPT) do
    drop(class, call('ZRANGE', P .. 'kept:' .. class, '-inf', int(now), 'BYSCORE', 'LIMIT', 0, most))
  end
end
local function drop_too_many()
  for _, class in ipairs(KEPT) do drop(class, call('ZRANGE', P .. 'kept:' .. class, 0, -1 - R.keep)) end
end
-- The fields of a record that is kept from now on, for its hash.
local function kept(id, job, s)
  local class = s ~= 'succeeded' and '2' or job.aw == '1' and '1' or '0'
  local member = digits(next_number()) .. ':' .. id
  has_kept = true
  zadd('kept:' .. class, digits(now + (class == '2' and R.fttl or class == '1' and R.attl or R.ttl)), member)
  return 'kc', class, 'km', member
end

local ENDED = {succeeded = 1, failed = 1, cancelled = 1, timed_out = 1, dead = 1}

-- An idempotency key whose time is up goes, unless its job has not ended: then it is kept for as long again.
local function expire_key(ik)
  local id = string.sub(call('GET', P .. 'idem:' .. ik) or '', 1, 32)
  local s = call('HGET', job_key(id), 's')
  if s and not ENDED[s] then
    zadd('idems', digits(now + R.ittl), ik)
    return
  end
  call('DEL', P .. 'idem:' .. ik)
  zrem('idems', ik)
end
-- The job of a key, and the fingerprint of its payload.
local function job_of_key(ik)
  local bound = call('GET', P .. 'idem:' .. ik)
  if bound and num(call('ZSCORE', P .. 'idems', ik)) <= now then
    flush()
    expire_key(ik)
    bound = call('GET', P .. 'idem:' .. ik)
  end
  if bound then return string.match(bound, '^(%x+) (%x+)$') end
end

-- One more instance hears of a job's end.
local function watch(id, instances, instance)
  if not string.find(instances, instance, 1, true) then
    call('HSET', job_key(id), 'in', instances .. ' ' .. instance)
  end
end

-- Instances that listen elsewhere are told by a stream, in which a result that is too large stands as its record; the
-- caller's own process by the answer: {instance, job, status, index of the outcome in ARGV or 0, outcome}.
local function inbox_of(instance)
  local inbox = inboxes[instance]
  if inbox == nil then
    inbox = P .. 'inbox:' .. instance
    inbox = call('EXISTS', inbox) == 1 and inbox
    inboxes[instance] = inbox
  end
  return inbox
end
local function tell_inbox(inbox, id, status, result)
  local entries = streams[inbox] or {{}}
  streams[inbox] = entries
  local entry = entries[#entries]
  if #entry >= 6 * R.ends then
    entry = {}
    entries[#entries + 1] = entry
  end
  local at = #entry
  entry[at + 1], entry[at + 2], entry[at + 3], entry[at + 4], entry[at + 5] = 'j', id, 's', status, 'r'
  entry[at + 6] = #result <= R.small and result or ''
end
local function tell(instances, id, status, r)
  local result, index, bytes = r, 0, r
  if type(r) == 'number' then result, index, bytes = ARGV[r], r, '' end
  for at = 1, #instances, 17 do
    local instance = string.sub(instances, at, at + 15)
    if here[instance] then ends[#ends + 1] = {instance, id, status, index, bytes}
    else
      local inbox = inbox_of(instance)
      if inbox then tell_inbox(inbox, id, status, result) end
    end
  end
end

-- Ends a job's life: out of its lane, into the records, its callers told. The caller looks after its lease and calls
-- make_ready. "r" is the signed outcome, or its index in ARGV; "n" and "delivery" are those of the commit that ends it, or ''.
local function finish(id, job, status, r, n, delivery)
  local h, names, result = job.h, of(job.h), type(r) == 'number' and ARGV[r] or r
  if job.s == 'running' then
    count(names.running, -1)
    observe(names.job, now - job.st)
  else
    zrem(names.waits, id)
    count(names.queued, -1)
    count('queued', -1)
  end
  count_live(job.ow, job.pb, job.fu, -1)
  count(names.finished .. status, 1)
  local fields = {'s', status, 'fi', now_text, 'r', result, 'ls', '', 'ct', n, 'cd', delivery}
  local parks = status == 'dead' and conf(h).p and job.l ~= ''
  if not parks then
    append(fields, kept(id, job, status))
    -- Only then it is never needed again.
    if status == 'succeeded' then append(fields, 'pl', '') end
  end
  if job.lo > 0 then
    count('suspects', -1)
    -- An executor may have been kept free for it.
    ring(conf(h).g)
  end
  if job.lo + job.sl > 0 then append(fields, 'lo', '0', 'sl', '0') end
  if job.by then
    count('dying', -1)
    zrem('dying', id)
    call('HDEL', job_key(id), 'by')
  end
  if status ~= 'succeeded' and status ~= 'cancelled' then note('job.failed', id, 'executor_lost', job, r) end
  set_job(id, unpack(fields))
  tell(job['in'], id, status, r)
  if parks then
    count(names.parked, 1)
    call('HSET', P .. 'lane:' .. job.l, 'pk', 1)
    call('SADD', P .. 'parked:' .. h, job.l)
  elseif job.l ~= '' then call('LREM', P .. 'q:' .. job.l, 1, id)
  elseif given(job.rm) and job.s == 'queued' then zrem('ready:' .. h, job.rm) end
end

-- A lease; of an unordered job "id" is given, and what is known of it may be.
local function read_lease(n, id, job)
  if given(id) then
    job = job or read_job(id)
    if not job or job.ls ~= n then return nil end
    return {n = n, id = id, consumer = job.lc, lane = id, h = job.h, run = id, ends = job.lx, deadline = job.ly}
  end
  local consumer, lane, h, run, ends, deadline = unpack(call('HMGET', P .. 'lease:' .. n, 'c', 'l', 'h', 'run', 'x', 'y'))
  if not (consumer and lane and h and run) then return nil end
  return {n = n, id = '', consumer = consumer, lane = lane, h = h, run = run, ends = num(ends), deadline = num(deadline)}
end
-- The lease that a job is in.
local function lease_of(id, job)
  if not given(job.ls) then return nil end
  return read_lease(job.ls, job.l == '' and id or '', job)
end
local function member_of(lease) return lease.n .. ' ' .. lease.consumer .. ' ' .. lease.h .. ' ' .. lease.id end
local function renew(lease)
  local ends = digits(math.min(now + R.vis, lease.deadline))
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

-- A later job of a run that ends: the number that its handler may have been told is not told again.
local function may_have_begun(id) call('HSET', job_key(id), 'dl', int(num(call('HGET', job_key(id), 'dl')) + 1)) end

-- Ends a lease before its last commit, whatever its running job came to: that has been told before, or it is queued again,
-- uncounted. "has_begun": its jobs may have. Nobody knows the lane's state now.
local function end_lease(lease, has_begun)
  remove_lease(lease)
  if lease.id == '' then call('HDEL', P .. 'lane:' .. lease.lane, 'mk') end
  local id = first_of(lease.run)
  local job = id and read_job(id)
  if job and job.s == 'running' then
    job.d, job.dl = job.d - 1, job.dl - (has_begun and 0 or 1)
    requeue(id, job, now, has_begun and 'given_back')
  end
  if has_begun then for later in each(string.sub(lease.run, 33)) do may_have_begun(later) end end
  make_ready(lease.lane)
end

-- How long a job of this handler waits after so many tries; "jitter" is between 0 and 1.
local function backoff(h, tries, jitter)
  return tries < 1 and 0 or math.floor(math.min(conf(h).rm, conf(h).rb * 2 ^ math.min(tries - 1, 32)) * jitter)
end

-- A delivery that came to nothing: queued again after a backoff or "after" us, or dead. "jitter" is between 0 and 1, "dead" the
-- signed outcome of a dead job. Without one it is dead once a process has signed that: until then it holds its place.
local function again(id, job, cause, dead, jitter, n, delivery, after)
  local of_handler, outcome = conf(job.h), cause == 'retries_exhausted' and 'handler_retry' or cause
  if job.d >= of_handler.d or job.lo + job.sl >= 2 * of_handler.d then
    if dead then
      count('dead', 1)
      finish(id, job, 'dead', dead, n, delivery)
      note('queue.dead', id, cause, job)
      return
    end
    count('dying', 1)
    zadd('dying', now_text, id)
    requeue(id, job, now, outcome)
    call('HSET', job_key(id), 'by', digits(next_number()), 'ct', n, 'cd', delivery)
    return
  end
  if not after then
    local tries = cause == 'executor_lost' and job.lo - 1 or job.d
    after = backoff(job.h, tries, jitter)
  end
  requeue(id, job, now + after, outcome)
  call('HSET', job_key(id), 'ct', n, 'cd', delivery)
  note('queue.redelivered', id, cause, job, dead)
end

-- The same, where no outcome came and so no jitter: the id is as random.
local function lost_again(id, job)
  local jitter = tonumber(string.sub(sha1hex(id .. job.lo), 1, 8), 16) / 2 ^ 32
  again(id, job, 'executor_lost', nil, jitter, '', '')
end

-- The lease's holder is lost, and each of its jobs may have been running. "how": 'alone' if the executor had no other job,
-- which then was the reason, and counts; 'others' if it had, of which each is a suspect; 'seat' if its whole process has gone,
-- which says nothing about them.
local function lose_lease(lease, how)
  remove_lease(lease)
  if lease.id == '' then call('HDEL', P .. 'lane:' .. lease.lane, 'mk') end
  for id in each(lease.run) do
    local job = read_job(id)
    if job and not ENDED[job.s] then
      local losses = how == 'seat' and 'sl' or 'lo'
      job[losses] = job[losses] + 1
      if how ~= 'alone' and job.s == 'running' then job.d = job.d - 1 end
      call('HSET', job_key(id), losses, int(job[losses]), 'd', int(job.d))
      if losses == 'lo' and job.lo == 1 then count('suspects', 1) end
      if job.s == 'queued' then may_have_begun(id)
      else
        if losses == 'lo' and job.lo == R.alone then note('job.suspect', id, 'executor_lost', job) end
        lost_again(id, job)
      end
    end
  end
  make_ready(lease.lane)
end

-- Ends a lease whose executor says what cannot hold, or nothing. The delivery counts: else such an executor could have the job
-- again for ever.
local function disbelieve(lease)
  local id = first_of(lease.run)
  local job = id and read_job(id)
  if job and job.s == 'running' then lost_again(id, job) end
  end_lease(lease, true)
end

-- "work" for each of these members of the set "leases" whose lease is there.
local function each_lease(members, work)
  for _, member in ipairs(members) do
    local n, consumer, id = string.match(member, '^(%S+) (%S+) %S+ (%S*)$')
    local lease = n and read_lease(n, id)
    if lease and lease.consumer == consumer then work(lease) else zrem('leases', member) end
  end
end

-- What is in a job's place can be looked at: an id, and a hash with an envelope of a job's size. Whoever can write here may
-- have put anything there.
local function is_sound(id)
  if #id ~= 32 or string.find(id, '[^0-9a-f]') then return false end
  local length = pcall('HSTRLEN', job_key(id), 'env')
  return type(length) == 'number' and length > 0 and length <= R.envelope and call('HSTRLEN', job_key(id), 'pl') <= R.mp
end
-- Puts a job aside that nobody of the deployment signed: nobody runs it. It is in no lease. Where its record can be signed
-- now ("env" and "r", indices), that says so in its place, and whoever waits is told.
local function quarantine(id, h, lane, env, r)
  local key = job_key(id)
  local job = pcall('HMGET', key, 'pb', 'rm', 'in', 'aw', 'lo', 'fu', 'ow')
  if job.err then job = {} end
  zrem(of(h).waits, id)
  if num(job[5]) > 0 then count('suspects', -1) end
  count('queued', -1)
  count(of(h).queued, -1)
  count_live(job[7], num(job[1]), job[6], -1)
  count('forged', 1)
  note('queue.forged', id, 'forged', {h = h})
  if not is_free(lane) then call('LREM', P .. 'q:' .. lane, 1, id)
  elseif given(job[2]) then zrem('ready:' .. h, job[2]) end
  if call('EXISTS', key) == 1 then
    call('RENAME', key, P .. 'quarantine:' .. id)
    call('PEXPIRE', P .. 'quarantine:' .. id, R.quarantine)
  end
  if not env then return zrem('all', id) end
  local record = {aw = job[4] or '', pb = 0}
  call('HSET', key, 'env', ARGV[env], 'pl', '', 'h', h, 'l', '', 's', 'dead', 'd', '0', 'nb', now_text, 'pb', '0', 'ow', '', 'in', '',
    'aw', record.aw, 'tr', '', 'fi', now_text, 'r', ARGV[r], 'ls', '', kept(id, record, 'dead'))
  count(of(h).finished .. 'dead', 1)
  tell(job[3] or '', id, 'dead', r)
end

-- What is in an ordered lane's places can be looked at: a list, a hash, and a state of a lane's size. Whoever can write here
-- may have put anything there.
local function is_sound_lane(lane)
  local name = state_map(lane)
  for _, key in ipairs({P .. 'm:' .. name, P .. 'lane:' .. lane}) do
    if type(pcall('HLEN', key)) ~= 'number' then return false end
  end
  if type(pcall('LLEN', P .. 'q:' .. lane)) ~= 'number' then return false end
  local taken = call('MEMORY', 'USAGE', P .. 'm:' .. name) or 0
  local counted = math.min(num(call('HGET', P .. 'mb', name)), R.lsm) + 128 * call('HLEN', P .. 'm:' .. name)
  return taken <= 2 * counted + 2 ^ 20
end
-- A lane whose state is not what was signed runs nothing: not on less, not on more. It is looked at again when its handler is
-- resumed.
local function park_forged(lane, h)
  if type(pcall('HSET', P .. 'lane:' .. lane, 'pk', 'forged')) ~= 'number' then
    call('DEL', P .. 'lane:' .. lane)
    call('HSET', P .. 'lane:' .. lane, 'h', h, 'pk', 'forged')
  end
  call('SADD', P .. 'forged:' .. h, lane)
  count(of(h).parked, 1)
  count('forged:state', 1)
  note('state.forged', '', 'lane', {h = h})
  make_ready(lane)
end
local function look_at_forged(h)
  for _, lane in ipairs(call('SMEMBERS', P .. 'forged:' .. h)) do
    call('HDEL', P .. 'lane:' .. lane, 'pk')
    count(of(h).parked, -1)
    make_ready(lane)
  end
  call('DEL', P .. 'forged:' .. h)
end

-- Tells a lease's executor to stop or leave out a job.
local function revoke(lease, id)
  local node, number = string.match(lease.consumer or '', '^(%x+)%.(%d+)$')
  if not node then return end
  call('RPUSH', P .. 'revoked:' .. node, number .. ' ' .. lease.n .. ' ' .. id)
  call('HSET', P .. 'node:' .. node, 'rv', 1)
  ring(conf(lease.h).g)
  urgent[conf(lease.h).g or ''] = true
end

-- Executors that are kept free for a job that runs alone: by consumer, its group and the lane.
local function kept_free()
  local waits = {}
  for consumer, group, lane in string.gmatch(sets.waits or known.waits, '(%S+) (%d+) ([^;]+);') do
    waits[consumer] = {g = tonumber(group), lane = lane}
  end
  return waits
end
local function keep_free(waits)
  local list = {}
  for consumer, at in pairs(waits) do list[#list + 1] = consumer .. ' ' .. int(at.g) .. ' ' .. at.lane .. ';' end
  sets.waits = table.concat(list)
end
-- These consumers, whose names begin so, are gone. Others may take what they were kept free for.
local function free(prefix)
  if #(sets.waits or known.waits) < 2 then return end
  local waits = kept_free()
  for consumer, at in pairs(waits) do
    if string.sub(consumer .. ' ', 1, #prefix) == prefix then
      waits[consumer] = nil
      for _, handler in pairs(H) do if handler.g == at.g then ring(at.g) end end
    end
  end
  keep_free(waits)
end

-- A process is gone.
local function forget_node(id)
  free(id .. '.')
  call('DEL', P .. 'node:' .. id, P .. 'revoked:' .. id)
  call('ZREM', P .. 'nodes', id)
  for g = 0, R.groups - 1 do call('SREM', P .. 'idle:' .. int(g), id) end
end

-- How many leases each consumer has.
local function leases_by_consumer()
  local counts = {}
  for _, member in ipairs(call('ZRANGE', P .. 'leases', 0, -1)) do
    local consumer = string.match(member, '^%S+ (%S+)') or ''
    counts[consumer] = (counts[consumer] or 0) + 1
  end
  return counts
end

-- True if the executor of a lease that is over had no other job, nor one whose lease was over before, in another sweep: leases that
-- nobody renews any more are over within so long of each other.
local function was_alone(lease, node, held)
  local key, field = P .. 'node:' .. node, 'lost' .. string.sub(lease.consumer, #node + 1)
  local is_alone = held == 1 and #lease.run == 32 and num(call('HGET', key, field)) + R.vis < now
  if not is_alone then call('HSET', key, field, digits(now)) end
  return is_alone
end

-- Leases that ran out, records and keys whose time is up, maps that nobody met again. Bounded, so that no call is long.
-- Executors are told: those of this process by its answer.
local function sweep()
  flush()
  local expired = call('ZRANGE', P .. 'leases', '-inf', int(now), 'BYSCORE', 'LIMIT', 0, 64)
  local held = #expired > 0 and leases_by_consumer()
  local overdue = {}
  each_lease(expired, function(lease)
    count('expired', 1)
    local node = string.match(lease.consumer, '^(%x+)%.') or ''
    if A.node == node then ran_out[#ran_out + 1] = lease.n
    else for id in each(lease.run) do revoke(lease, id) end end
    if lease.deadline <= now then overdue[#overdue + 1] = lease
    elseif A.node ~= node and num(call('ZSCORE', P .. 'nodes', node)) <= now then lose_lease(lease, 'seat')
    else lose_lease(lease, was_alone(lease, node, held[lease.consumer]) and 'alone' or 'others') end
  end)
  for _, lease in ipairs(overdue) do disbelieve(lease) end
  for _, id in ipairs(call('ZRANGE', P .. 'nodes', '-inf', int(now), 'BYSCORE', 'LIMIT', 0, 16)) do
    if id ~= A.node then forget_node(id) end
  end
  for _, name in ipairs(call('ZRANGE', P .. 'mx', '-inf', int(now), 'BYSCORE', 'LIMIT', 0, 64)) do map_free(name) end
  drop_expired(512)
  for _, ik in ipairs(call('ZRANGE', P .. 'idems', '-inf', int(now), 'BYSCORE', 'LIMIT', 0, 64)) do expire_key(ik) end
end

-- More is due than one sweep takes.
local function is_due()
  for _, set in ipairs({'leases', 'mx', 'idems', 'kept:0', 'kept:1', 'kept:2'}) do
    if call('ZCOUNT', P .. set, '-inf', int(now)) > 0 then return true end
  end
  return false
end

-- "takes_all": groups of which this call has taken all that is ready.
local function done(answer, takes_all)
  flush()
  if has_kept and R.keep then drop_too_many() end
  for group in pairs(rung) do
    if urgent[group] or not (takes_all and takes_all[group]) and call('SCARD', P .. 'idle:' .. int(group)) > (has_room[group] and 1 or 0) then
      call('XADD', P .. 'wake:' .. int(group), 'MAXLEN', '~', 64, '*', 'w', '1')
    end
  end
  write_figures()
  if R.life then
    for key in pairs(named) do plain('PEXPIRE', key, R.life) end
  end
  return answer
end

-- Digest of the source: libraries of two versions live side by side.
local function callable(name, work, flags)
  redis.register_function{
    function_name = 'cofferdam_' .. name .. '_DIGEST',
    callback = function(keys, argv)
      begin(keys, argv, name == 'mend')
      return work()
    end,
    flags = flags or {'allow-oom'},
  }
end
