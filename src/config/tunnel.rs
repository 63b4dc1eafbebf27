//! TCP through HTTP: what the proxy asks for (`TcpProxy.TunnelingConfig`).

use outrigger_control_api::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::TunnelingConfig;

use super::problems::Problems;
use super::route::HeaderOps;
use crate::http::call;
use crate::http::h1::check_authority;
use crate::http::head::RequestHead;
use crate::telemetry::format::{Format, FormatContext};
use crate::telemetry::stream_info::StreamInfo;

/// A compiled `tunneling_config`.
#[derive(Debug)]
pub struct Tunnel {
    hostname: Format,
    /// The path to POST to; `None` = CONNECT.
    post: Option<Box<str>>,
    headers: HeaderOps,
}

impl Tunnel {
    /// Compiles `config`; `None` when a problem was reported.
    pub fn compile(config: &TunnelingConfig, problems: &mut Problems) -> Option<Self> {
        if !config.use_post && !config.post_path.is_empty() {
            problems.report_at("post_path", "is only for use_post");
        }
        let post = config.use_post.then(|| match config.post_path.as_str() {
            "" => "/".into(),
            path => path.into(),
        });
        if let Some(path) = post.as_deref().filter(|path: &&str| !is_path(path)) {
            problems.report_at("post_path", format_args!("{path:?} is no path"));
        }
        let hostname = problems.at("hostname", |problems| problems.take(Format::parse(&config.hostname)));
        let headers = HeaderOps::compile(&config.headers_to_add, "headers_to_add", &[], "", problems);
        Some(Self { hostname: hostname?, post, headers: headers? })
    }

    /// The request that asks for the tunnel of a connection; `None` when what it would say cannot be said in HTTP.
    pub fn request(&self, info: &StreamInfo) -> Option<RequestHead> {
        let mut authority = Vec::new();
        self.hostname.render(&mut authority, &FormatContext::new(info));
        let mut head = match &self.post {
            Some(path) => call::head(b"POST", &authority, path.as_bytes(), b"http"),
            None => call::head(b"CONNECT", &authority, b"", b""),
        };
        self.headers.apply_to_request(&mut head, info);
        // Names of servers and metadata come from peers.
        let is_value = |value: &[u8]| value.iter().all(|byte| !matches!(byte, 0..=8 | 10..=31 | 127));
        let good =
            check_authority(&authority).is_ok() && head.fields.iter().all(|(_, _, value)| is_value(value));
        good.then_some(head)
    }
}

fn is_path(path: &str) -> bool {
    path.starts_with('/') && path.bytes().all(|byte| (0x21..0x7f).contains(&byte))
}
