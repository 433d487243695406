-- POST of 0.5 KB of JSON; the summary is one line of JSON, times in microseconds.
local filler = string.rep("All work and no play makes a dull load test. ", 12)
local head = '{"model":"stand-in","max_tokens":16,"messages":[{"role":"user","content":"'
local tail = '"}]}'

wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = head .. filler:sub(1, 512 - #head - #tail) .. tail

function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    'RESULT {"requests":%d,"duration_us":%d,"p50_us":%d,"p99_us":%d,"errors":%d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout))
end
