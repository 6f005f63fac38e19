-- Lets each piece of a stream leave at once. nginx does this for what it proxies itself; here a
-- connection inherits it from the socket that listens. Runs in each worker.

local ffi = require "ffi"

ffi.cdef [[
int getsockopt(int fd, int level, int name, void *value, uint32_t *length);
int setsockopt(int fd, int level, int name, const void *value, uint32_t length);
]]

local SOL_SOCKET, SO_ACCEPTCONN, IPPROTO_TCP, TCP_NODELAY = 1, 30, 6, 1 -- Linux
local FIRST_FILES = 64 -- the listening sockets are among the first files a worker has

return function()
    local value, length = ffi.new("int[1]"), ffi.new("uint32_t[1]")
    for fd = 0, FIRST_FILES do
        value[0], length[0] = 0, 4
        local found = ffi.C.getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, value, length)
        if found == 0 and value[0] == 1 then
            ffi.C.setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, value, 4)
        end
    end
end
