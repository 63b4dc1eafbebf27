//! Listeners and filter chains: `envoy.config.listener.v3.Listener` in, a [`Listener`] out.

use std::cell::OnceCell;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use outrigger_control_api::pb::envoy::config::{core::v3 as core, listener::v3 as pb};
use outrigger_control_api::pb::envoy::extensions::filters::network::{
    direct_response::v3 as direct_response, http_connection_manager::v3::HttpConnectionManager as Hcm,
    tcp_proxy::v3::TcpProxy as TcpProxyConfig,
};
use outrigger_control_api::type_of;

use super::{
    bool_or, buffer_limit, canonical, data_source, extension, hcm, idle, istio, listener_filters,
    network_filters, port, rooms, socket_options, tls, u32_or, udp, Environment,
};
use crate::config::cluster::{Address, InternalAddress, SocketTuning};
use crate::config::listener::{Direction, FilterChain, Listener, NetworkFilter, Terminal};
use crate::config::problems::Problems;
use crate::listener::permissive::Permissive;
use crate::telemetry::metrics::Scope;
use crate::telemetry::stats::ListenerStats;
use crate::tls::stats::SslStats;

/// What may change without the listener being another one.
const CHAIN_FIELDS: &[&str] = &["filter_chains", "default_filter_chain", "filter_chain_matcher"];

