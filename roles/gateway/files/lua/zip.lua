-- zlib, which nginx itself uses; without it nothing is packed.

local ffi = require "ffi"

ffi.cdef [[
unsigned long compressBound(unsigned long size);
int compress2(unsigned char *to, unsigned long *room, const char *from, unsigned long size,
              int level);
int uncompress(unsigned char *to, unsigned long *room, const char *from, unsigned long size);
]]

local C = ffi.C
local there = pcall(function() return C.compress2, C.uncompress, C.compressBound end)

local LEVEL = 1 -- the fastest

local zip = {}

-- Returns the packed text, or nil where that is not shorter.
function zip.pack(text)
    if not there then
        return nil
    end
    local room = ffi.new("unsigned long[1]", C.compressBound(#text))
    local packed = ffi.new("unsigned char[?]", room[0])
    if C.compress2(packed, room, text, #text, LEVEL) == 0 and room[0] < #text then
        return ffi.string(packed, room[0])
    end
end

-- Returns the text of `size` bytes, or nil where it is damaged.
function zip.unpack(packed, size)
    if not there then
        return nil
    end
    local room = ffi.new("unsigned long[1]", size)
    local text = ffi.new("unsigned char[?]", size)
    if C.uncompress(text, room, packed, #packed) == 0 and room[0] == size then
        return ffi.string(text, size)
    end
end

return zip
