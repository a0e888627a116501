-- Sends the lab's UDP flows with Pktgen-DPDK: from the clients (port 0) to the servers, and back (port 1).
--
--   pktgen -l 0-4 -n 4 -- -P -m "[1:2].0,[3:4].1" -f bench/lab/pktgen.lua
--
-- 250 clients with 41 ports each: 10,250 flows. Addresses and ports count at once, so all pairs come only if the numbers of both have no
-- common divisor. Change the first lines for others.
package.path = package.path .. ";?.lua;test/?.lua;app/?.lua"
require "Pktgen"

local size, rate, seconds = 64, 10, 30 -- bytes with the FCS, percent of the line, seconds
local ports = { first = 1024, count = 41 }

local clients = { first = "198.18.0.1", last = "198.18.0.250" }
local server = "10.244.0.1"

pktgen.stop("all")
pktgen.clear("all")
for port = 0, 1 do
  local name = tostring(port)
  local from, to = "src", "dst"
  if port == 1 then
    from, to = "dst", "src"
  end
  pktgen.range.ip_proto(name, "udp")
  for step, address in pairs { start = clients.first, min = clients.first, max = clients.last, inc = "0.0.0.1" } do
    pktgen.range[from .. "_ip"](name, step, address)
  end
  for step, address in pairs { start = server, min = server, max = server, inc = "0.0.0.0" } do
    pktgen.range[to .. "_ip"](name, step, address)
  end
  local last = ports.first + ports.count - 1
  for step, number in pairs { start = ports.first, min = ports.first, max = last, inc = 1 } do
    pktgen.range[from .. "_port"](name, step, number)
  end
  for step, number in pairs { start = 9, min = 9, max = 9, inc = 0 } do
    pktgen.range[to .. "_port"](name, step, number)
  end
  pktgen.range.pkt_size(name, "start", size)
  pktgen.range.pkt_size(name, "min", size)
  pktgen.range.pkt_size(name, "max", size)
  pktgen.range.pkt_size(name, "inc", 0)
  pktgen.set(name, "rate", rate)
  pktgen.set_range(name, "on")
end

pktgen.start("all")
pktgen.delay(seconds * 1000)
pktgen.stop("all")
pktgen.delay(1000)
prints("ports", pktgen.portStats("all", "port"))
