-- What all jobs share, where a stranger has put something of another type in its place: every call would end there, half-way.
-- It is removed, and made again from the jobs themselves. Said with the arguments of the call that met it, which is then
-- said once more.
--
-- Answers the names of the keys that were removed. What nothing else tells is lost with its key: pauses and totals (count), when
-- contexts end (mx), idempotency keys (idems), old records' places in lists (all).
do
  local removed

  local function keeps(key, kind)
    local is = call('TYPE', P .. key).ok
    if is == kind or is == 'none' then return true end
    call('DEL', P .. key)
    removed[#removed + 1] = key
    count('forged:state', 1)
  end

  local function from_zero(field)
    known[field], counts[field], sets[field] = '0', nil, '0'
  end

  -- A job of a list, and what stands in the books because of it. "lanes": those that it has met.
  local function enter(id, lanes)
    local job, key = read_job(id), job_key(id)
    if not job or not job.l or not job.s then return end
    local names = of(job.h)
    if not call('ZSCORE', P .. 'all', id) then zadd('all', digits(next_number()), id) end
    if job.l ~= '' then lanes[job.l] = job.h end
    if ENDED[job.s] then
      local class, member, finished = unpack(call('HMGET', key, 'kc', 'km', 'fi'))
      if class then
        local life = class == '2' and R.fttl or class == '1' and R.attl or R.ttl
        zadd('kept:' .. class, digits(num(finished) + life), member)
      end
      return
    end
    count_live(job.ow, job.pb, job.fu, 1)
    if job.lo > 0 then count('suspects', 1) end
    if job.by then
      count('dying', 1)
      zadd('dying', now_text, id)
    end
    if job.s == 'running' then count(names.running, 1)
    else
      count('queued', 1)
      count(names.queued, 1)
      zadd(names.waits, digits(job.ws), id)
    end
    local lease = lease_of(id, job)
    if lease then zadd('leases', digits(lease.ends), member_of(lease))
    elseif job.s == 'running' then
      job.d = job.d - 1
      requeue(id, job, now, 'given_back')
    end
    if job.l == '' then
      call('HSET', key, 'rm', '', 'ls', lease and job.ls or '')
      make_ready(id)
    end
  end

  local function enter_lane(lane, h)
    if not is_sound_lane(lane) then return end
    local key = P .. 'lane:' .. lane
    local lease, parked = unpack(call('HMGET', key, 'ls', 'pk'))
    if parked then count(of(h).parked, 1) end
    if parked then call('SADD', P .. (parked == 'forged' and parked or 'parked') .. ':' .. h, lane) end
    if given(lease) and call('EXISTS', P .. 'lease:' .. lease) == 0 then call('HSET', key, 'ls', '') end
    call('HSET', key, 'rm', '')
    make_ready(lane)
  end

  local function mend()
    removed = had_no_count and {'count'} or {}
    for _, set in ipairs({'all', 'leases', 'dying', 'nodes', 'mx', 'idems', 'kept:0', 'kept:1', 'kept:2'}) do keeps(set, 'zset') end
    keeps('mb', 'hash')
    keeps('owners', 'hash')
    for h in pairs(H) do
      keeps('ready:' .. h, 'zset')
      keeps('waits:' .. h, 'zset')
      keeps('forged:' .. h, 'set')
      keeps('parked:' .. h, 'set')
    end
    for g = 0, R.groups - 1 do
      keeps('idle:' .. int(g), 'set')
      keeps('wake:' .. int(g), 'stream')
    end
    local nodes = call('ZRANGE', P .. 'nodes', 0, -1)
    if A.node then append(nodes, A.node) end
    for _, node in ipairs(nodes) do
      keeps('node:' .. node, 'hash')
      keeps('revoked:' .. node, 'list')
    end
    for _, instance in ipairs(A.here or {}) do keeps('inbox:' .. instance, 'stream') end
    -- All jobs, each once: those that stand in a list, that wait, that run, and that a call which ended half-way has brought.
    local ids, is_met, lanes = {}, {}, {}
    local function meet(members)
      for _, id in ipairs(members) do
        if not is_met[id] then ids[#ids + 1], is_met[id] = id, true end
      end
    end
    meet(call('ZRANGE', P .. 'all', 0, -1))
    for h in pairs(H) do meet(call('ZRANGE', P .. 'waits:' .. h, 0, -1)) end
    for _, member in ipairs(call('ZRANGE', P .. 'leases', 0, -1)) do
      local n, id = string.match(member, '^(%S+) %S+ %S+ (%S*)$')
      if n and id == '' then keeps('lease:' .. n, 'hash') end
    end
    each_lease(call('ZRANGE', P .. 'leases', 0, -1), function(lease)
      for id in each(lease.run) do meet({id}) end
    end)
    local brought, broken = {}, {}
    append(brought, unpack(A.jobs or {}))
    for _, commit in ipairs(A.commits or {}) do append(brought, unpack(commit.fu or {})) end
    for _, job in ipairs(brought) do
      if job.ik then keeps('idem:' .. job.ik, 'string') end
      meet({job.id})
      local lane = job.lane
      if given(lane) then
        local has_queue, has_book = keeps('q:' .. lane, 'list'), keeps('lane:' .. lane, 'hash')
        if not (has_queue and has_book) then broken[lane] = {h = job.h, jobs = not has_queue and {}} end
      end
    end
    if #removed == 0 then return removed end
    -- Leases that nobody was told of: a call that ends writes down the last of its numbers.
    local last = digits(num(known.fence))
    for _, id in ipairs(ids) do
      local job = is_sound(id) and read_job(id)
      local lease = job and job.l and lease_of(id, job)
      if lease and lease.n > last and not had_no_count then end_lease(lease, false) end
    end
    -- Commands have none.
    if A.node then call('HDEL', P .. 'node:' .. A.node, 'call', 'claims') end
    flush()
    for _, field in ipairs({'queued', 'live', 'bytes', 'follow_ups', 'their_bytes', 'suspects', 'dying'}) do from_zero(field) end
    call('DEL', P .. 'owners')
    for h in pairs(H) do
      for _, field in ipairs({'queued', 'running', 'parked'}) do from_zero(of(h)[field]) end
      call('DEL', P .. 'ready:' .. h, P .. 'waits:' .. h)
    end
    for _, id in ipairs(ids) do
      if is_sound(id) then
        local lane, s = unpack(call('HMGET', job_key(id), 'l', 's'))
        local of_lane = broken[lane]
        if of_lane and of_lane.jobs and not ENDED[s] then of_lane.jobs[#of_lane.jobs + 1] = id end
        enter(id, lanes)
      end
    end
    -- A lane whose own places held something else has its jobs in their order, and waits until somebody has looked.
    for lane, of_lane in pairs(broken) do
      for _, id in ipairs(of_lane.jobs or {}) do call('RPUSH', P .. 'q:' .. lane, id) end
      call('HSET', P .. 'lane:' .. lane, 'h', of_lane.h, 'pk', 'forged')
      lanes[lane] = of_lane.h
    end
    for lane, h in pairs(lanes) do enter_lane(lane, h) end
    return done(removed)
  end

  callable('mend', mend)
end
