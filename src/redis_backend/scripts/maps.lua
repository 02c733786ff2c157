-- Named maps (ports::KeyValue).
--
-- "do"     "load" {map, ttl} | "get" {map, key: index} | "apply" {map, ch: changes, ttl} | "delete" {map}; ttl in us or absent
-- Answers  a flat list of entries; a value or nil; "ok"

local what = A['do']
if what == 'load' then return map_load(A.map, A.ttl)
elseif what == 'get' then return map_lives(A.map) and call('HGET', P .. 'm:' .. A.map, ARGV[A.key])
elseif what == 'apply' then map_apply(A.map, A.ch, A.ttl); return 'ok'
else map_free(A.map); return 'ok' end
