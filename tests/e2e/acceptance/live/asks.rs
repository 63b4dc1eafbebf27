//! What the proxies are asked, made of what a bundle says: each route, each chain, each identity that a policy names.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};

use serde_json::Value;

use super::bundle::Prepared;
use super::world::{ANSWER, CASE, FAILS};

/// The sidecar's pod.
pub const POD: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// A service that no listener of its own has.
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 1);
/// A port that no chain names.
pub const UNNAMED: u16 = 7777;

/// TLS of the client's.
#[derive(Clone, Debug)]
pub struct Secure {
    pub alpn: Option<String>,
    pub name: String,
    /// Which of the clients' certificates.
    pub identity: Option<usize>,
}

/// What a client does: connects, says something and reads what comes.
#[derive(Clone, Debug)]
pub struct Ask {
    pub name: String,
    /// Its client's.
    pub port: u16,
    /// Its client is not in the pod.
    pub outside: bool,
    pub to: SocketAddrV4,
    pub secure: Option<Secure>,
    /// A request of HTTP/1.1; otherwise bytes that come back.
    pub http: bool,
    pub bytes: Vec<u8>,
}

/// Names and values.
type Fields = Vec<(String, String)>;

/// What is asked of whom, by group: of each some are taken.
type Groups = BTreeMap<String, Vec<Ask>>;

/// So many of all that can be asked, the same for the same seed.
pub fn of(prepared: &Prepared, count: usize, seed: u64, ports: &mut impl Iterator<Item = u16>) -> Vec<Ask> {
    let mut groups = Groups::new();
    for listener in prepared.of_kind(".Listener") {
        of_listener(prepared, listener, &mut groups);
    }
    let mut random = fastrand::Rng::with_seed(seed);
    let mut groups: Vec<Vec<Ask>> = groups.into_values().collect();
    groups.iter_mut().for_each(|group| random.shuffle(group));
    random.shuffle(&mut groups);
    let mut asks = Vec::new();
    while asks.len() < count && groups.iter().any(|group| !group.is_empty()) {
        let next = groups.iter_mut().filter_map(Vec::pop).take(count - asks.len());
        asks.extend(next.collect::<Vec<_>>());
    }
    for (number, ask) in asks.iter_mut().enumerate() {
        let text = String::from_utf8_lossy(&ask.bytes).replace("@case@", &format!("{number}"));
        ask.bytes = text.into_bytes();
        ask.port = ports.next().expect("ports enough");
    }
    asks
}

fn address(listener: &Value) -> Option<SocketAddrV4> {
    let socket = &listener["address"]["socketAddress"];
    let port = socket["portValue"].as_u64().and_then(|port| u16::try_from(port).ok())?;
    Some(SocketAddrV4::new(socket["address"].as_str()?.parse().ok()?, port))
}

/// Where connections to a listener go, and whether they come from outside of the pod.
pub fn reached(listener: &Value) -> Vec<(SocketAddrV4, bool)> {
    let Some(at) = address(listener) else { return Vec::new() };
    let inbound = listener["trafficDirection"] == "INBOUND";
    let or = |instead: Ipv4Addr| if at.ip().is_unspecified() { instead } else { *at.ip() };
    match at.port() {
        15001 => vec![(SocketAddrV4::new(SERVICE, UNNAMED), false)],
        15006 => {
            let mut ports: Vec<u16> = chains(listener)
                .filter_map(|chain| chain["filterChainMatch"]["destinationPort"].as_u64())
                .filter_map(|port| u16::try_from(port).ok())
                .filter(|port| *port != 15006)
                .collect();
            ports.push(UNNAMED);
            ports.sort_unstable();
            ports.dedup();
            ports.into_iter().map(|port| (SocketAddrV4::new(POD, port), true)).collect()
        }
        port if inbound => vec![(SocketAddrV4::new(or(POD), port), !at.ip().is_loopback())],
        port => vec![(SocketAddrV4::new(or(SERVICE), port), false)],
    }
}

