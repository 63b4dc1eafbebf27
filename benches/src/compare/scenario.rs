//! What is measured, each by name.

use super::configs::Wire;

/// A scenario.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Its name.
    pub name: String,
    /// A name for several of them.
    pub group: &'static str,
    /// What it is, in a line.
    pub about: String,
    /// How it is measured.
    pub kind: Kind,
}

/// How it is measured.
#[derive(Clone, Debug)]
pub enum Kind {
    /// A closed loop; CPU, rate and latency.
    Load(Load),
    /// An open loop at shares of a rate; added latency.
    Latency,
    /// Connections that do nothing; memory.
    Idle(Security),
    /// From the start to the first answer.
    Start,
    /// So many clusters.
    Scale(usize),
    /// Updates under load.
    Churn(usize),
    /// Connections led to the proxy by the kernel.
    Transparent,
}

/// A closed loop.
#[derive(Clone, Debug)]
pub struct Load {
    /// What is spoken.
    pub wire: Wire,
    /// Where mTLS is.
    pub security: Security,
    /// Connections.
    pub connections: u32,
    /// Requests at a time on each.
    pub streams: u32,
    /// What a request is, as a table calls it.
    pub unit: &'static str,
    /// The origin is one that sends without being asked.
    pub download: bool,
    /// What is spoken to the next, where it is not the same.
    pub onward: Option<Wire>,
    /// A breaker is in the way of every request.
    pub refused: bool,
    /// More arguments of `run`.
    pub flags: &'static [&'static str],
}

/// Where mTLS is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Security {
    /// Nowhere.
    Plain,
    /// Between client and proxy.
    Clients,
    /// There, and between proxy and origin.
    Both,
    /// Between two proxies, one beside the client and one beside the origin.
    Between,
}

impl Security {
    /// Whether clients come with it.
    pub fn of_clients(self) -> bool {
        matches!(self, Self::Clients | Self::Both)
    }
}

/// HTTP/1.1 over this many kept connections.
pub const BASE: Load = Load {
    wire: Wire::Http1,
    security: Security::Plain,
    connections: 32,
    streams: 1,
    unit: "request",
    download: false,
    onward: None,
    refused: false,
    flags: &[],
};

