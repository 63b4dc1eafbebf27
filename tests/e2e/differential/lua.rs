//! Scripts beside Envoy's: what they see, what they change, what they answer, and what is left when they fail.

use super::bootstrap::Bootstrap;
use super::case::{case, Case};
use super::filters::{check_but, filter, host, says};
use crate::harness::http1::Message;
use crate::harness::origin::Answer;

const PER_ROUTE: &str = "extensions.filters.http.lua.v3.LuaPerRoute";

/// The filter's own script, which routes without one of their own have.
const OWN: &str = "
function envoy_on_request(handle) handle:headers():add('x-own', 'request') end
function envoy_on_response(handle) handle:headers():add('x-own', 'response') end";

/// Scripts by the routes that have them.
const SCRIPTS: &[(&str, &str)] = &[
    ("/heads", "
function envoy_on_request(handle)
  local headers = handle:headers()
  headers:add('x-added', '1')
  headers:add('X-Added', '2')
  headers:replace('x-replaced', 'new')
  headers:replace('x-twice', 'once')
  headers:remove('x-removed')
  headers:add('x-seen', tostring((headers:get('x-two'))) .. '|' .. select('#', headers:get('X-None')))
  headers:add('x-counted', headers:getNumValues('x-two') .. headers:getNumValues('x-none'))
  headers:add('x-at', tostring((headers:getAtIndex('x-two', 1))) .. select('#', headers:getAtIndex('x-two', 2)))
  local names = {}
  for name, value in pairs(headers) do
    if name:sub(1, 3) == 'x-t' then names[#names + 1] = name .. '=' .. value end
  end
  headers:add('x-names', table.concat(names, ';'))
  headers:add('x-method', headers:get(':method') .. headers:get(':path') .. headers:get(':authority'))
end
function envoy_on_response(handle)
  local headers = handle:headers()
  headers:add('x-was', headers:get(':status'))
  headers:replace(':status', '202')
  headers:remove('x-origin')
  headers:add('x-many', 'a')
  headers:add('x-many', 'b')
end"),
    ("/moved", "
function envoy_on_request(handle)
  handle:headers():replace(':path', '/moved/elsewhere?x=1')
  handle:headers():replace(':method', 'PUT')
  handle:headers():replace(':authority', 'other.test')
end"),
    ("/body", "
function envoy_on_request(handle)
  local body = handle:body()
  handle:headers():add('x-length', body and body:length() or 'none')
  handle:headers():add('x-bytes', body and body:getBytes(0, math.min(4, body:length())) or '-')
end
function envoy_on_response(handle)
  local body = handle:body()
  handle:headers():add('x-length', body and body:length() or 'none')
end"),
    ("/wrapped", "
function envoy_on_request(handle)
  local length = handle:body(true):length()
  handle:headers():add('x-length', length)
end"),
    ("/set", "
function envoy_on_request(handle)
  local length = handle:body(true):setBytes('another body')
  handle:headers():add('x-set', length)
end
function envoy_on_response(handle)
  handle:body(true):setBytes('<' .. handle:body():getBytes(0, handle:body():length()) .. '>')
  handle:headers():replace('content-type', 'text/html')
end"),
    ("/chunks", "
function envoy_on_request(handle)
  handle:headers():add('x-chunks', 'yes')
  local count = 0
  for chunk in handle:bodyChunks() do count = count + chunk:length() end
  handle:streamInfo():dynamicMetadata():set('counted', 'bytes', count)
end
function envoy_on_response(handle)
  local counted = handle:streamInfo():dynamicMetadata():get('counted')
  handle:headers():add('x-counted', counted and counted.bytes or 'none')
end"),
    ("/respond", "
function envoy_on_request(handle)
  handle:respond({ [':status'] = '418', ['x-teapot'] = 'short', ['x-list'] = { 'a', 'b' } }, 'tea')
  handle:headers():add('x-never', 'reached')
end
function envoy_on_response(handle) handle:headers():add('x-after', handle:headers():get(':status')) end"),
    ("/empty", "
function envoy_on_request(handle) handle:respond({ [':status'] = '204' }) end"),
    ("/late", "
function envoy_on_request(handle)
  local body = handle:body()
  if body and body:length() > 3 then handle:respond({ [':status'] = '413', ['content-type'] = 'text/html' }, 'too much') end
end"),
    ("/bad-status", "
function envoy_on_request(handle) handle:respond({ [':status'] = '100' }, 'no') end"),
    ("/in-response", "
function envoy_on_response(handle)
  handle:headers():add('x-before', 'the error')
  handle:respond({ [':status'] = '500' }, 'no')
end"),
    ("/fails", "
function envoy_on_request(handle)
  handle:headers():add('x-before', 'the error')
  local nothing = nil
  nothing:field()
  handle:headers():add('x-after', 'the error')
end
function envoy_on_response(handle) error('on purpose') end"),
    ("/calls", "
function envoy_on_request(handle)
  local headers, body = handle:httpCall('b', { [':method'] = 'POST', [':path'] = '/called', [':authority'] = 'b.test', ['x-more'] = 'more' }, 'asks', 5000)
  handle:headers():add('x-status', headers[':status'])
  handle:headers():add('x-answer', headers['x-answer'] .. ' ' .. tostring(body))
end"),
    ("/calls-late", "
function envoy_on_response(handle)
  local headers, body = handle:httpCall('b', { [':method'] = 'GET', [':path'] = '/called', [':authority'] = 'b.test' }, nil, 5000)
  handle:headers():add('x-answer', headers['x-answer'])
end"),
    ("/calls-nobody", "
function envoy_on_request(handle)
  handle:headers():add('x-before', 'the error')
  handle:httpCall('nobody', { [':method'] = 'GET', [':path'] = '/', [':authority'] = 'b' }, nil, 5000)
end"),
    ("/calls-badly", "
function envoy_on_request(handle)
  handle:httpCall('b', { [':method'] = 'GET', [':path'] = '/' }, nil, 5000)
end"),
    ("/told", "
function envoy_on_request(handle)
  local headers, metadata = handle:headers(), handle:metadata()
  headers:add('x-told', tostring(metadata:get('key')) .. select('#', metadata:get('none')))
  headers:add('x-deep', metadata:get('deep').list[2] .. tostring(metadata:get('deep').flag))
  local info = handle:streamInfo()
  headers:add('x-info', info:protocol() .. '|' .. info:requestedServerName() .. '|' .. info:routeName())
  headers:add('x-ssl', tostring(handle:connection():ssl()) .. tostring(info:downstreamSslConnection()))
  headers:add('x-encoded', handle:base64Escape('some bytes'))
  headers:add('x-now', tostring(handle:timestamp() > 1600000000000))
  headers:add('x-context', tostring(handle:filterContext():get('name')))
  info:dynamicMetadata():set('ns', 'table', { a = 'b', list = { 1, 2 } })
  info:dynamicMetadata():set('ns', 'flag', true)
end
function envoy_on_response(handle)
  local ns = handle:streamInfo():dynamicMetadata():get('ns')
  handle:headers():add('x-noted', ns.table.a .. ns.table.list[2] .. tostring(ns.flag))
end"),
    ("/trailers", "
function envoy_on_response(handle)
  handle:headers():add('x-begin', 'yes')
  local trailers = handle:trailers()
  trailers:add('x-late', trailers:get('x-end'))
  trailers:remove('x-end')
end"),
];

/// A cluster whose trailers are passed on.
const TRAILED: &str = "type: STATIC
typed_extension_protocol_options: { envoy.extensions.upstreams.http.v3.HttpProtocolOptions: { \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: { http_protocol_options: { enable_trailers: true } } } }
load_assignment: { cluster_name: trailed, endpoints: [ { lb_endpoints: [ { endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: @origin:a@ } } } } ] } ] }";

fn quoted(script: &str) -> String {
    serde_json::Value::from(script).to_string()
}

fn bootstrap() -> Bootstrap {
    let entry = |path: &str, said: &[String], more: &str| {
        format!(
            "- {{ match: {{ prefix: {path} }}, route: {{ cluster: {} }}, name: one{more}, typed_per_filter_config: {{ {} }} }}\n",
            if path == "/trailers/" { "trailed" } else { "a" },
            said.join(", ")
        )
    };
    let own = |options: &str| says("lua", PER_ROUTE, options);
    let metadata =
        ", metadata: { filter_metadata: { lua: { key: value, deep: { list: [ 1, 2 ], flag: true } } } }";
    let mut routes: String = SCRIPTS
        .iter()
        .map(|(path, script)| {
            let said = own(&format!(
                "source_code: {{ inline_string: {} }}, filter_context: {{ name: mine }}",
                quoted(script)
            ));
            // The shorter of two prefixes would match first.
            entry(&format!("{path}/"), &[said], metadata)
        })
        .collect();
    routes += &entry("/named", &[own("name: other")], "");
    routes += &entry("/unknown", &[own("name: none")], "");
    routes += &entry("/off", &[own("disabled: true")], "");
    routes += &entry("/", &[], "");
    let other = "function envoy_on_request(handle) handle:headers():add('x-other', 'yes') end";
    let options = format!(
        "stat_prefix: mine, default_source_code: {{ inline_string: {} }}, source_codes: {{ other: {{ inline_string: {} }} }}",
        quoted(OWN),
        quoted(other)
    );
    Bootstrap::new()
        .cluster("trailed", TRAILED)
        .listener("main", "http_protocol_options: { enable_trailers: true }", &host("", &routes))
        .filters("main", &filter("lua", "lua.v3.Lua", &options))
}

#[tokio::test]
async fn scripts() {
    let script = |message: &Message| match message.target() {
        "/called" => {
            Answer::raw("HTTP/1.1 201 Created\r\nx-answer: so it is\r\ncontent-length: 6\r\n\r\nanswer")
        }
        _ => Answer::raw("HTTP/1.1 200 OK\r\nx-origin: here\r\ncontent-length: 2\r\n\r\nok"),
    };
    let get =
        |name: &'static str, path: &str, headers: &str| case("main", name).get(path, headers).script(script);
    let post = |name: &'static str, path: &str, body: &str| {
        case("main", name).send("POST", path, "", body).script(script)
    };
    let chunked = |name: &'static str, path: &str| {
        let body = "3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n";
        let head = format!("POST {path} HTTP/1.1\r\nHost: t.test\r\nTransfer-Encoding: chunked\r\n\r\n");
        case("main", name).raw(head + body).script(script)
    };
    let cases: Vec<Case> = vec![
        get("heads", "/heads/", "X-Two: 1\r\nX-Two: 2\r\nX-Twice: a\r\nX-Twice: b\r\nX-Removed: 1\r\nX-Replaced: old\r\n"),
        get("heads of few", "/heads/", ""),
        get("moved", "/moved/", ""),
        get("no body", "/body/", ""),
        post("a body", "/body/", "hello"),
        chunked("a body in chunks", "/body/"),
        post("a body, wrapped", "/wrapped/", "hello"),
        post("another body", "/set/", "hello"),
        get("chunks of nothing", "/chunks/", ""),
        chunked("chunks", "/chunks/"),
        get("answered", "/respond/", ""),
        get("answered without a body", "/empty/", ""),
        post("a short body", "/late/", "abc"),
        post("answered once the body is there", "/late/", "abcdef"),
        get("answered with no status", "/bad-status/", ""),
        get("answered too late", "/in-response/", ""),
        get("a script that fails", "/fails/", ""),
        get("a call", "/calls/", ""),
        get("a call before the response", "/calls-late/", ""),
        get("a call to nobody", "/calls-nobody/", ""),
        get("a call without an authority", "/calls-badly/", ""),
        get("what it is told", "/told/", ""),
        case("main", "trailers").get("/trailers/", "TE: trailers\r\n").answers(Answer::raw(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-end\r\n\r\n2\r\nok\r\n0\r\nx-end: now\r\n\r\n",
        )),
        get("by name", "/named", ""),
        get("by a name that nothing has", "/unknown", ""),
        get("off", "/off", ""),
        get("its own", "/plain", ""),
    ];
    check_but(bootstrap(), cases, &["http.main.lua.", "cluster.b.upstream_rq_total"], &[]).await;
}