fn chains(listener: &Value) -> impl Iterator<Item = &Value> {
    let all = listener["filterChains"].as_array().into_iter().flatten();
    all.chain(listener.get("defaultFilterChain"))
}

fn of_listener(prepared: &Prepared, listener: &Value, groups: &mut Groups) {
    let name = listener["name"].as_str().unwrap_or_default();
    for (to, outside) in reached(listener) {
        for chain in chains(listener) {
            let matcher = &chain["filterChainMatch"];
            let port = matcher["destinationPort"].as_u64();
            let named = chains(listener)
                .any(|chain| chain["filterChainMatch"]["destinationPort"] == u64::from(to.port()));
            if port.is_some_and(|port| port != u64::from(to.port())) || (port.is_none() && named) {
                continue;
            }
            let secure = chain.get("transportSocket").is_some() || matcher["transportProtocol"] == "tls";
            let filters = chain["filters"].as_array().into_iter().flatten();
            let manager = filters.map(|filter| &filter["typedConfig"]).find(|any| {
                any["@type"].as_str().is_some_and(|kind| kind.ends_with(".HttpConnectionManager"))
            });
            let requests = manager.map(|manager| requests(prepared, manager, outside)).unwrap_or_default();
            for secure in seconds(prepared, matcher, secure, outside) {
                let form = match &secure {
                    None => "plain".to_owned(),
                    Some(secure) => format!("TLS {:?}", secure.alpn),
                };
                let group = groups.entry(format!("{name} {to} {form}")).or_default();
                let mut push = |what: &str, http: bool, bytes: Vec<u8>| {
                    let who = secure.as_ref().and_then(|secure| secure.identity);
                    let who = who.map(|who| format!(" as {who}")).unwrap_or_default();
                    let name = format!("{name}, {to} {form}{who}: {what}");
                    group.push(Ask { name, port: 0, outside, to, secure: secure.clone(), http, bytes });
                };
                for (what, text) in &requests {
                    push(what, true, text.clone().into_bytes());
                }
                if requests.is_empty() {
                    push("bytes", false, b"\x01echo\n".to_vec());
                    push("a request", true, http("GET", "/", "a.test", &[], ""));
                }
            }
        }
    }
}

