//! What is captured: the command line of `outrigger init`, spelled as `istio-iptables` spells it, and its environment.

use std::net::IpAddr;
use std::str::FromStr;

use clap::builder::FalseyValueParser;
use clap::{Args, ValueEnum};

use super::rules::Cidr;

/// The flags. Lists are separated by commas.
#[derive(Debug, Clone, Args)]
pub struct CaptureFlags {
    /// Where outgoing connections go.
    #[arg(short = 'p', long, value_name = "PORT", env = "ENVOY_PORT", default_value_t = 15001)]
    pub envoy_port: u16,
    /// Where incoming connections go.
    #[arg(short = 'z', long, value_name = "PORT", env = "INBOUND_CAPTURE_PORT", default_value_t = 15006)]
    pub inbound_capture_port: u16,
    /// The port of tunnels between proxies, which is not captured; 0 = there is none.
    #[arg(short = 'e', long, value_name = "PORT", env = "INBOUND_TUNNEL_PORT", default_value_t = 15008)]
    pub inbound_tunnel_port: u16,
    /// Users whose connections are the proxy's own [default: 1337].
    #[arg(
        short = 'u',
        long,
        value_name = "UIDS",
        env = "PROXY_UID",
        default_value = "",
        hide_default_value = true
    )]
    pub proxy_uid: String,
    /// Groups whose connections are the proxy's own [default: as the users].
    #[arg(
        short = 'g',
        long,
        value_name = "GIDS",
        env = "PROXY_GID",
        default_value = "",
        hide_default_value = true
    )]
    pub proxy_gid: String,
    /// Marks of sockets whose connections are the proxy's own.
    #[arg(long, value_name = "MARKS", env = "PROXY_MARK", default_value = "", hide_default_value = true)]
    pub proxy_mark: String,
    /// How incoming connections are captured. TPROXY keeps the client's address.
    #[arg(
        short = 'm',
        long,
        value_enum,
        ignore_case = true,
        env = "ISTIO_INBOUND_INTERCEPTION_MODE",
        default_value_t = Inbound::Redirect
    )]
    pub istio_inbound_interception_mode: Inbound,
    /// The mark of the proxy's connections in a client's name, with TPROXY.
    #[arg(short = 't', long, value_name = "MARK", env = "ISTIO_INBOUND_TPROXY_MARK", default_value_t = 1337)]
    pub istio_inbound_tproxy_mark: u32,
    /// The routing table for them.
    #[arg(
        short = 'r',
        long,
        value_name = "TABLE",
        env = "ISTIO_INBOUND_TPROXY_ROUTE_TABLE",
        default_value_t = 133
    )]
    pub istio_inbound_tproxy_route_table: u32,
    /// Ports on which connections are captured as they come in; * = all, nothing = none.
    #[arg(short = 'b', long, value_name = "PORTS", env = "ISTIO_INBOUND_PORTS", default_value = "*")]
    pub istio_inbound_ports: String,
    /// Ports that are left out of that.
    #[arg(
        short = 'd',
        long,
        value_name = "PORTS",
        env = "ISTIO_LOCAL_EXCLUDE_PORTS",
        default_value = "",
        hide_default_value = true
    )]
    pub istio_local_exclude_ports: String,
    /// Addresses to which connections are captured as they go out; * = all, nothing = none.
    #[arg(short = 'i', long, value_name = "CIDRS", env = "ISTIO_SERVICE_CIDR", default_value = "*")]
    pub istio_service_cidr: String,
    /// Addresses that are left out of that.
    #[arg(
        short = 'x',
        long,
        value_name = "CIDRS",
        env = "ISTIO_SERVICE_EXCLUDE_CIDR",
        default_value = "",
        hide_default_value = true
    )]
    pub istio_service_exclude_cidr: String,
    /// Ports to which connections are captured wherever they go.
    #[arg(
        short = 'q',
        long,
        value_name = "PORTS",
        env = "ISTIO_OUTBOUND_PORTS",
        default_value = "",
        hide_default_value = true
    )]
    pub istio_outbound_ports: String,
    /// Ports to which connections are left alone.
    #[arg(
        short = 'o',
        long,
        value_name = "PORTS",
        env = "ISTIO_LOCAL_OUTBOUND_PORTS_EXCLUDE",
        default_value = "",
        hide_default_value = true
    )]
    pub istio_local_outbound_ports_exclude: String,
    /// Users whose connections are left alone, and are not the proxy's.
    #[arg(
        long,
        value_name = "UIDS",
        env = "OUTBOUND_UIDS_EXCLUDE",
        default_value = "",
        hide_default_value = true
    )]
    pub outbound_uids_exclude: String,
    /// Groups whose connections alone are captured as they go out; * = all.
    #[arg(long, value_name = "GIDS", env = "ISTIO_OUTBOUND_OWNER_GROUPS", default_value = "*")]
    pub istio_outbound_owner_groups: String,
    /// Groups whose connections are left alone.
    #[arg(
        long,
        value_name = "GIDS",
        env = "ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE",
        default_value = "",
        hide_default_value = true
    )]
    pub istio_outbound_owner_groups_exclude: String,
    /// Interfaces of virtual machines: what comes in there counts as going out.
    #[arg(
        short = 'k',
        long,
        value_name = "INTERFACES",
        env = "KUBE_VIRT_INTERFACES",
        default_value = "",
        hide_default_value = true
    )]
    pub kube_virt_interfaces: String,
    /// Interfaces that are left alone.
    #[arg(
        short = 'c',
        long,
        value_name = "INTERFACES",
        env = "ISTIO_EXCLUDE_INTERFACES",
        default_value = "",
        hide_default_value = true
    )]
    pub istio_exclude_interfaces: String,
    /// Capture what is asked of the name servers in /etc/resolv.conf.
    #[arg(long, env = "ISTIO_META_DNS_CAPTURE", value_parser = FalseyValueParser::new())]
    pub redirect_dns: bool,
    /// Capture what is asked of any name server.
    #[arg(long, env = "CAPTURE_ALL_DNS", value_parser = FalseyValueParser::new())]
    pub capture_all_dns: bool,
    /// Where captured questions go.
    #[arg(long, value_name = "PORT", env = "DNS_CAPTURE_PORT", default_value_t = 15053)]
    pub dns_capture_port: u16,
    /// Drop packets that belong to no connection.
    #[arg(long, env = "INVALID_DROP", value_parser = FalseyValueParser::new())]
    pub drop_invalid: bool,
}