/// All of them.
pub fn all() -> Vec<Scenario> {
    let two = Load { wire: Wire::Http2, connections: 8, streams: 16, ..BASE };
    let grpc = Load { wire: Wire::Grpc, unit: "call", ..two.clone() };
    let tcp = Load { wire: Wire::Tcp, unit: "message", ..BASE };
    let bulk = |unit, flags| Load { connections: 8, unit, flags, ..BASE };
    let plain = [
        ("h1", "", "HTTP/1.1, 32 connections, body of 92 bytes", BASE),
        (
            "h1-1k",
            "",
            "HTTP/1.1, 32 connections, body of 1 KiB",
            Load { flags: &["-H", "x-load-size: 1024"], ..BASE },
        ),
        (
            "h1-bulk-64k",
            "h1-bulk",
            "HTTP/1.1, 8 connections, body of 64 KiB",
            bulk("64 KiB", &["-H", "x-load-size: 65536"]),
        ),
        (
            "h1-bulk-1m",
            "h1-bulk",
            "HTTP/1.1, 8 connections, body of 1 MiB",
            bulk("MiB", &["-H", "x-load-size: 1048576"]),
        ),
        (
            "h1-refused",
            "",
            "HTTP/1.1, 32 connections, each request refused by an open circuit breaker (max_requests 0)",
            Load { refused: true, ..BASE },
        ),
        ("h2", "", "HTTP/2, 8 connections of 16 streams, body of 92 bytes", two.clone()),
        (
            "h2-single",
            "",
            "HTTP/2, 1 connection of 1 stream, body of 92 bytes",
            Load { connections: 1, streams: 1, ..two },
        ),
        (
            "grpc-unary",
            "grpc",
            "gRPC, 8 connections of 16 streams, unary, messages of 92 bytes",
            grpc.clone(),
        ),
        (
            "grpc-stream",
            "grpc",
            "gRPC, 8 connections of 16 streams, each 100 messages of 92 bytes from the server",
            Load { flags: &["--grpc", "server-stream", "--messages", "100"], unit: "stream", ..grpc },
        ),
        ("tcp-rr", "", "TCP, 32 connections, 92 bytes and their echo", tcp.clone()),
        (
            "tcp-bulk",
            "",
            "TCP, 8 connections, downloads in parts of 1 MiB",
            Load {
                connections: 8,
                download: true,
                unit: "MiB",
                flags: &["--tcp", "download", "--size", "1m"],
                ..tcp.clone()
            },
        ),
    ];
    let scenario =
        |name: &str, group, about: String, kind| Scenario { name: name.to_owned(), group, about, kind };
    let mut all: Vec<_> = plain
        .iter()
        .map(|(name, group, about, load)| {
            scenario(name, group, (*about).to_owned(), Kind::Load(load.clone()))
        })
        .collect();
    for (suffix, group, place, security) in [
        ("+mtls", "mtls", "mTLS from the client", Security::Clients),
        ("+mtls-both", "mtls-both", "mTLS from the client and to the origin", Security::Both),
    ] {
        all.extend(plain.iter().filter(|(.., load)| !load.refused).map(|(name, _, about, load)| {
            let load = Load { security, ..load.clone() };
            scenario(&format!("{name}{suffix}"), group, format!("{about}; {place}"), Kind::Load(load))
        }));
    }
    let carried = Load { onward: Some(Wire::Http2), ..BASE };
    for (name, of, between, load) in [
        ("pair-h1", "HTTP/1.1", "mTLS between", BASE),
        ("pair-h2", "HTTP/1.1", "HTTP/2 over mTLS between", carried),
        ("pair-tcp", "TCP", "mTLS between", tcp.clone()),
    ] {
        let about = format!(
            "two proxies of a kind, one beside the client and one beside the origin: {of}, {between}"
        );
        let load = Load { security: Security::Between, ..load };
        all.push(scenario(name, "pair", about, Kind::Load(load)));
    }
    for (name, about, flags) in [
        (
            "handshake-full",
            "connections with a full mTLS handshake and one request each, 8 at a time",
            &["--handshake", "--hello"][..],
        ),
        (
            "handshake-resumed",
            "connections with a resumed mTLS handshake and one request each, 8 at a time",
            &["--handshake", "--resume"],
        ),
    ] {
        let load = Load { security: Security::Clients, connections: 8, unit: "connection", flags, ..BASE };
        all.push(scenario(name, "handshake", about.to_owned(), Kind::Load(load)));
    }
    all.push(scenario(
        "latency",
        "",
        "h1 in an open loop at 25, 50 and 75 % of what Envoy can do; added: with proxy minus without"
            .to_owned(),
        Kind::Latency,
    ));
    let about =
        "memory with 5,000 and 10,000 idle connections that had a request each, and after they closed";
    all.push(scenario("idle", "", about.to_owned(), Kind::Idle(Security::Plain)));
    let over = format!("{about}; mTLS from the client");
    all.push(scenario("idle+mtls", "", over, Kind::Idle(Security::Clients)));
    let about = "from exec to the first request answered with 200";
    all.push(scenario("start", "", about.to_owned(), Kind::Start));
    for clusters in [100, 1_000, 10_000] {
        let about = format!(
            "{clusters} clusters of 10 endpoints, each with a virtual host of 4 domains, over delta ADS where a peer can; load \
             as in h1, through the last; then its endpoints change"
        );
        all.push(scenario(&format!("config-scale-{clusters}"), "config-scale", about, Kind::Scale(clusters)));
    }
    let about =
        "the cost of capture for each request and each connection, in a network namespace; needs root";
    all.push(scenario("transparent", "", about.to_owned(), Kind::Transparent));
    for clusters in [100, 10_000] {
        let about = format!(
            "5,000 requests/s in an open loop through one of {clusters} clusters, without and with 100 updates a second of its \
             endpoints, a change of the routes each second and one of the listener each five, over delta ADS"
        );
        all.push(scenario(&format!("churn-{clusters}"), "churn", about, Kind::Churn(clusters)));
    }
    all
}

/// Those of these names or groups, in the order of [`all`]; without names all that need no TLS and serve. The
/// first name that there is not is the error.
///
/// # Errors
/// There is no such scenario.
pub fn chosen(names: &[String]) -> Result<Vec<Scenario>, String> {
    let all = all();
    let is = |scenario: &Scenario, name: &str| {
        name == "all" || scenario.name == name || (!name.is_empty() && scenario.group == name)
    };
    if let Some(name) = names.iter().find(|name| !all.iter().any(|scenario| is(scenario, name))) {
        return Err(name.clone());
    }
    let plain = |scenario: &Scenario| match &scenario.kind {
        // Few who compare proxies ask what they refuse.
        Kind::Load(load) => load.security == Security::Plain && !load.refused,
        Kind::Idle(security) => *security == Security::Plain,
        _ => true,
    };
    Ok(all
        .into_iter()
        .filter(|scenario| match names {
            [] => plain(scenario),
            names => names.iter().any(|name| is(scenario, name)),
        })
        .collect())
}

#[cfg(test)]
mod tests {
    #[test]
    fn scenarios_are_chosen_by_name_and_by_group() {
        let names = |chosen: &[&str]| {
            let chosen: Vec<_> = chosen.iter().map(|&name| name.to_owned()).collect();
            super::chosen(&chosen).map(|all| all.into_iter().map(|one| one.name).collect::<Vec<_>>())
        };
        assert_eq!(names(&["idle", "h1"]), Ok(vec!["h1".to_owned(), "idle".to_owned()]));
        assert_eq!(names(&["grpc"]), Ok(vec!["grpc-unary".to_owned(), "grpc-stream".to_owned()]));
        assert_eq!(names(&["mtls"]).map(|all| all.len()), Ok(10));
        assert_eq!(names(&["h3"]), Err("h3".to_owned()));
        let usual = names(&[]).unwrap_or_default();
        assert!(
            usual.contains(&"h1".to_owned()) && !usual.iter().any(|name| name.contains("mtls")),
            "{usual:?}"
        );
    }
}