/// Compiles `listener`. `None` when a problem was reported.
pub fn compile(
    listener: &pb::Listener,
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> Option<Listener> {
    let before = problems.count();
    // Kinds of listeners that the support table refuses; they have no address or no filter chains.
    let special =
        listener.api_listener.is_some() || is_udp(listener) || listener.listener_specifier.is_some();
    let internal = is_internal(listener).then(|| check_internal(listener, problems));
    let address = match &listener.address {
        _ if internal.is_some() => {
            let address = InternalAddress { listener: listener.name.as_str().into(), endpoint_id: "".into() };
            Some(Bind { address: Address::Internal(Arc::new(address)), ipv4_compat: false, pipe_mode: 0 })
        }
        Some(address) => problems.at("address", |problems| bind_address(address, problems)),
        None => {
            if !special {
                problems.report_at("address", "is required");
            }
            None
        }
    };
    let shown = address.as_ref().map(|bind| bind.address.to_string()).unwrap_or_default();
    let name: Arc<str> =
        if listener.name.is_empty() { shown.as_str().into() } else { listener.name.as_str().into() };
    let chained = !special || internal.is_some();
    if listener.filter_chains.is_empty() && listener.default_filter_chain.is_none() && chained {
        problems.report_at("filter_chains", "is empty: a listener needs a filter chain");
    }
    let shown = if internal.is_some() { format!("envoy_internal_{name}") } else { shown };
    let stat_prefix = if listener.stat_prefix.is_empty() { &shown } else { &listener.stat_prefix };
    let ssl = OnceCell::new();
    let ssl = || ssl.get_or_init(|| Arc::new(SslStats::server(&Scope::listener(stat_prefix)))).clone();
    let outbound = listener.traffic_direction() == core::TrafficDirection::Outbound;
    let owner = Owner { name: &name, outbound, ssl: &ssl };
    let mut chains = Vec::with_capacity(listener.filter_chains.len());
    for (index, config) in listener.filter_chains.iter().enumerate() {
        let compiled = problems
            .at_index("filter_chains", index, |problems| chain(config, &owner, environment, problems));
        chains.extend(compiled.map(Arc::new));
    }
    let default_chain = listener.default_filter_chain.as_ref().and_then(|config| {
        problems
            .at("default_filter_chain", |problems| chain(config, &owner, environment, problems))
            .map(Arc::new)
    });
    let index = rooms::chain_index(&listener.filter_chains, problems);
    let udp = is_udp(listener).then(|| udp::compile(listener, stat_prefix, environment, problems)).flatten();
    let filters =
        if is_udp(listener) { Default::default() } else { listener_filters::compile(listener, problems) };
    let ipv4 = match address.as_ref().map(|bind| &bind.address) {
        Some(Address::Ip(address)) => Some(address.is_ipv4()),
        _ => None,
    };
    let mut socket_options =
        socket_options::compile(&listener.socket_options, "socket_options", ipv4, problems);
    if let Some(queue) = listener.tcp_fast_open_queue_length {
        let options = socket_options.iter().cloned();
        socket_options = options.chain([socket_options::fast_open(queue.value)]).collect();
    }
    let waits = listener.listener_filters_timeout.is_some_and(|timeout| timeout != Default::default());
    let listener_filters_timeout = idle(
        &listener.listener_filters_timeout,
        Some(Duration::from_secs(15)),
        "listener_filters_timeout",
        problems,
    );
    let access_logs = rooms::access_logs(&listener.access_log, "access_log", environment, problems);
    super::generic_secret::meet_wants(environment, problems);
    if problems.count() > before {
        return None;
    }
    let bind = address?;
    let all = || chains.iter().chain(&default_chain);
    let demands = |chain: &Arc<FilterChain>| chain.tls.as_ref().is_some_and(|tls| tls.demands_certificate());
    let permissive = all().any(demands) && !all().all(demands);
    let ends_tls = all().any(|chain| chain.tls.is_some());
    Some(Listener {
        permissive: permissive.then(|| Permissive::of(&name, &Scope::listener(stat_prefix))),
        stats: Arc::new(ListenerStats::new(&Scope::listener(stat_prefix))),
        name,
        fingerprint: canonical::fingerprint_without(listener, CHAIN_FIELDS),
        address: bind.address,
        ipv4_compat: bind.ipv4_compat,
        pipe_mode: bind.pipe_mode,
        bind_to_port: internal.is_none() && bool_or(listener.bind_to_port, true),
        unlimited: listener.ignore_global_conn_limit || listener.bypass_overload_manager,
        direction: match listener.traffic_direction() {
            core::TrafficDirection::Unspecified => Direction::Unspecified,
            core::TrafficDirection::Inbound => Direction::Inbound,
            core::TrafficDirection::Outbound => Direction::Outbound,
        },
        index,
        chains,
        default_chain,
        udp,
        inspect: filters.inspect,
        proxy_protocol: filters.proxy_protocol,
        original_src: filters.original_src,
        disabled: filters.disabled.into(),
        hand_off: bool_or(listener.use_original_dst, false),
        transparent: bool_or(listener.transparent, false),
        freebind: bool_or(listener.freebind, false),
        socket_options,
        listener_filters_timeout,
        races: !waits,
        ends_tls,
        continue_on_listener_filters_timeout: listener.continue_on_listener_filters_timeout,
        per_connection_buffer_limit: buffer_limit(listener.per_connection_buffer_limit_bytes),
        reuse_port: bool_or(listener.enable_reuse_port, true),
        backlog: u32_or(listener.tcp_backlog_size, somaxconn()),
        socket: SocketTuning::default(),
        access_logs,
    })
}

fn is_udp(listener: &pb::Listener) -> bool {
    matches!(listener.address.as_ref().and_then(|address| address.address.as_ref()),
        Some(core::address::Address::SocketAddress(socket))
            if socket.protocol() == core::socket_address::Protocol::Udp)
}

fn is_internal(listener: &pb::Listener) -> bool {
    matches!(listener.listener_specifier, Some(pb::listener::ListenerSpecifier::InternalListener(_)))
}

/// What an internal listener cannot have, as in Envoy.
fn check_internal(listener: &pb::Listener, problems: &mut Problems) {
    if listener.name.is_empty() {
        problems.report_at("name", "is required: an internal listener is found by it");
    }
    for (field, is_set) in [
        ("address", listener.address.is_some()),
        ("connection_balance_config", listener.connection_balance_config.is_some()),
        ("enable_reuse_port", listener.enable_reuse_port.is_some()),
        ("freebind", listener.freebind.is_some()),
        ("tcp_backlog_size", listener.tcp_backlog_size.is_some()),
        ("tcp_fast_open_queue_length", listener.tcp_fast_open_queue_length.is_some()),
        ("transparent", listener.transparent.is_some()),
        ("udp_listener_config", listener.udp_listener_config.is_some()),
    ] {
        if is_set {
            problems.report_at(field, "is only for a listener with a socket, and this is an internal one");
        }
    }
}

/// Where and how to listen.
pub(super) struct Bind {
    pub(super) address: Address,
    ipv4_compat: bool,
    pipe_mode: u32,
}

/// Where to listen; `None` when a problem was reported.
pub(super) fn bind_address(address: &core::Address, problems: &mut Problems) -> Option<Bind> {
    match address.address.as_ref()? {
        core::address::Address::SocketAddress(socket) => problems.at("socket_address", |problems| {
            let port = port(socket, problems)?;
            let ip = match socket.address.parse::<IpAddr>() {
                Ok(ip) => ip,
                Err(_) if socket.address.is_empty() => return None, // Breaks a field rule.
                Err(_) => {
                    let message = format!("{:?} is not an IP address; a listener needs one", socket.address);
                    problems.report_at("address", message);
                    return None;
                }
            };
            let mapped = |ip: IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unspecified() || ip.to_ipv4_mapped().is_some());
            if socket.ipv4_compat && !mapped(ip) {
                problems.report_at("ipv4_compat", "is only for the address :: or an IPv4-mapped one");
            }
            let address = Address::Ip(SocketAddr::new(ip, port));
            Some(Bind { address, ipv4_compat: socket.ipv4_compat, pipe_mode: 0 })
        }),
        core::address::Address::Pipe(pipe) => problems.at("pipe", |problems| {
            // Room for the path in a socket address, its final NUL included.
            const MAX_PATH: usize = 107;
            if pipe.path.len() > MAX_PATH {
                let message = format!("has {} bytes, may have at most {MAX_PATH}", pipe.path.len());
                problems.report_at("path", message);
            }
            if pipe.path.starts_with('@') && pipe.mode != 0 {
                problems.report_at("mode", "an abstract socket has no file mode");
            }
            let address = Address::Pipe(pipe.path.as_str().into());
            Some(Bind { address, ipv4_compat: false, pipe_mode: pipe.mode })
        }),
        core::address::Address::EnvoyInternalAddress(_) => {
            problems.report_at("envoy_internal_address", "a listener has none; use internal_listener");
            None
        }
    }
}

