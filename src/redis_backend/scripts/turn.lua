-- One turn of a web process: what its executors finished or gave back, what is due by time, what came from its callers, and
-- what its executors can have, in this order. Each commit and each job is judged on its own.
--
-- "node"     the process; "call" this call's name; "again" true if it is said once more; "here" its inboxes; "closed" those
--            that it has no more
-- "commits"  list of {i: number of the executor, n: lease, id, d: delivery, v: version it builds on, s: status or "retry" or "crashed",
--            r: index of the signed outcome (for retry and crashed: that of a dead job), j: jitter 0 to 1,
--            after: us that a retry asks for, or absent, bad: index in "no" of why it cannot hold, or absent,
--            st, cx: changes {index of key, index of value or 0}, lane state and context, sg: index of the signature of the
--            whole state after them, or absent if that could not be made, ctx: the context's map,
--            fu: follow-ups as "accept" takes jobs, no: indices of the signed failures, see "refused"}
-- "progress" list of {i, n, o, id, pg: index of what is signed of how far that job of the lease is}
-- "releases" list of {i, n, o: the job of an unordered lease or "", how: absent if its jobs have not begun, "cut" if they may have,
--            else as "lose_lease" takes it}
-- "forged"   list of {i, n, o, id, env, r}: a job of this lease that nobody of the deployment signed, and its record; or
--            of {i, n, o, st: true}: the state of its lane is not what was signed
-- "bury"     list of {id, r}: the signed ends of jobs that were dying
-- "renew"    list of {i, n, o}
-- "left"     processes whose places were taken: their leases are over
-- "jobs"     jobs to accept, as "accept" takes them; after one that found the queue full none of its owner is
-- "gone"     numbers of executors that are lost
-- "execs"    list of {i: its number, g: group, room: leases that it may get, used: its leases by handler, pa: true if its last
--            lease was of a job that ran alone}; one whose job runs alone is not there
-- "idle"     groups of which executors of this process had room after the last call
-- "facts"    what the process says of itself, once a second: names and values
-- "look"     looks at what time has made ready; "sweep" ends what time has ended, which is done often enough anyhow
-- Answers    {commits: list of "committed" | "again" | "refused" (it held, but nothing of its effects) | "fenced",
--             jobs: list of "new", "full", "unknown", or the id of the job that has the key, after "mismatch " or "gone " or by itself: its end
--             the submitter's instance hears of,
--             leases: list of {n, number of the executor, h, kind, version, state, jobs: list of {id, env, d, f, context, pl}, lane,
--             1 if it runs alone, signature of the state},
--             over: numbers of leases that ran out, revoked: list of {number of the executor, lease, job},
--             ends: see "tell", notices: see "note", groups with room now,
--             us until something is ready by time or nil, inboxes that were not there, dying jobs}
-- Repeatable: commits that held are "again", jobs that are there are "new", and the same leases are given once more.

-- By group: leases that this call may give, and of which it has taken all that is ready. The time to which it leases.
local rooms, takes_all, lease_ends
-- Whose job found the queue full; there are contexts, or nil before it was asked. See "kept_free".
local is_full, has_contexts, waits

-- An executor of this process, as all processes know it.
local function consumer(number) return A.node .. '.' .. int(number) end

local function version_of(lane) return int(num(call('HGET', P .. 'lane:' .. lane, 'v'))) end

local function too_late(c, job)
  if A.again and job and job.ct == c.n and tonumber(job.cd) == c.d then
    count('duplicate', 1)
    note('reply.duplicate_dropped', c.id, 'repeated', job)
    return 'again'
  end
  count('late', 1)
  if job then note('reply.late_dropped', c.id, 'fenced', job) end
  return 'fenced'
end

-- True if what the outcome submits finds no room. The first job of an outcome always does, since it comes in the place of the
-- one that submits it.
local function has_no_room(c, job)
  local jobs, bytes = c.fu or {}, 0
  for _, follow_up in ipairs(jobs) do bytes = bytes + follow_up.pb end
  if #jobs == 0 or #jobs == 1 and bytes <= job.pb then return false end
  local fits = #jobs == 1 or figure('follow_ups') + #jobs <= R.cap
  return not fits or figure('their_bytes') + bytes > R.bytes
