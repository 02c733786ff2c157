-- Accepts jobs; each is accepted or refused on its own, but after one that found the queue full none of the call is.
--
-- "jobs"   list of jobs as "accept" takes them
-- Answers  a list: "new", "full", "unknown", "mismatch", or the id of the job that has the key, whose end the submitter's
--          instance hears of
-- Repeatable: a job that is there already is "new".

local queued, bytes = unpack(call('HMGET', P .. 'count', 'queued', 'bytes'))
local full = false
queued, bytes = num(queued), num(bytes)
local out = {}
for i, job in ipairs(A.jobs) do
  local verdict = 'new'
  if not H[job.h] then verdict = 'unknown'
  elseif call('EXISTS', job_key(job.id)) == 0 then
    local known = job.ik and call('GET', P .. 'idem:' .. job.ik)
    local fp, instances = false, false
    if known then fp, instances = unpack(call('HMGET', job_key(known), 'fp', 'in')) end
    if fp then
      verdict = fp == job.fp and known or 'mismatch'
      if fp == job.fp then watch(known, instances, job['in']) end
    elseif full or queued >= R.cap or bytes + job.pb > R.bytes then
      verdict, full = 'full', true
    else
      accept(job)
      queued, bytes = queued + 1, bytes + job.pb
    end
  end
  out[i] = verdict
end
return done(out)
