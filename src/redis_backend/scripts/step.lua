-- Commits what is finished, each commit judged on its own; gives back what is not wanted; then claims as much as there is
-- room for.
--
-- "con"      the consumer; "g" its group; "facts" of its process; "call" this call's name; "room" leases at most;
--            "token" 28 random characters, which 4 for the lease's place in this call follow; "rc" as in "broken"
-- "commits"  list of {n: lease, t: token, id, d: delivery, v: version it builds on, s: status or "retry" or "crashed",
--            r: index of the signed outcome (for retry and crashed: that of a dead job), j: jitter 0 to 1,
--            st, cx: changes {index of key, index of value or 0}, lane state and context, ctx: the context's map,
--            fu: follow-ups as in submit, no: indices of the signed failures, see "refused"}
-- "releases" list of {n, t, o: the job of an unordered lease or ""}
-- Answers    {commits: list of "committed" | "again" | "fenced",
--             leases: list of {n, token, h, kind, version, state, jobs: list of {id, env, d, f, context, pl}, lane},
--             revoked: list of "n id", notices: list of {event, id, cause, trace}}
-- Repeatable: commits that held are "again", and the leases that the same call has claimed are given once more.

local node = P .. 'node:' .. A.con

local function version_of(lane) return int(num(call('HGET', P .. 'lane:' .. lane, 'v'))) end

local function too_late(c, job)
  if job and job.ct == c.t and tonumber(job.cd) == c.d then
    count('duplicate', 1)
    note('reply.duplicate_dropped', c.id, 'repeated', job.tr)
    return 'again'
  end
  count('late', 1)
  if job then note('reply.late_dropped', c.id, 'fenced', job.tr) end
  return 'fenced'
end

local function follow_ups_known(c)
  for _, job in ipairs(c.fu or {}) do if not H[job.h] then return false end end
  return true
end

-- Why the effects cannot be applied, as an index of the failure in "no"; 0 if they can.
local function refused(c, h, lane)
  if c.s ~= 'succeeded' then return 0 end
  if c.st and #c.st > 0 then
    if is_free(lane) then return 1 end
    if map_bytes_after(state_map(lane), c.st) > R.lsm then return 2 end
  end
  if c.cx and #c.cx > 0 and map_bytes_after(c.ctx, c.cx) > R.ctxm then return 3 end
  return follow_ups_known(c) and 0 or 4
end

local function next_of_run(lease)
  lease.run = string.sub(lease.run, 33)
  local following = first_of(lease.run)
  if following then
    call('HSET', P .. 'lease:' .. lease.n, 'run', lease.run)
    renew(lease)
    local job = read_job(following)
    call('HSET', job_key(following), started(job.h, job.d, job.nb))
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
  local lease = read_lease(c.n, job and job.l == '' and c.id or '', job)
  if not lease or lease.token ~= c.t or lease.consumer ~= A.con or lease.ends <= now then return too_late(c, job) end
  local lane, ordered = lease.lane, lease.id == ''
  local version = ordered and version_of(lane)
  if not job or first_of(lease.run) ~= c.id or job.d ~= c.d or (ordered and version ~= c.v) then
    local answer = too_late(c, job)
    if answer == 'fenced' then end_lease(lease) end
    return answer
  end
  local why = refused(c, lease.h, lane)
  local goes_on, delivery = false, int(c.d)
  if why > 0 then finish(c.id, job, 'failed', ARGV[c.no[why]], c.t, delivery)
  elseif c.s == 'retry' then again(c.id, job, 'retries_exhausted', ARGV[c.r], c.j, c.t, delivery)
  elseif c.s == 'crashed' then again(c.id, job, 'handler_crashed', ARGV[c.r], c.j, c.t, delivery)
  else
    if c.s == 'succeeded' then
      if c.st and #c.st > 0 then
        call('HSET', P .. 'lane:' .. lane, 'v', int(num(job.f)))
        map_apply(state_map(lane), c.st)
      end
      if c.cx and #c.cx > 0 then map_apply(c.ctx, c.cx, R.ctx) end
      for _, follow_up in ipairs(c.fu or {}) do
        follow_up['in'] = job['in']
        accept(follow_up)
      end
    end
    if c.s == 'succeeded' or c.s == 'failed' then
      if ordered then call('HDEL', P .. 'lane:' .. lane, 'ca') end
      goes_on = true
    end
    finish(c.id, job, c.s, ARGV[c.r], c.t, delivery)
  end
  if goes_on then next_of_run(lease) else end_lease(lease) end
  return 'committed'
