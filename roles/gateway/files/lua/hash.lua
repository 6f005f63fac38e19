-- SHA-256 and a comparison in constant time, from the libcrypto that nginx itself uses.

local ffi = require "ffi"

ffi.cdef [[
unsigned char *SHA256(const unsigned char *data, size_t length, unsigned char *digest);
int CRYPTO_memcmp(const void *a, const void *b, size_t length);
]]

local C = ffi.C
local digest = ffi.new("unsigned char[32]")

local hash = {}

function hash.sha256(data)
    C.SHA256(data, #data, digest)
    return ffi.string(digest, 32)
end

function hash.hex(bytes)
    return (bytes:gsub(".", function(byte) return ("%02x"):format(byte:byte()) end))
end

function hash.from_hex(text)
    return (text:gsub("%x%x", function(pair) return string.char(tonumber(pair, 16)) end))
end

function hash.equal(a, b)
    return #a == #b and C.CRYPTO_memcmp(a, b, #a) == 0
end

return hash
