#!/usr/bin/env ruby
# A worker in Ruby: a JSON line a job in, a JSON line out. docs/workers.md says what stands in them.
require "json"

$stdout.sync = true
$stdin.each_line do |line|
  job = JSON.parse(line)
  text = job["payload"]["text"] if job["payload"].is_a?(Hash)
  if text.is_a?(String)
    seen = job["state"].fetch("seen", "0").to_i + 1
    answer = { id: job["id"], ok: { seen: seen, text: text.upcase }, set: { seen: seen.to_s } }
  else
    answer = { id: job["id"], error: "text is missing" }
  end
  puts JSON.generate(answer)
rescue StandardError => error
  # The line begins with {"id":"…": a job that Ruby cannot read fails by that, and takes no worker along.
  puts JSON.generate({ id: line[7, 32], error: error.message.scrub })
end