/// The forms of TLS that a chain is for.
fn seconds(prepared: &Prepared, matcher: &Value, secure: bool, outside: bool) -> Vec<Option<Secure>> {
    if !secure {
        return vec![None];
    }
    let texts = |name: &str| -> Vec<String> {
        let list = matcher[name].as_array().into_iter().flatten();
        list.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    // What is chosen is what can be spoken here.
    let alpn = texts("applicationProtocols").into_iter().find(|name| !name.ends_with("h2"));
    let name = texts("serverNames").first().map_or("some.test".to_owned(), |name| name.replace('*', "some"));
    let identities = if outside { prepared.principals.len().min(4) + 1 } else { 1 };
    (0..identities)
        .map(|identity| Some(Secure { alpn: alpn.clone(), name: name.clone(), identity: Some(identity) }))
        .collect()
}

fn http(method: &str, path: &str, host: &str, headers: &[(String, String)], body: &str) -> Vec<u8> {
    let mut text = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\n");
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    if !body.is_empty() {
        text += &format!("content-length: {}\r\n", body.len());
    }
    text += &format!("{CASE}: @case@\r\nconnection: close\r\n\r\n{body}");
    text.into_bytes()
}

/// Requests that a connection manager's routes are for, and some that they are not for.
fn requests(prepared: &Prepared, manager: &Value, outside: bool) -> Vec<(String, String)> {
    let inline = manager.get("routeConfig");
    let named = manager["rds"]["routeConfigName"].as_str();
    let table = inline
        .or_else(|| prepared.of_kind(".RouteConfiguration").find(|table| table["name"].as_str() == named));
    let mut all = Vec::new();
    let mut push = |what: &str, bytes: Vec<u8>| {
        all.push((what.to_owned(), String::from_utf8_lossy(&bytes).into_owned()));
    };
    for host in table.and_then(|table| table["virtualHosts"].as_array()).into_iter().flatten() {
        let Some(domain) = host["domains"][0].as_str() else { continue };
        let domain = if domain == "*" { "any.test".to_owned() } else { domain.replace('*', "some") };
        push("a path of nobody", http("GET", "/nobody/knows?it=1", &domain, &[], ""));
        for route in host["routes"].as_array().into_iter().flatten() {
            let Some((method, path, headers)) = matching(&route["match"]) else { continue };
            let with = |name: &str, value: &str| {
                let mut headers = headers.clone();
                headers.push((name.to_owned(), value.to_owned()));
                headers
            };
            push("a route", http(&method, &path, &domain, &headers, ""));
            push("a route, with a body", http("POST", &path, &domain, &headers, "some bytes"));
            push("a route, not found", http(&method, &path, &domain, &with(ANSWER, "404"), ""));
            push("a route, fails once", http(&method, &path, &domain, &with(FAILS, "1"), ""));
            push("a route, fails", http(&method, &path, &domain, &with(FAILS, "9"), ""));
            push("a route, not split", http(&method, &path, &domain, &with("x-envoy-retry-on", "5xx"), ""));
            if !headers.is_empty() {
                push("a route without its headers", http(&method, &path, &domain, &[], ""));
            }
            if outside {
                for path in &prepared.paths {
                    push("a path of a policy", http("GET", path, &domain, &headers, ""));
                    push("a path of a policy, posted", http("POST", path, &domain, &headers, "x"));
                }
                let token = with("authorization", "Bearer e30.e30.e30");
                push("with a bad token", http("GET", &path, &domain, &token, ""));
            }
        }
    }
    push("a host of nobody", http("GET", "/", "nobody.knows.test", &[], ""));
    all
}

/// A method, a path and fields that a route's match is for.
fn matching(matcher: &Value) -> Option<(String, String, Fields)> {
    let text = |name: &str| matcher[name].as_str().map(str::to_owned);
    let mut path = text("path")
        .or_else(|| text("pathSeparatedPrefix"))
        .or_else(|| text("prefix").map(|prefix| if prefix.ends_with('/') { prefix + "some" } else { prefix }))
        .or_else(|| matcher["safeRegex"]["regex"].as_str().map(from_regex))?;
    let mut method = "GET".to_owned();
    let mut headers = Vec::new();
    for header in matcher["headers"].as_array().into_iter().flatten() {
        if header["invertMatch"] == true {
            continue;
        }
        let name = header["name"].as_str()?.to_owned();
        let value = value_for(header);
        match name.as_str() {
            ":method" => method = value,
            name if name.starts_with(':') => {}
            _ => headers.push((name, value)),
        }
    }
    let queries = matcher["queryParameters"].as_array().into_iter().flatten();
    for (index, query) in queries.enumerate() {
        let sign = if index == 0 { '?' } else { '&' };
        path += &format!("{sign}{}={}", query["name"].as_str()?, value_for(query));
    }
    Some((method, path, headers))
}

/// A value that matches.
fn value_for(matcher: &Value) -> String {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let string = &matcher["stringMatch"];
    let plain = ["exact", "prefix", "suffix", "contains"].iter().find_map(|name| text(&string[*name]));
    let old = ["exactMatch", "prefixMatch", "suffixMatch"].iter().find_map(|name| text(&matcher[*name]));
    let regex = [&string["safeRegex"]["regex"], &matcher["safeRegexMatch"]["regex"]];
    let regex = regex.iter().find_map(|value| value.as_str()).map(from_regex);
    plain.or(old).or(regex).unwrap_or_else(|| "some".to_owned())
}

/// A text that simple expressions match.
fn from_regex(regex: &str) -> String {
    let text = regex.trim_start_matches('^').trim_end_matches('$');
    text.replace("((\\/).*)?", "")
        .replace(".*", "x")
        .replace(".+", "x")
        .replace("[^/]+", "x")
        .replace('\\', "")
}
