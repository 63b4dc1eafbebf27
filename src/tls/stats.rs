//! What is counted of handshakes: `listener.<address>.ssl.` and `cluster.<name>.ssl.`.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use metrics::{Counter, Gauge};

use tokio_rustls::rustls;

use rustls::SignatureScheme;

use super::params::{group_name, scheme_name, suite_name, version_name};
use crate::runtime::tls_stream::{HandshakeError, TlsStream};
use crate::telemetry::metrics::Scope;

crate::stats! {
    /// Fixed counters of TLS.
    pub struct SslCounters {
        counters {
            connection_error, handshake, session_reused, no_certificate, fail_verify_no_cert,
            fail_verify_error, fail_verify_san, fail_verify_cert_hash, ocsp_staple_failed, ocsp_staple_omitted,
            ocsp_staple_responses, ocsp_staple_requests,
        }
        gauges {}
        histograms {}
    }
}

crate::stats! {
    /// What is counted of contexts: `server_ssl_socket_factory.` and `client_ssl_socket_factory.`.
    pub struct ContextCounters {
        counters {
            ssl_context_update_by_sds, upstream_context_secrets_not_ready, downstream_context_secrets_not_ready,
        }
        gauges {}
        histograms {}
    }
}

/// Counters of the handshakes of a listener or a cluster.
#[derive(Debug)]
pub struct SslStats {
    /// Those that are always there.
    pub counters: SslCounters,
    /// Of its contexts.
    pub contexts: ContextCounters,
    scope: Scope,
    /// Counters of what was agreed on, made when it is first seen.
    agreed: Mutex<Vec<Agreed>>,
    /// When certificates expire, by their names.
    certificates: Mutex<BTreeMap<Box<str>, Gauge>>,
}

struct Agreed {
    kind: &'static str,
    name: &'static str,
    counter: Counter,
}

impl std::fmt::Debug for Agreed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.kind, self.name)
    }
}

impl SslStats {
    /// Of the listener with the scope `scope`.
    pub fn server(scope: &Scope) -> Self {
        Self::new(scope, "server_ssl_socket_factory")
    }

    /// Of the cluster with the scope `scope`.
    pub fn client(scope: &Scope) -> Self {
        Self::new(scope, "client_ssl_socket_factory")
    }

    fn new(scope: &Scope, contexts: &str) -> Self {
        let ssl = scope.sub("ssl");
        Self {
            counters: SslCounters::new(&ssl),
            contexts: ContextCounters::new(&scope.sub(contexts)),
            scope: ssl,
            agreed: Mutex::default(),
            certificates: Mutex::default(),
        }
    }

    /// Counts a handshake that came about.
    pub fn done(&self, stream: &TlsStream) {
        self.counters.handshake.increment(1);
        if stream.is_resumed() {
            self.counters.session_reused.increment(1);
        }
        stream.agreed(|state| {
            if state.peer_certificates().is_none_or(<[_]>::is_empty) {
                self.counters.no_certificate.increment(1);
            }
            if let Some(suite) = state.negotiated_cipher_suite() {
                self.count("ciphers", suite_name(suite.suite()));
            }
            if let Some(version) = state.protocol_version() {
                self.count("versions", version_name(version));
            }
            if let Some(group) = state.negotiated_key_exchange_group() {
                self.count("curves", group_name(group.name()));
            }
        });
    }

    /// Counts a handshake that failed. What the verifier found it has counted itself.
    pub fn failed(&self, error: &HandshakeError) {
        match error {
            HandshakeError::Io(_) | HandshakeError::Tls(rustls::Error::InvalidCertificate(_)) => {}
            HandshakeError::Tls(rustls::Error::NoCertificatesPresented) => {
                self.counters.fail_verify_no_cert.increment(1);
            }
            HandshakeError::Tls(_) => self.counters.connection_error.increment(1),
        }
    }

    /// Says when the certificate `name` expires, if that can be said.
    pub(super) fn expires(&self, name: &str, end: Option<SystemTime>) {
        let Some(end) = end.and_then(|end| end.duration_since(SystemTime::UNIX_EPOCH).ok()) else { return };
        let mut known = self.certificates.lock().unwrap_or_else(PoisonError::into_inner);
        let gauge = known.entry(name.into()).or_insert_with(|| {
            let scope = self.scope.tagged("certificate", "envoy_tls_certificate", name);
            scope.gauge("expiration_unix_time_seconds")
        });
        gauge.set(end.as_secs() as f64);
    }

    /// Counts a signature of the peer's that was good.
    pub(super) fn signed(&self, scheme: SignatureScheme) {
        if let Some(name) = scheme_name(scheme) {
            self.count("sigalgs", name);
        }
    }

    fn count(&self, kind: &'static str, name: &'static str) {
        let mut agreed = self.agreed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = agreed.iter().find(|known| known.kind == kind && known.name == name) {
            return known.counter.increment(1);
        }
        let counter = self.scope.counter(&format!("{kind}.{name}"));
        counter.increment(1);
        agreed.push(Agreed { kind, name, counter });
    }
}