/// How incoming connections are captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum Inbound {
    #[value(name = "REDIRECT")]
    Redirect,
    #[value(name = "TPROXY")]
    Tproxy,
}

/// Everything, or some.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum List<T> {
    All,
    Some(Vec<T>),
}

/// What is captured.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Options {
    pub outbound_port: u16,
    pub inbound_port: u16,
    /// 0 = none.
    pub tunnel_port: u16,
    pub proxy_users: Vec<u32>,
    pub proxy_groups: Vec<u32>,
    pub proxy_marks: Vec<u32>,
    pub mode: Inbound,
    pub tproxy_mark: u32,
    pub tproxy_table: u32,
    pub inbound_include: List<u16>,
    pub inbound_exclude: Vec<u16>,
    pub outbound_include: List<Cidr>,
    pub outbound_exclude: Vec<Cidr>,
    pub outbound_ports_include: Vec<u16>,
    pub outbound_ports_exclude: Vec<u16>,
    pub users_exclude: Vec<u32>,
    pub groups_include: List<u32>,
    pub groups_exclude: Vec<u32>,
    pub virtual_interfaces: Vec<String>,
    pub exclude_interfaces: Vec<String>,
    pub redirect_dns: bool,
    pub capture_all_dns: bool,
    pub dns_port: u16,
    pub nameservers: Vec<IpAddr>,
    pub drop_invalid: bool,
}

/// The user and the group that proxies of a mesh are.
const PROXY: u32 = 1337;
/// Room for an interface's name.
const MAX_INTERFACE: usize = 15;