end

-- Why the effects cannot be applied, as an index of the failure in "no"; 0 if they can.
local function refused(c, lane, h)
  if c.bad then return c.bad end
  if c.s ~= 'succeeded' then return 0 end
  if c.st and #c.st > 0 then
    if is_free(lane) then return 1 end
    if map_bytes_after(state_map(lane), c.st, 0) > R.lsm then return 2 end
  end
  if c.cx and #c.cx > 0 and map_bytes_after(c.ctx, c.cx, R.tag) > R.ctxm then return 3 end
  local why, may = 0, conf(h).fu
  for _, job in ipairs(c.fu or {}) do
    if not H[job.h] then return 4 end
    if may and not may[job.h] then why = 5 end
  end
  return why
end

local function next_of_run(lease)
  lease.run = string.sub(lease.run, 33)
  local following = first_of(lease.run)
  if following then
    local job = read_job(following)
    lease.deadline = now + job.to + R.grace
    call('HSET', P .. 'lease:' .. lease.n, 'run', lease.run, 'y', digits(lease.deadline))
    renew(lease)
    call('HSET', job_key(following), started(following, job.h, lease.consumer, job.dl, job.d, job.nb))
    return
  end
  remove_lease(lease)
  if lease.id ~= '' then return end
  -- Complete: whoever ran it holds the lane's state as it is now.
  call('HSET', P .. 'lane:' .. lease.lane, 'mk', lease.consumer)
  make_ready(lease.lane)
end

local function commit(c)
  local job = read_job(c.id)
  c.n = digits(c.n)
  -- The lease decides, not the job that is named: one that names another is over.
  local own = given(c.o) and c.o or (job and job.l == '' and c.id or '')
  local lease = read_lease(c.n, own, own == c.id and job or nil)
  if not lease or lease.consumer ~= consumer(c.i) or lease.ends <= now then return too_late(c, job) end
  local lane, ordered = lease.lane, lease.id == ''
  local version = ordered and version_of(lane)
  if not job or first_of(lease.run) ~= c.id or job.dl ~= c.d or (ordered and version ~= c.v) then
    local answer = too_late(c, job)
    if answer == 'fenced' then disbelieve(lease) end
    return answer
  end
  local goes_on, delivery, changes = false, int(c.d), c.st and #c.st > 0
  if changes and ordered and not c.sg then
    -- Its process does not know the state that this builds on any more.
    end_lease(lease, true)
    return too_late(c, job)
  end
  if c.s == 'succeeded' and has_no_room(c, job) then
    -- Nobody's fault: again after a backoff, uncounted. It grows with each start, for a while: room may come at any time.
    local after = backoff(job.h, math.min(job.dl, R.put_off), c.j)
    job.d = job.d - 1
    requeue(c.id, job, now + after, 'queue_full')
    call('HSET', job_key(c.id), 'ct', c.n, 'cd', delivery)
    note('queue.redelivered', c.id, 'queue_full', job)
    end_lease(lease, true)
    return 'refused'
  end
  local why = refused(c, lane, job.h)
  if why > 0 then finish(c.id, job, 'failed', c.no[why], c.n, delivery)
  elseif c.s == 'retry' then again(c.id, job, 'retries_exhausted', c.r, c.j, c.n, delivery, c.after)
  elseif c.s == 'crashed' then again(c.id, job, 'handler_crashed', c.r, c.j, c.n, delivery)
  else
    if c.s == 'succeeded' then
      if changes then
        call('HSET', P .. 'lane:' .. lane, 'v', int(num(job.f)), 'sg', ARGV[c.sg])
        map_apply(state_map(lane), c.st, 0)
      end
      if c.cx and #c.cx > 0 then map_apply(c.ctx, c.cx, R.tag, R.ctx) end
      for _, follow_up in ipairs(c.fu or {}) do
        follow_up['in'], follow_up.fu = job['in'], '1'
        accept(follow_up)
      end
    end
    goes_on = c.s == 'succeeded' or c.s == 'failed'
    finish(c.id, job, c.s, c.r, c.n, delivery)
  end
  -- An executor goes on with the run before it knows what became of an outcome, but not after these.
  if goes_on then next_of_run(lease) else end_lease(lease, c.s ~= 'retry' and c.s ~= 'crashed') end
  return why > 0 and 'refused' or 'committed'
