-- Commits what is finished, each commit judged on its own, then claims as much as there is room for.
--
-- "con"      the consumer; "g" its group; "room" leases at most; "tokens" a fresh token for each of them
-- "commits"  list of {n: lease, t: token, id, d: delivery, v: version it builds on, s: status or "retry" or "crashed",
--            r: index of the signed outcome (for retry and crashed: that of a dead job), j: jitter 0 to 1,
--            st, cx: changes {index of key, index of value or 0}, lane state and context, ctx: the context's map,
--            fu: follow-ups as in submit, lv: limits kept (else "why": index of the signed failure, status failed)}
-- Answers    {commits: list of "committed" | "again" | "fenced",
--             leases: list of {n, token, h, kind, version, state, jobs: list of {id, env, d, f, sub, context}},
--             revoked: list of "n id", notices: list of {event, id, cause}}

-- One that was silent for long was forgotten; its leases have run out. It begins anew.
local con = P .. 'con:' .. A.con
call('HSETNX', con, 'g', A.g)
call('ZADD', P .. 'cons', int(now + R.con), A.con)

local function too_late(c)
  local token, delivery = unpack(call('HMGET', job_key(c.id), 'ct', 'cd'))
  if token == c.t and tonumber(delivery) == c.d then count('duplicate', 1); return 'again' end
  count('late', 1)
  if call('EXISTS', job_key(c.id)) == 1 then answers[#answers + 1] = {'reply.late_dropped', c.id, 'fenced'} end
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
    if not H[h].o then return 1 end
    if map_bytes_after(state_map(lane), c.st) > R.lsm then return 2 end
  end
  if c.cx and #c.cx > 0 and map_bytes_after(c.ctx, c.cx) > R.ctxm then return 3 end
  return follow_ups_known(c) and 0 or 4
end

local function next_of_run(n, lane)
  call('LPOP', P .. 'run:' .. n)
  local ends = int(now + R.vis)
  local following = call('LINDEX', P .. 'run:' .. n, 0)
  if following then
    call('ZADD', P .. 'leases', ends, n)
    start(following, call('HGET', job_key(following), 'h'))
    return
  end
  local _, _, _, consumer = remove_lease(n)
  -- Complete: whoever ran it holds the lane's state as it is now.
  call('HSET', lane_key(lane), 'mk', consumer)
end

local function commit(c)
  local token, consumer, lane, h = unpack(call('HMGET', P .. 'lease:' .. c.n, 't', 'c', 'l', 'h'))
  local ends = call('ZSCORE', P .. 'leases', c.n)
  if token ~= c.t or consumer ~= A.con or not ends or tonumber(ends) <= now then return too_late(c) end
  local d = tonumber(call('HGET', job_key(c.id), 'd') or '-1')
  local version = call('HGET', lane_key(lane), 'v') or '0'
  if call('LINDEX', P .. 'run:' .. c.n, 0) ~= c.id or d ~= c.d or (H[h].o and version ~= c.v) then
    local answer = too_late(c)
    if answer == 'fenced' then end_lease(c.n) end
    return answer
  end
  local why = refused(c, h, lane)
  call('HSET', job_key(c.id), 'ct', c.t, 'cd', c.d)
  local goes_on = false
  if why > 0 then
    finish(c.id, 'failed', ARGV[c.no[why]])
  elseif c.s == 'retry' then again(c.id, 'retries_exhausted', ARGV[c.r], c.j)
  elseif c.s == 'crashed' then again(c.id, 'handler_crashed', ARGV[c.r], c.j)
  else
    if c.s == 'succeeded' then
      if c.st and #c.st > 0 then
        call('HSET', lane_key(lane), 'v', call('HGET', job_key(c.id), 'f'))
        map_apply(state_map(lane), c.st)
      end
      if c.cx and #c.cx > 0 then map_apply(c.ctx, c.cx, R.ctx) end
      for _, job in ipairs(c.fu or {}) do accept(job, ARGV[job.env]) end
    end
    if c.s == 'succeeded' or c.s == 'failed' then
      call('HDEL', lane_key(lane), 'ca')
      goes_on = true
    end
    finish(c.id, c.s, ARGV[c.r])
  end
  if goes_on then next_of_run(c.n, lane) else end_lease(c.n) end
  make_ready(lane)
  return 'committed'
end

-- The lane to claim: of all that this consumer may take, the one that has been ready for longest.
local function next_lane(held)
  local best, best_score, best_h
  for h, handler in pairs(H) do
    local free = handler.c == 0 or (held[h] or 0) < handler.c
    if handler.g == A.g and free and call('SISMEMBER', P .. 'paused', h) == 0 then
      local due = call('ZRANGE', P .. 'ready:' .. h, '-inf', int(now), 'BYSCORE', 'LIMIT', 0, R.scan, 'WITHSCORES')
      for i = 1, #due, 2 do
        local member, score = due[i], tonumber(due[i + 1])
        local maker = handler.o and call('HGET', lane_key(string.sub(member, 18)), 'mk')
        local left = maker and maker ~= A.con and now < score + R.aff
          and tonumber(call('HGET', P .. 'con:' .. maker, 'room') or '0') > 0
        if not left then
          if not best or score < best_score or (score == best_score and member < best) then
            best, best_score, best_h = member, score, h
          end
          break
        end
      end
    end
  end
  return best and string.sub(best, 18), best_h
end

-- The jobs of the next lease: how many depends on what went wrong before, and on what fits a frame.
local function run_of(lane, h)
  local most = (H[h].d == 1 or call('HEXISTS', lane_key(lane), 'ca') == 1) and 1 or R.run
  local run, bytes = {}, 0
  for i, id in ipairs(call('LRANGE', P .. 'q:' .. lane, 0, most - 1)) do
    local nb, pb = unpack(call('HMGET', job_key(id), 'nb', 'pb'))
    bytes = bytes + tonumber(pb)
    if i > 1 and (tonumber(nb) > now or bytes > R.mp) then break end
    run[i] = id
  end
  return run
end

local function claim(lane, h, token)
  local n = next_number()
  local run = run_of(lane, h)
  local maker, version, member = unpack(call('HMGET', lane_key(lane), 'mk', 'v', 'rm'))
  call('ZREM', P .. 'ready:' .. h, member)
  call('HDEL', lane_key(lane), 'rs', 'rm')
  call('HSET', lane_key(lane), 'ls', n)
  local kind, state = 'none', {}
  if H[h].o then
    if maker == A.con then kind = 'known' else kind, state = 'whole', map_load(state_map(lane)) end
  end
  local fence = take_fences(#run)
  local jobs = {}
  for i, id in ipairs(run) do
    call('HSET', job_key(id), 'ls', n, 'f', int(fence + i - 1))
    call('RPUSH', P .. 'run:' .. n, id)
    local env, d, sub, tr, ow = unpack(call('HMGET', job_key(id), 'env', 'd', 'sub', 'tr', 'ow'))
    local context = map_load('ctx:' .. tr .. (ow ~= '' and ':' .. ow or ''), R.ctx)
    jobs[i] = {id, env, tonumber(d) + 1, int(fence + i - 1), sub, context}
  end
  call('HSET', P .. 'lease:' .. n, 't', token, 'c', A.con, 'l', lane, 'h', h)
  call('ZADD', P .. 'leases', int(now + R.vis), n)
  call('ZADD', P .. 'held:' .. A.con, n, n)
  start(run[1], h)
  return {n, token, h, kind, version or '0', state, jobs}
end

local results, leases = {}, {}
for i, c in ipairs(A.commits) do results[i] = commit(c) end
sweep('')
local held = {}
for _, n in ipairs(call('ZRANGE', P .. 'held:' .. A.con, 0, -1)) do
  local h = call('HGET', P .. 'lease:' .. n, 'h')
  if h then held[h] = (held[h] or 0) + 1 end
end
while #leases < A.room do
  local lane, h = next_lane(held)
  if not lane then break end
  held[h] = (held[h] or 0) + 1
  leases[#leases + 1] = claim(lane, h, A.tokens[#leases + 1])
end
call('HSET', con, 'room', A.room - #leases, 'busy', A.busy or 0)
local revoked = call('LRANGE', P .. 'revoked:' .. A.con, 0, -1)
call('DEL', P .. 'revoked:' .. A.con)
return {results, leases, revoked, answers}
