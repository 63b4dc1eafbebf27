//! `x-forwarded-client-cert`: who the client is, told to the upstream (envoyproxy.io: http_conn_man/headers).

use super::head::RequestHead;
use crate::config::discovery::SanKind;
use crate::config::http::{CertDetails, ClientCert};
use crate::config::Known;
use crate::telemetry::stream_info::ConnectionInfo;
use crate::tls::{Peer, TlsInfo};

const NAME: Known = Known::XForwardedClientCert;

/// Does with the header what `mode` says.
pub(super) fn forward(mode: ClientCert, head: &mut RequestHead, connection: &ConnectionInfo) {
    let peer = connection.tls.as_ref().and_then(|tls| Some((&**tls, &**tls.peer.as_ref()?)));
    match (mode, peer) {
        (ClientCert::AlwaysForwardOnly, _) | (ClientCert::ForwardOnly, Some(_)) => {}
        (ClientCert::Sanitize, _) | (_, None) => {
            head.fields.remove_known(NAME);
        }
        (ClientCert::AppendForward(details), Some((tls, peer))) => {
            let element = element(details, tls, peer);
            match head.fields.get(NAME).map(|theirs| [theirs, b",", element.as_bytes()].concat()) {
                Some(both) => head.fields.set_known(NAME, &both),
                None => head.fields.push_known(NAME, element.as_bytes()),
            }
        }
        (ClientCert::SanitizeSet(details), Some((tls, peer))) => {
            head.fields.remove_known(NAME);
            head.fields.push_known(NAME, element(details, tls, peer).as_bytes());
        }
    }
}

/// One element of the header.
fn element(details: CertDetails, tls: &TlsInfo, peer: &Peer) -> String {
    let facts = peer.facts();
    let mut out = String::new();
    let mut put = |key: &str, value: &str, quoted: bool| {
        if !out.is_empty() {
            out.push(';');
        }
        out.push_str(key);
        out.push('=');
        if quoted {
            out.push('"');
        }
        out.push_str(value);
        if quoted {
            out.push('"');
        }
    };
    for uri in tls.local_facts().iter().flat_map(|own| own.of_kind(SanKind::Uri)) {
        put("By", uri, false);
    }
    put("Hash", &facts.sha256, false);
    if details.cert {
        put("Cert", peer.pem(), true);
    }
    if details.chain {
        put("Chain", peer.chain_pem(), true);
    }
    if details.subject {
        put("Subject", &facts.subject, true);
    }
    if details.uri {
        let mut any = false;
        for uri in facts.of_kind(SanKind::Uri) {
            any = true;
            put("URI", uri, false);
        }
        if !any {
            put("URI", "", false);
        }
    }
    if details.dns {
        for dns in facts.of_kind(SanKind::Dns) {
            put("DNS", dns, false);
        }
    }
    out
}