end

-- A job whose executors were lost too often is dead, now that somebody has signed that.
local function bury(id, r)
  local job = read_job(id)
  if not job or not job.by then
    -- Its record has gone, or another process was first.
    zrem('dying', id)
    return
  end
  count('dead', 1)
  finish(id, job, 'dead', r, '', '')
  note('queue.dead', id, 'executor_lost', job)
  if job.l ~= '' then make_ready(job.l, job.by) end
end

-- The lease, if it is this consumer's.
local function own(named)
  local lease = read_lease(digits(named.n), named.o)
  return lease and lease.consumer == consumer(named.i) and lease
end

local function submit(job)
  if not H[job.h] then return 'unknown' end
  if accepted[job.id] or call('EXISTS', job_key(job.id)) == 1 then return 'new' end
  if job.ik then
    local other, fp = job_of_key(job.ik)
    if other then
      flush()
      local instances = call('HGET', job_key(other), 'in')
      if fp ~= job.fp then return 'mismatch ' .. other end
      if not instances then return 'gone ' .. other end
      watch(other, instances, job['in'])
      return other
    end
  end
  if is_full[job.ow] or is_full_for(job.ow, job.pb) then
    is_full[job.ow] = true
    return 'full'
  end
  accept(job)
  return 'new'
end

-- Whose lanes became ready by time alone since the last look.
local function look()
  local since = num(known.ticked)
  sets.ticked = int(now)
  flush()
  for h, handler in pairs(H) do
    for _, before in ipairs({0, R.aff}) do
      if not is_paused(h) and call('ZCOUNT', P .. 'ready:' .. h, '(' .. int(since - before), int(now - before)) > 0 then
        ring(handler.g)
      end
    end
    local nearest = call('ZRANGE', P .. 'ready:' .. h, '(' .. int(now), '+inf', 'BYSCORE', 'LIMIT', 0, 1, 'WITHSCORES')[2]
    if nearest then is_due_in(tonumber(nearest) - now) end
  end
end

