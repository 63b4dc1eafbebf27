-- What scripts see of a stream (envoyproxy.io: http_filters/lua_filter#stream-handle-api).
--
-- Methods that wait yield to the host, which resumes them with what they wait for. `host` holds the host's functions;
-- what this chunk returns makes a stream and the coroutine that is its run.

local host = ...

local function class()
    local methods = {}
    methods.__index = methods
    return methods
end

local function text(value, what)
    local kind = type(value)
    if kind == "string" then
        return value
    elseif kind == "number" then
        return tostring(value)
    end
    error("bad argument: " .. what .. " must be a string, not " .. kind, 3)
end

-- Headers: `list` holds name and value in turn, `changed` says that a script has changed them, `frozen` that it may not.
local Headers = class()

local function changing(headers)
    if headers.frozen then
        error("header map can no longer be modified", 3)
    end
    headers.changed = true
end

function Headers:add(name, value)
    name, value = text(name, "the name"):lower(), text(value, "the value")
    changing(self)
    local list = self.list
    list[#list + 1] = name
    list[#list + 1] = value
end

function Headers:get(name)
    name = text(name, "the name"):lower()
    local found
    for at = 1, #self.list, 2 do
        if self.list[at] == name then
            found = found and found .. "," .. self.list[at + 1] or self.list[at + 1]
        end
    end
    -- As in Envoy, what is not there is no value, not even nil.
    if found then
        return found
    end
end

function Headers:getAtIndex(name, index)
    name = text(name, "the name"):lower()
    for at = 1, #self.list, 2 do
        if self.list[at] == name then
            if index == 0 then
                return self.list[at + 1]
            end
            index = index - 1
        end
    end
end

function Headers:getNumValues(name)
    name = text(name, "the name"):lower()
    local count = 0
    for at = 1, #self.list, 2 do
        if self.list[at] == name then
            count = count + 1
        end
    end
    return count
end

local function without(list, name)
    local kept = {}
    for at = 1, #list, 2 do
        if list[at] ~= name then
            kept[#kept + 1] = list[at]
            kept[#kept + 1] = list[at + 1]
        end
    end
    return kept
end

function Headers:remove(name)
    name = text(name, "the name"):lower()
    changing(self)
    self.list = without(self.list, name)
end

function Headers:replace(name, value)
    name, value = text(name, "the name"):lower(), text(value, "the value")
    changing(self)
    local kept, placed = {}, false
    for at = 1, #self.list, 2 do
        if self.list[at] ~= name then
            kept[#kept + 1] = self.list[at]
            kept[#kept + 1] = self.list[at + 1]
        elseif not placed then
            placed = true
            kept[#kept + 1] = name
            kept[#kept + 1] = value
        end
    end
    if not placed then
        kept[#kept + 1] = name
        kept[#kept + 1] = value
    end
    self.list = kept
end

function Headers:__pairs()
    local list, at = self.list, -1
    return function()
        at = at + 2
        return list[at], list[at + 1]
    end
end

local function headers_of(list)
    return setmetatable({ list = list }, Headers)
end

-- A body, or a piece of one.
local Buffer = class()

function Buffer:length()
    return #self.bytes
end

function Buffer:getBytes(index, length)
    if index < 0 or length < 0 or index + length > #self.bytes then
        error("index/length must be >= 0 and (index + length) must be <= buffer size", 2)
    end
    return self.bytes:sub(index + 1, index + length)
end

function Buffer:setBytes(bytes)
    self.bytes = text(bytes, "the body")
    self.changed = true
    return #self.bytes
end

-- A table that is read only by `get` and by `pairs`.
local Map = class()

function Map:get(key)
    local value = self.entries[key]
    if value ~= nil then
        return value
    end
end

function Map:__pairs()
    return next, self.entries, nil
end

local function map(entries)
    return setmetatable({ entries = entries or {} }, Map)
end

-- Metadata of the stream, by filter.
local Dynamic = class()

function Dynamic:get(filter)
    local fields = self.stream:metadata_now()[filter]
    if fields then
        return fields
    end
end

function Dynamic:set(filter, key, value)
    filter, key = text(filter, "the filter's name"), text(key, "the key")
    host.value(value)
    local now = self.stream:metadata_now()
    now[filter] = now[filter] or {}
    now[filter][key] = value
    local set = self.stream.set
    set[#set + 1] = { filter, key, value }
end

function Dynamic:__pairs()
    return next, self.stream:metadata_now(), nil
end

-- What has a method for each of its facts, which the host knows.
local function facts(names)
    local methods = class()
    for _, name in ipairs(names) do
        methods[name] = function(self)
            return self.stream.look(self.of .. name)
        end
    end
    return methods
end

local Ssl = facts({
    "peerCertificatePresented", "peerCertificateValidated", "uriSanLocalCertificate", "uriSanPeerCertificate",
    "dnsSansPeerCertificate", "dnsSansLocalCertificate", "subjectLocalCertificate", "subjectPeerCertificate",
    "issuerPeerCertificate", "sha256PeerCertificateDigest", "serialNumberPeerCertificate", "tlsVersion",
    "ciphersuiteString",
})

local function ssl(stream)
    return stream.look("isSsl") and setmetatable({ stream = stream, of = "ssl." }, Ssl) or nil
end

local StreamInfo = facts({
    "protocol", "routeName", "downstreamLocalAddress", "downstreamDirectLocalAddress", "downstreamRemoteAddress",
    "downstreamDirectRemoteAddress", "requestedServerName",
})

function StreamInfo:dynamicMetadata()
    return setmetatable({ stream = self.stream }, Dynamic)
end

function StreamInfo:downstreamSslConnection()
    return ssl(self.stream)
end

local Connection = class()

function Connection:ssl()
    return ssl(self.stream)
end

-- A stream, as its functions see it.
local Stream = class()

function Stream:metadata_now()
    if not self.dynamic then
        self.dynamic = self.look("dynamicMetadata") or {}
    end
    return self.dynamic
end

local Handle = class()
local streams = setmetatable({}, { __mode = "k" })

function Handle:headers()
    return streams[self].headers
end

function Handle:body(always_wrap)
    local stream = streams[self]
    if stream.chunks then
        error("cannot call body() after body streaming has started", 2)
    end
    if not stream.asked then
        stream.asked = true
        local bytes = coroutine.yield("body")
        if bytes or always_wrap then
            stream.buffer = setmetatable({ bytes = bytes or "" }, Buffer)
        end
    end
    return stream.buffer
end

function Handle:bodyChunks()
    local stream = streams[self]
    if stream.asked then
        error("cannot call bodyChunks after body processing has begun", 2)
    end
    stream.chunks = true
    return function()
        local bytes = coroutine.yield("chunk")
        if not bytes then
            return nil
        end
        stream.chunk = setmetatable({ bytes = bytes }, Buffer)
        return stream.chunk
    end
end

function Handle:trailers()
    local stream = streams[self]
    if stream.trailers == nil then
        local list = coroutine.yield("trailers")
        stream.trailers = list and headers_of(list) or false
    end
    return stream.trailers or nil
end

function Handle:metadata()
    return map(streams[self].look("metadata"))
end

function Handle:filterContext()
    return map(streams[self].look("filterContext"))
end

function Handle:streamInfo()
    return setmetatable({ stream = streams[self], of = "" }, StreamInfo)
end

function Handle:connection()
    return setmetatable({ stream = streams[self] }, Connection)
end

function Handle:httpCall(cluster, headers, body, timeout, options)
    local asynchronous = options
    local duplicates = false
    if type(options) == "table" then
        asynchronous, duplicates = options.asynchronous, options.return_duplicate_headers
    end
    if type(headers) ~= "table" then
        error("http call headers must be a table", 2)
    end
    local list = {}
    for name, value in pairs(headers) do
        for _, one in ipairs(type(value) == "table" and value or { value }) do
            list[#list + 1] = text(name, "a header's name")
            list[#list + 1] = text(one, "a header's value")
        end
    end
    if asynchronous then
        host.call(cluster, list, body, timeout)
        return
    end
    local answered, said = coroutine.yield("call", text(cluster, "the cluster"), list, body, timeout)
    if not answered then
        error(said, 2)
    end
    local seen = {}
    for at = 1, #answered, 2 do
        local name, value = answered[at], answered[at + 1]
        if duplicates and seen[name] then
            local before = seen[name]
            if type(before) ~= "table" then
                before = { before }
            end
            before[#before + 1] = value
            seen[name] = before
        else
            seen[name] = value
        end
    end
    return seen, said
end

function Handle:respond(headers, body)
    local stream = streams[self]
    if stream.response then
        error("respond not currently supported in the response path", 2)
    elseif stream.headers.frozen then
        error("respond() cannot be called if headers have been continued", 2)
    end
    local list, status = {}, nil
    for name, value in pairs(headers) do
        if name == ":status" then
            status = tonumber(value)
        else
            for _, one in ipairs(type(value) == "table" and value or { value }) do
                list[#list + 1] = text(name, "a header's name"):lower()
                list[#list + 1] = text(one, "a header's value")
            end
        end
    end
    if not status or status < 200 or status >= 600 then
        error(":status must be between 200-599", 2)
    end
    coroutine.yield("respond", status, list, body or "")
end

for _, level in ipairs({ "Trace", "Debug", "Info", "Warn", "Err", "Critical" }) do
    Handle["log" .. level] = function(_, message)
        host.log(level, text(message, "the message"))
    end
end

function Handle:timestamp(resolution)
    return host.now(resolution == EnvoyTimestampResolution.MICROSECOND)
end

function Handle:timestampString(resolution)
    return string.format("%.0f", host.now(resolution == EnvoyTimestampResolution.MICROSECOND))
end

function Handle:base64Escape(bytes)
    return host.base64(text(bytes, "the bytes"))
end

function Handle:clearRouteCache()
    streams[self].reroute = true
end

EnvoyTimestampResolution = { MILLISECOND = 0, MICROSECOND = 1 }

return function(entry, list, response, look)
    local stream = setmetatable({ headers = headers_of(list), response = response, look = look, set = {} }, Stream)
    local handle = setmetatable({}, Handle)
    streams[handle] = stream
    return stream, coroutine.create(function() entry(handle) end)
end
