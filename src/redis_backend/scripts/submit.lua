-- Accepts jobs; each is accepted or refused on its own, but after one that found the queue full none of the call is.
--
-- "jobs"   list of {id, h(andler), lane, ow(ner), in(stance), aw(aited), tr(ace), nb: us from now, pb: payload bytes,
--          env: index of the signed envelope, ik, fp: idempotency scope and fingerprint, or absent}
-- Answers  a list: "new", "full", "unknown", "mismatch", or the id of the job that has the key
-- Repeatable: a job that is there already is "new".

local full = false
local out = {}
for i, job in ipairs(A.jobs) do
  local verdict = 'new'
  if not H[job.h] then verdict = 'unknown'
  elseif call('EXISTS', job_key(job.id)) == 1 then verdict = 'new'
  else
    local known = job.ik and call('GET', P .. 'idem:' .. job.ik)
    if known then
      verdict = call('HGET', job_key(known), 'fp') == job.fp and known or 'mismatch'
    elseif full or figure('queued') >= R.cap or figure('bytes') + job.pb > R.bytes then
      verdict, full = 'full', true
    else
      accept(job, ARGV[job.env])
    end
  end
  out[i] = verdict
end
return out
