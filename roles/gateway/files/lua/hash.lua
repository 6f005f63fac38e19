-- SHA-256 and a comparison in constant time, from the libcrypto that nginx itself uses.

local ffi = require "ffi"

ffi.cdef [[
unsigned char *SHA256(const unsigned char *data, size_t length, unsigned char *digest);
int CRYPTO_memcmp(const void *a, const void *b, size_t length);
]]

local C = ffi.C
local digest = ffi.new("unsigned char[32]")

local hash = {}

-- Of a text, or of its bytes from..to, which need no copy.
function hash.sha256(data, from, to)
    from = from or 1
    C.SHA256(ffi.cast("const unsigned char *", data) + from - 1, (to or #data) - from + 1, digest)
    return ffi.string(digest, 32)
end

local HEX = {}
for byte = 0, 255 do
    HEX[string.char(byte)] = ("%02x"):format(byte)
end

function hash.hex(bytes)
    return (bytes:gsub(".", HEX))
end

function hash.from_hex(text)
    return (text:gsub("%x%x", function(pair) return string.char(tonumber(pair, 16)) end))
end

function hash.equal(a, b)
    return #a == #b and C.CRYPTO_memcmp(a, b, #a) == 0
end

return hash