end

local ends = int(now + R.vis)

-- What can be claimed, per handler of the group: its due lanes, oldest first, up to where this consumer has looked.
local function due_lanes()
  local due, has_limit = {}, false
  for h, handler in pairs(H) do
    if handler.g == A.g and not is_paused(h) then
      local lanes = call('ZRANGE', P .. 'ready:' .. h, '-inf', int(now), 'BYSCORE', 'LIMIT', 0, (handler.o and R.scan or 0) + A.room, 'WITHSCORES')
      if #lanes > 0 then
        due[h] = {lanes = lanes, at = 1, room = handler.c > 0 and handler.c or math.huge}
        has_limit = has_limit or handler.c > 0
      end
    end
  end
  if not has_limit then return due end
  for _, member in ipairs(call('ZRANGE', P .. 'leases', 0, -1)) do
    local consumer, h = string.match(member, '^%S+ (%S+) (%S+) ')
    if consumer == A.con and due[h] then due[h].room = due[h].room - 1 end
  end
  return due
end

-- A lane is left for a moment to the executor that knows its state, if that has room.
local rooms = {}
local function left_to_another(lane, score)
  if is_free(lane) or now >= score + R.aff then return false end
  local maker = call('HGET', P .. 'lane:' .. lane, 'mk')
  if not maker or maker == A.con then return false end
  rooms[maker] = rooms[maker] or num(call('HGET', P .. 'node:' .. maker, 'room'))
  return rooms[maker] > 0
end

-- The lane to claim: of all that this consumer may take, the one that has been ready for longest.
local function next_lane(due)
  local best, best_score, best_h
  for h, of in pairs(due) do
    while of.room > 0 and of.at < #of.lanes do
      local member, score = of.lanes[of.at], tonumber(of.lanes[of.at + 1])
      if not left_to_another(string.sub(member, 18), score) then
        if not best or score < best_score or (score == best_score and member < best) then
          best, best_score, best_h = member, score, h
        end
        break
      end
      of.at = of.at + 2
    end
  end
  if best then
    due[best_h].at = due[best_h].at + 2
    due[best_h].room = due[best_h].room - 1
  end
  return best, best_h
end