impl Options {
    /// What the flags say; `own` is the user that the proxy is, where that is known.
    ///
    /// # Errors
    /// A list that is none, or a combination that cannot be; one line for the operator.
    pub fn new(flags: &CaptureFlags, own: Option<u32>) -> Result<Self, String> {
        let mut proxy_users = list(&flags.proxy_uid, "--proxy-uid")?;
        if proxy_users.is_empty() {
            proxy_users.push(own.unwrap_or(PROXY));
        }
        let mut proxy_groups = list(&flags.proxy_gid, "--proxy-gid")?;
        if proxy_groups.is_empty() {
            proxy_groups.clone_from(&proxy_users);
        }
        let redirect_dns = flags.redirect_dns || flags.capture_all_dns;
        let nameservers = match redirect_dns && !flags.capture_all_dns {
            true => nameservers(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default()),
            false => Vec::new(),
        };
        if flags.envoy_port == 0 || flags.inbound_capture_port == 0 {
            return Err("--envoy-port and --inbound-capture-port must not be 0".to_owned());
        }
        if flags.istio_inbound_tproxy_mark == 0 {
            return Err("--istio-inbound-tproxy-mark must not be 0, which every packet has".to_owned());
        }
        let groups_include = all_or(&flags.istio_outbound_owner_groups, "--istio-outbound-owner-groups")?;
        let groups_exclude =
            list(&flags.istio_outbound_owner_groups_exclude, "--istio-outbound-owner-groups-exclude")?;
        if groups_include != List::All && !groups_exclude.is_empty() {
            return Err("--istio-outbound-owner-groups and its -exclude cannot both be given".to_owned());
        }
        Ok(Self {
            outbound_port: flags.envoy_port,
            inbound_port: flags.inbound_capture_port,
            tunnel_port: flags.inbound_tunnel_port,
            proxy_users,
            proxy_groups,
            proxy_marks: list(&flags.proxy_mark, "--proxy-mark")?,
            mode: flags.istio_inbound_interception_mode,
            tproxy_mark: flags.istio_inbound_tproxy_mark,
            tproxy_table: flags.istio_inbound_tproxy_route_table,
            inbound_include: all_or(&flags.istio_inbound_ports, "--istio-inbound-ports")?,
            inbound_exclude: list(&flags.istio_local_exclude_ports, "--istio-local-exclude-ports")?,
            outbound_include: all_or(&flags.istio_service_cidr, "--istio-service-cidr")?,
            outbound_exclude: list(&flags.istio_service_exclude_cidr, "--istio-service-exclude-cidr")?,
            outbound_ports_include: list(&flags.istio_outbound_ports, "--istio-outbound-ports")?,
            outbound_ports_exclude: list(
                &flags.istio_local_outbound_ports_exclude,
                "--istio-local-outbound-ports-exclude",
            )?,
            users_exclude: list(&flags.outbound_uids_exclude, "--outbound-uids-exclude")?,
            groups_include,
            groups_exclude,
            virtual_interfaces: interfaces(&flags.kube_virt_interfaces, "--kube-virt-interfaces")?,
            exclude_interfaces: interfaces(&flags.istio_exclude_interfaces, "--istio-exclude-interfaces")?,
            redirect_dns,
            capture_all_dns: flags.capture_all_dns,
            dns_port: flags.dns_capture_port,
            nameservers,
            drop_invalid: flags.drop_invalid,
        })
    }
}

fn parts(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty())
}

fn list<T: FromStr>(text: &str, flag: &str) -> Result<Vec<T>, String> {
    let parse =
        |part: &str| part.parse().map_err(|_| format!("{flag}: '{part}' is none that can be meant here"));
    parts(text).map(parse).collect()
}

fn all_or<T: FromStr>(text: &str, flag: &str) -> Result<List<T>, String> {
    if text.trim() == "*" {
        return Ok(List::All);
    }
    list(text, flag).map(List::Some)
}

fn interfaces(text: &str, flag: &str) -> Result<Vec<String>, String> {
    let fits = |part: &str| part.len() <= MAX_INTERFACE && !part.contains(['/', '"', ' ']);
    match parts(text).find(|part| !fits(part)) {
        Some(part) => Err(format!("{flag}: '{part}' is no interface's name")),
        None => Ok(parts(text).map(str::to_owned).collect()),
    }
}

/// The name servers of a resolv.conf.
fn nameservers(text: &str) -> Vec<IpAddr> {
    let server = |line: &str| line.trim().strip_prefix("nameserver")?.trim().parse().ok();
    text.lines().filter_map(server).collect()
}