/// The listener of a filter chain.
struct Owner<'a> {
    name: &'a str,
    /// Requests leave the service by it.
    outbound: bool,
    /// Statistics of its TLS, made where there is any.
    ssl: &'a dyn Fn() -> Arc<SslStats>,
}

fn chain(
    config: &pb::FilterChain,
    owner: &Owner<'_>,
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> Option<FilterChain> {
    let before = problems.count();
    let tls = config.transport_socket.as_ref().and_then(|socket| {
        problems.at("transport_socket", |problems| tls::downstream(socket, owner.ssl, environment, problems))
    });
    let field = "transport_socket_connect_timeout";
    let handshake_timeout = idle(&config.transport_socket_connect_timeout, None, field, problems);
    let (filters, terminal) = filters(&config.filters, (owner.name, owner.outbound), environment, problems);
    if problems.count() > before {
        return None;
    }
    Some(FilterChain {
        name: config.name.as_str().into(),
        fingerprint: canonical::fingerprint(config),
        retirement: Arc::default(),
        tls,
        handshake_timeout,
        limits: (filters.iter()).any(|filter| {
            matches!(filter, NetworkFilter::ConnectionLimit(_) | NetworkFilter::ConnectionRate(_))
        }),
        sets_objects: filters.iter().any(|filter| matches!(filter, NetworkFilter::SetFilterState(_))),
        filters: filters.into(),
        terminal: terminal?,
    })
}

/// A network filter.
enum Filter {
    /// It changes no traffic.
    Passive(istio::Passive),
    Before(NetworkFilter),
    Last(Terminal),
}

/// The chain's filters: those before the terminal one, and that. A chain without any closes its connections at once,
/// as in Envoy.
fn filters(
    filters: &[pb::Filter],
    owner: (&str, bool),
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> (Vec<NetworkFilter>, Option<Terminal>) {
    let mut terminal = filters.is_empty().then(|| Terminal::DirectResponse(Bytes::new()));
    let mut before = Vec::new();
    let mut metrics = Vec::new();
    for (index, filter) in filters.iter().enumerate() {
        let last = index + 1 == filters.len();
        problems.at_index("filters", index, |problems| {
            let compiled = network_filter(filter, owner, environment, problems);
            if !last && is_terminal(filter) {
                let message =
                    format!("the terminal filter {} must be the last one of its chain", filter.name);
                problems.report(message);
            }
            match compiled {
                Some(Filter::Last(found)) => terminal = Some(found),
                Some(found) => {
                    if last {
                        let message = format!(
                            "{} is no terminal filter and cannot be the last one of its chain",
                            filter.name
                        );
                        problems.report(message);
                    }
                    match found {
                        Filter::Before(found) => before.push(found),
                        Filter::Passive(istio::Passive::Metrics(found)) => metrics.push(found),
                        Filter::Passive(istio::Passive::Nothing) | Filter::Last(_) => {}
                    }
                }
                None => {}
            }
        });
    }
    match &mut terminal {
        // Nobody else has it yet.
        Some(Terminal::Tcp(proxy)) => {
            if let Some(proxy) = Arc::get_mut(proxy) {
                proxy.metrics = metrics;
            }
        }
        Some(_) if !metrics.is_empty() => {
            problems.note("filters", "standard metrics of connections are made where a TCP proxy follows");
        }
        _ => {}
    }
    (before, terminal)
}

const HCM: &str = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const TCP_PROXY: &str = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
const ECHO: &str = "envoy.extensions.filters.network.echo.v3.Echo";
const DIRECT_RESPONSE: &str = "envoy.extensions.filters.network.direct_response.v3.Config";

fn is_terminal(filter: &pb::Filter) -> bool {
    match &filter.config_type {
        Some(pb::filter::ConfigType::TypedConfig(any)) => {
            [HCM, TCP_PROXY, ECHO, DIRECT_RESPONSE].contains(&type_of(any))
        }
        _ => false,
    }
}

fn network_filter(
    filter: &pb::Filter,
    owner: (&str, bool),
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> Option<Filter> {
    use pb::filter::ConfigType;
    let any = match &filter.config_type {
        Some(ConfigType::TypedConfig(any)) if !type_of(any).is_empty() => any,
        // Refused by the support table.
        Some(ConfigType::ConfigDiscovery(_)) => return None,
        _ => {
            problems.report_at("typed_config", "is required");
            return None;
        }
    };
    if let Some(passive) = problems.at("typed_config", |problems| istio::passive(any, problems)).ok()? {
        return Some(Filter::Passive(passive));
    }
    let terminal = problems.at("typed_config", |problems| match type_of(any) {
        HCM => {
            let config: Hcm = extension(any, "", problems)?;
            hcm::compile(&config, owner, environment, problems).map(|hcm| Terminal::Http(Arc::new(hcm)))
        }
        TCP_PROXY => {
            let config: TcpProxyConfig = extension(any, "", problems)?;
            rooms::tcp_proxy(&config, environment, problems).map(|proxy| Terminal::Tcp(Arc::new(proxy)))
        }
        ECHO => Some(Terminal::Echo),
        DIRECT_RESPONSE => {
            let config: direct_response::Config = extension(any, "", problems)?;
            let response = match &config.response {
                Some(source) => problems.at("response", |problems| data_source(source, problems))?,
                None => Bytes::new(),
            };
            Some(Terminal::DirectResponse(response))
        }
        found if network_filters::TYPES.contains(&found) => None,
        found => {
            problems.report(format!("the network filter {} ({found}) is not supported yet", filter.name));
            None
        }
    });
    if let Some(before) = problems.at("typed_config", |problems| {
        network_filters::compile(any, &environment.compiler.clusters, problems)
    }) {
        return before.map(Filter::Before);
    }
    terminal.map(Filter::Last)
}

/// The kernel's limit of an accept queue, which is also Envoy's default.
fn somaxconn() -> u32 {
    let read = std::fs::read_to_string("/proc/sys/net/core/somaxconn");
    read.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(4096)
}