-- The jobs of an ordered lane's next lease: how many depends on what went wrong before, and on what fits a frame.
local function run_of(lane, h)
  local most = (H[h].d == 1 or call('HEXISTS', P .. 'lane:' .. lane, 'ca') == 1) and 1 or R.run
  local run, bytes = {}, 0
  for _, id in ipairs(call('LRANGE', P .. 'q:' .. lane, 0, most - 1)) do
    if not is_sound(id) then quarantine(id, h, lane)
    else
      local nb, pb = unpack(call('HMGET', job_key(id), 'nb', 'pb'))
      bytes = bytes + num(pb)
      if #run > 0 and (num(nb) > now or bytes > R.mp) then break end
      run[#run + 1] = id
    end
  end
  return run
end

local has_contexts
local function leased(id, env, tr, ow, payload, delivery, fence)
  if has_contexts == nil then has_contexts = call('EXISTS', P .. 'mx') == 1 end
  local context = has_contexts and map_load('ctx:' .. tr .. (ow ~= '' and ':' .. ow or ''), R.ctx) or {}
  return {id, env, delivery, fence, context, payload or ''}
end

local function claim(member, h, token)
  local lane = string.sub(member, 18)
  local free = is_free(lane)
  zrem('ready:' .. h, member)
  if free and not is_sound(lane) then
    quarantine(lane, h, lane)
    return nil
  end
  local run, kind, version, state = free and {lane} or run_of(lane, h), 'none', '0', {}
  if #run == 0 then
    make_ready(lane)
    return nil
  end
  local first = next_number()
  local n = digits(first)
  if not free then
    local maker, v = unpack(call('HMGET', P .. 'lane:' .. lane, 'mk', 'v'))
    version = int(num(v))
    call('HSET', P .. 'lane:' .. lane, 'ls', n, 'rm', '')
    if maker == A.con then kind = 'known' else kind, state = 'whole', map_load(state_map(lane)) end
    call('HSET', P .. 'lease:' .. n, 't', token, 'c', A.con, 'l', lane, 'h', h, 'run', table.concat(run), 'x', ends)
  end
  local jobs = {}
  for i, id in ipairs(run) do
    local d, nb, env, tr, ow, payload = unpack(call('HMGET', job_key(id), 'd', 'nb', 'env', 'tr', 'ow', 'pl'))
    -- What a stranger has left out is judged by whoever verifies the rest.
    d, nb, tr, ow = num(d), num(nb), tr or '', ow or ''
    local fence = int(i == 1 and first or next_number())
    if free then
      call('HSET', job_key(id), 'ls', n, 'f', fence, 'rm', '', 'lt', token, 'lc', A.con, 'lx', ends, started(h, d, nb))
    elseif i == 1 then call('HSET', job_key(id), 'ls', n, 'f', fence, started(h, d, nb))
    else call('HSET', job_key(id), 'ls', n, 'f', fence) end
    jobs[i] = leased(id, env, tr, ow, payload, d + 1, fence)
  end
  zadd('leases', ends, n .. ' ' .. A.con .. ' ' .. h .. ' ' .. (free and lane or ''))
  return {n, token, h, kind, version, state, jobs, lane}
end

-- A lease that this call has claimed before its answer was lost.
local function once_more(n, id)
  local lease = read_lease(n, id)
  if not lease or lease.consumer ~= A.con or lease.ends <= now then return nil end
  local kind, version, state, jobs = 'none', '0', {}, {}
  if lease.id == '' then
    kind, version, state = 'whole', version_of(lease.lane), map_load(state_map(lease.lane))
  end
  for job in each(lease.run) do
    local d, f, s, env, tr, ow, payload = unpack(call('HMGET', job_key(job), 'd', 'f', 's', 'env', 'tr', 'ow', 'pl'))
    jobs[#jobs + 1] = leased(job, env, tr, ow, payload, num(d) + (s == 'running' and 0 or 1), int(num(f)))
  end
  return {n, lease.token, lease.h, kind, version, state, jobs, lease.lane}
end

local function append(fields, ...)
  for _, value in ipairs({...}) do fields[#fields + 1] = value end
end

local group, room, before, claims, seen, swept, has_revoked, counted =
  unpack(call('HMGET', node, 'g', 'room', 'call', 'claims', 'seen', 'swept', 'rv', 'rc'))
local results, leases, news = {}, {}, {}
for i, c in ipairs(A.commits) do results[i] = commit(c) end
for _, r in ipairs(A.releases) do
  local lease = read_lease(r.n, r.o)
  if lease and lease.token == r.t and lease.consumer == A.con then end_lease(lease) end
end
-- Others sweep too, and a commit looks at its own lease's end.
if now >= num(swept) + R.sweep then
  sweep()
  append(news, 'swept', int(now))
end
if before == A.call then
  for n, id in string.gmatch(claims, '(%d+):(%x*)') do leases[#leases + 1] = once_more(n, id) end
elseif A.room > 0 then
  flush()
  local due, claimed = due_lanes(), {}
  while #leases < A.room do
    local member, h = next_lane(due)
    if not member then break end
    local lease = claim(member, h, A.token .. string.format('%04x', #leases))
    if lease then
      leases[#leases + 1] = lease
      claimed[#leases] = lease[1] .. ':' .. (lease[4] == 'none' and lease[7][1][1] or '')
    end
  end
  if #leases > 0 then append(news, 'call', A.call, 'claims', table.concat(claimed, ' ')) end
end
-- What others read of this node changes seldom.
local has_room = A.room > #leases and '1' or '0'
if room ~= has_room then append(news, 'room', has_room) end
if not group then append(news, 'g', A.g, unpack(A.facts)) end
if not group or now >= num(seen) + 1000000 then
  append(news, 'seen', int(now))
  call('ZADD', P .. 'nodes', int(now + R.con), A.con)
end
local revoked = {}
if has_revoked == '1' then
  revoked = call('LRANGE', P .. 'revoked:' .. A.con, 0, -1)
  call('DEL', P .. 'revoked:' .. A.con)
  append(news, 'rv', '0')
end
if broken(counted) then append(news, 'rc', A.call) end
if #news > 0 then call('HSET', node, unpack(news)) end
return done({results, leases, revoked, notices})