-- What can be claimed, per handler: its due lanes, oldest first, up to where this call has looked.
local function due_lanes()
  local due = {}
  for h, handler in pairs(H) do
    local room, key = rooms[handler.g] or 0, 'ready:' .. h
    if room > 0 and not is_paused(h) then
      local lanes = {}
      if A.look or num(known['queued:' .. h]) > 0 or has_added[key] then
        local most = R.scan + room
        lanes = call('ZRANGE', P .. key, '-inf', int(now), 'BYSCORE', 'LIMIT', 0, most, 'WITHSCORES')
        if #lanes == 2 * most then takes_all[handler.g] = false end
      end
      -- In the order of these texts: since when, then the member. What this call has made ready, and has taken out again, is
      -- not in the set as it stands.
      local list, gone, fresh = {}, {}, adds[key] or {}
      for _, member in ipairs(removes[key] or {}) do gone[member] = true end
      for at = 1, #lanes, 2 do
        if not gone[lanes[at]] and not fresh[lanes[at]] then list[#list + 1] = digits(lanes[at + 1]) .. lanes[at] end
      end
      for member, score in pairs(fresh) do
        if score <= now_text then list[#list + 1] = score .. member end
      end
      table.sort(list)
      if #list > 0 then due[h] = {lanes = list, at = 1} end
    end
  end
  return due
end

-- True if the lane can be claimed, by an executor that has nothing else meanwhile.
local function runs_alone(lane)
  if figure('suspects') <= 0 then return false end
  local head = is_free(lane) and lane or call('LINDEX', P .. 'q:' .. lane, 0)
  return head and num(call('HGET', job_key(head), 'lo')) >= R.alone
end
local function is_busy(exec)
  for _, leases in pairs(exec.used) do if leases > 0 then return true end end
  return false
end
-- It gets nothing in this call.
local function has_none(exec)
  rooms[exec.g] = rooms[exec.g] - exec.room
  exec.room = 0
end

-- It gets a job that runs alone. Another may be kept free for that.
local function runs_nothing_else(exec)
  has_none(exec)
  ring(next(waits) and exec.g)
end

-- An executor that is kept free stays so while the lane that it waits for can be claimed.
local function keep_waiting()
  if #known.waits < 2 and not sets.waits then return end
  waits = kept_free()
  for _, exec in ipairs(A.execs) do
    local at = waits[exec.k]
    if at then
      local h, member, score = unpack(call('HMGET', book(at.lane), 'h', 'rm', 'rs'))
      if is_busy(exec) and given(member) and num(score) <= now and not is_paused(h) and runs_alone(at.lane) then has_none(exec)
      else waits[exec.k] = nil end
    end
  end
  keep_free(waits)
end

-- Who takes a lane that runs alone: one that has no lease. If there is none, one is kept free for it, of each group at most one
-- at a time: the others go on.
local function taker_alone(h, lane)
  local group, limit, best = H[h].g, H[h].c, nil
  for _, exec in ipairs(A.execs) do
    if exec.g == group and exec.room > 0 and (limit == 0 or (exec.used[h] or 0) < limit) then
      if not is_busy(exec) then
        runs_nothing_else(exec)
        return exec
      end
      best = best or exec
    end
  end
  if not best then return nil end
  for k, at in pairs(waits) do if at.g == group and k ~= best.k then return false end end
  waits[best.k] = {g = group, lane = lane}
  keep_free(waits)
  has_none(best)
  return false
end

-- The next lane that runs alone, for an executor that has just run such a job: it goes on with them while there are any, so that
-- others wait for its leases to end once.
local function preferred(due)
  if figure('suspects') <= 0 then return nil end
  for _, exec in ipairs(A.execs) do
    if exec.pa and exec.room > 0 and not is_busy(exec) then
      local first, of_first, place
      for h, of in pairs(due) do
        for at = of.at, H[h].g == exec.g and #of.lanes or 0 do
          local entry = of.lanes[at]
          if (not first or entry < first) and runs_alone(string.sub(entry, 34)) then first, of_first, place = entry, h, at end
        end
      end
      if first then
        table.remove(due[of_first].lanes, place)
        runs_nothing_else(exec)
        return string.sub(first, 17), of_first, exec, true
      end
    end
  end
end

-- Who takes this lane: the executor that knows its state, else the one with the most room. A lane whose state an executor
-- elsewhere knows is left to that for a moment, if it has room: false. Nil: nobody here can take one of this handler.
local function taker(h, lane, score)
  local group, limit, best = H[h].g, H[h].c, nil
  local maker = not is_free(lane) and call('HGET', P .. 'lane:' .. lane, 'mk')
  for _, exec in ipairs(A.execs) do
    if exec.g == group and exec.room > 0 and (limit == 0 or (exec.used[h] or 0) < limit) then
      if exec.k == maker then return exec end
      if not best or exec.room > best.room then best = exec end
    end
  end
  local elsewhere = best and maker and now < score + R.aff and string.match(maker, '^(%x+)%.')
  if elsewhere and elsewhere ~= A.node and call('SISMEMBER', P .. 'idle:' .. int(group), elsewhere) == 1 then
    is_due_in(score + R.aff - now)
    return false
  end
  return best
end

-- The lane to claim, of all that can be: the one that has been ready for longest; and who takes it.
local function next_lane(due)
  while true do
    local first, of_first
    for h, of in pairs(due) do
      local entry = of.lanes[of.at]
      if entry and rooms[H[h].g] > 0 and (not first or entry < first) then
        first, of_first = entry, h
      end
    end
    if not first then return nil end
    due[of_first].at = due[of_first].at + 1
    local lane, exec, alone = string.sub(first, 34), nil, false
    if not is_free(lane) and not is_sound_lane(lane) then
      zrem('ready:' .. of_first, string.sub(first, 17))
      park_forged(lane, of_first)
      exec = false
    elseif runs_alone(lane) then exec, alone = taker_alone(of_first, lane), true
    else exec = taker(of_first, lane, tonumber(string.sub(first, 1, 16))) end
    if exec then return string.sub(first, 17), of_first, exec, alone end
    takes_all[H[of_first].g] = false
    if exec == nil then due[of_first] = nil end
  end
end

-- The jobs of an ordered lane's next lease: how many depends on what fits a frame. One that is a suspect comes by itself, and
-- so does one that is to be delivered once: none behind it can have begun when it is lost.
local function run_of(lane, h)
  local run, bytes = {}, 0
  for _, id in ipairs(call('LRANGE', P .. 'q:' .. lane, 0, (H[h].d == 1 and 1 or R.run) - 1)) do
    if not is_sound(id) then quarantine(id, h, lane)
    else
      local nb, pb, losses = unpack(call('HMGET', job_key(id), 'nb', 'pb', 'lo'))
      bytes = bytes + num(pb)
      if #run > 0 and (num(nb) > now or bytes > R.mp or num(losses) > 0) then break end
      run[#run + 1] = id
      if num(losses) > 0 then break end
    end
  end
  return run
end

local function leased(id, env, tr, ow, payload, delivery, fence)
  if has_contexts == nil then has_contexts = call('EXISTS', P .. 'mx') == 1 end
  local context = has_contexts and map_load('ctx:' .. tr .. (ow ~= '' and ':' .. ow or ''), R.ctx) or {}
  return {id, env, delivery, fence, context, payload or ''}
end

local function claim(member, h, exec, alone)
  local lane = string.sub(member, 18)
  local free, job = is_free(lane), accepted[lane]
  zrem('ready:' .. h, member)
  if free and not job and not is_sound(lane) then
    quarantine(lane, h, lane)
    return nil
  end
  local run, kind, version, state, signature = free and {lane} or run_of(lane, h), 'none', '0', {}, ''
  if #run == 0 then
    make_ready(lane)
    return nil
  end
  local first = next_number()
  local n = digits(first)
  if not free then
    local maker, v, sg = unpack(call('HMGET', P .. 'lane:' .. lane, 'mk', 'v', 'sg'))
    version, signature = int(num(v)), sg or ''
    call('HSET', P .. 'lane:' .. lane, 'ls', n, 'rm', '')
    if maker == exec.k then kind = 'known' else kind, state = 'whole', map_load(state_map(lane)) end
  end
  local jobs, ends, deadline = {}, lease_ends, nil
  for i, id in ipairs(run) do
    local d, dl, nb, to, env, tr, ow, payload
    if job then d, dl, nb, to, env, tr, ow, payload = 0, 0, now + job.nb, job.to, ARGV[job.env], job.tr, job.ow, ARGV[job.pl]
    else d, dl, nb, to, env, tr, ow, payload = unpack(call('HMGET', job_key(id), 'd', 'dl', 'nb', 'to', 'env', 'tr', 'ow', 'pl')) end
    -- What a stranger has left out is judged by whoever verifies the rest.
    d, dl, nb, to, tr, ow = num(d), num(dl), num(nb), num(to), tr or '', ow or ''
    local fence = int(i == 1 and first or next_number())
    if i == 1 then
      deadline = digits(now + to + R.grace)
      ends = deadline < ends and deadline or ends
    end
    if free then set_job(id, 'ls', n, 'f', fence, 'rm', '', 'lc', exec.k, 'lx', ends, 'ly', deadline, started(id, h, exec.k, dl, d, nb))
    elseif i == 1 then set_job(id, 'ls', n, 'f', fence, started(id, h, exec.k, dl, d, nb))
    else set_job(id, 'ls', n, 'f', fence) end
    jobs[i] = leased(id, env or '', tr, ow, payload, dl + 1, fence)
  end
  if not free then
    call('HSET', P .. 'lease:' .. n, 'c', exec.k, 'l', lane, 'h', h, 'run', table.concat(run), 'x', ends, 'y', deadline)
  end
  zadd('leases', ends, n .. ' ' .. exec.k .. ' ' .. h .. ' ' .. (free and lane or ''))
  exec.used[h] = (exec.used[h] or 0) + 1
  if not alone then
    exec.room = exec.room - 1
    rooms[exec.g] = rooms[exec.g] - 1
  end
  return {n, exec.i, h, kind, version, state, jobs, lane, alone and 1 or 0, signature}
end

-- A lease that this call has claimed before its answer was lost.
local function once_more(n, id, number)
  local lease = read_lease(n, id)
  if not lease or lease.consumer ~= A.node .. '.' .. number or lease.ends <= now then return nil end
  local kind, version, state, jobs, signature = 'none', '0', {}, {}, ''
  if lease.id == '' then
    kind, version, state = 'whole', version_of(lease.lane), map_load(state_map(lease.lane))
    signature = call('HGET', P .. 'lane:' .. lease.lane, 'sg') or ''
  end
  for job in each(lease.run) do
    local dl, f, s, env, tr, ow, payload = unpack(call('HMGET', job_key(job), 'dl', 'f', 's', 'env', 'tr', 'ow', 'pl'))
    jobs[#jobs + 1] = leased(job, env or '', tr or '', ow or '', payload, num(dl) + (s == 'running' and 0 or 1), int(num(f)))
  end
  local alone = num(call('HGET', job_key(first_of(lease.run)), 'lo')) >= R.alone
  return {n, tonumber(number), lease.h, kind, version, state, jobs, lease.lane, alone and 1 or 0, signature}
end

local function turn()
  rooms, takes_all, lease_ends, is_full, has_contexts, waits = {}, {}, digits(now + R.vis), {}, nil, {}
  for _, exec in ipairs(A.execs) do
    exec.k = consumer(exec.i)
    rooms[exec.g] = (rooms[exec.g] or 0) + exec.room
  end
  for _, instance in ipairs(A.here) do here[instance] = true end
  local results, submitted, leases, over, revoked, news = {}, {}, {}, {}, {}, {}
  for _, instance in ipairs(A.closed) do call('DEL', P .. 'inbox:' .. instance) end
  for _, dead in ipairs(A.bury) do bury(dead.id, dead.r) end
  for _, said in ipairs(A.progress) do
    local lease = own(said)
    if lease and lease.ends > now and string.find(lease.run, said.id, 1, true) then
      call('HSET', job_key(said.id), 'pg', ARGV[said.pg])
    end
  end
  for i, c in ipairs(A.commits) do results[i] = commit(c) end
  for _, named in ipairs(A.releases) do
    local lease = own(named)
    if lease and named.how and named.how ~= 'cut' then lose_lease(lease, named.how)
    elseif lease then end_lease(lease, named.how == 'cut') end
  end
  for _, number in ipairs(A.gone) do free(consumer(number) .. ' ') end
  for _, named in ipairs(A.forged) do
    local lease = own(named)
    if lease and named.st then
      end_lease(lease, false)
      park_forged(lease.lane, lease.h)
    elseif lease then
      end_lease(lease, false)
      quarantine(named.id, lease.h, lease.lane, named.env, named.r)
      if lease.id == '' then make_ready(lease.lane) end
    end
  end
  for _, named in ipairs(A.renew) do
    local lease = own(named)
    if lease and lease.ends > now then
      renew(lease)
      count('renewed', 1)
    else over[#over + 1] = named.n end
  end
  for _, gone in ipairs(A.left) do
    flush()
    local mine = {}
    for _, member in ipairs(call('ZRANGE', P .. 'leases', 0, -1)) do
      if string.find(member, ' ' .. gone .. '.', 1, true) then mine[#mine + 1] = member end
    end
    each_lease(mine, function(lease) lose_lease(lease, 'seat') end)
    forget_node(gone)
  end
  if A.sweep or now >= num(known.swept) + R.sweep then
    sets.swept = int(now)
    sweep()
    if is_due() then is_due_in(0) end
  end
  if A.look then look() end
  for i, job in ipairs(A.jobs) do submitted[i] = submit(job) end
  for _, n in ipairs(ran_out) do over[#over + 1] = n end
  local node, before, claims, has_revoked = P .. 'node:' .. A.node, nil, nil, nil
  if A.again or A.look then before, claims, has_revoked = unpack(call('HMGET', node, 'call', 'claims', 'rv')) end
  if A.again and before == A.call then
    for n, id, number in string.gmatch(claims, '(%d+):(%x*):(%d+)') do leases[#leases + 1] = once_more(n, id, number) end
  else
    for group in pairs(rooms) do takes_all[group] = true end
    keep_waiting()
    local due, claimed = due_lanes(), {}
    while true do
      local member, h, exec, alone = preferred(due)
      if not member then member, h, exec, alone = next_lane(due) end
      if not member then break end
      local lease = claim(member, h, exec, alone)
      if lease then
        leases[#leases + 1] = lease
        claimed[#leases] = lease[1] .. ':' .. (lease[4] == 'none' and lease[8] or '') .. ':' .. exec.i
      end
    end
    if #leases > 0 then news = {'call', A.call, 'claims', table.concat(claimed, ' ')} end
  end
  local idle, had_room = {}, {}
  for _, group in ipairs(A.idle) do had_room[group] = true end
  for group, room in pairs(rooms) do
    if room > 0 then idle[#idle + 1], has_room[group] = group, true else takes_all[group] = false end
  end
  for g = 0, R.groups - 1 do
    local was, is = had_room[g], has_room[g]
    if is and (A.facts or not was) then call('SADD', P .. 'idle:' .. int(g), A.node)
    elseif not is and (A.facts or was) then call('SREM', P .. 'idle:' .. int(g), A.node) end
  end
  local opened = {}
  if A.facts then
    for _, fact in ipairs(A.facts) do news[#news + 1] = fact end
    call('ZADD', P .. 'nodes', int(now + R.con), A.node)
    -- A stream that is there, empty: ends are told to those alone. A listener that is gone lets it expire.
    for _, instance in ipairs(A.here) do
      local inbox = P .. 'inbox:' .. instance
      if call('EXISTS', inbox) == 0 then
        call('XADD', inbox, '*', 'j', '')
        call('XTRIM', inbox, 'MAXLEN', 0)
        opened[#opened + 1] = instance
      end
      call('PEXPIRE', inbox, R.inbox)
    end
  end
  if has_revoked == '1' then
    for _, words in ipairs(call('LRANGE', P .. 'revoked:' .. A.node, 0, -1)) do
      local number, n, id = string.match(words, '^(%d+) (%d+) (%x+)$')
      if number then revoked[#revoked + 1] = {number, n, id} end
    end
    call('DEL', P .. 'revoked:' .. A.node)
    news[#news + 1], news[#news + 2] = 'rv', '0'
  end
  if #news > 0 then call('HSET', node, unpack(news)) end
  done(nil, takes_all)
  local dying = figure('dying') > 0 and call('ZRANGE', P .. 'dying', 0, 15) or {}
  return {results, submitted, leases, over, revoked, ends, notices, idle, soonest and int(math.max(0, soonest)) or false, opened, dying}
end

callable('turn', turn)
-- The same where jobs are submitted: refused when the server's memory is used up. What runs can still end, which frees some.
callable('submit', turn, {})
