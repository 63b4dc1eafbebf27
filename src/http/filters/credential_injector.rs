//! Credentials that requests are sent with (`envoy.filters.http.credential_injector`): a secret becomes the value of a
//! header, so that applications need not have it.

use std::sync::{Arc, OnceLock};

use outrigger_control_api::pb::envoy::extensions::filters::http::credential_injector::v3 as pb;
use outrigger_control_api::pb::envoy::extensions::http::injected_credentials::generic::v3::Generic;
use outrigger_control_api::type_of;

use super::chain::Step;
use super::oauth2::{secret, Secret};
use crate::config::compile::extension;
use crate::config::problems::Problems;
use crate::config::token::is_field_value;
use crate::config::{HeaderKey, HeaderMutate, HeaderView};
use crate::http::exchange::{Exchange, Reply};
use crate::http::head::RequestHead;
use crate::telemetry::metrics::Scope;

const GENERIC: &str = "envoy.extensions.http.injected_credentials.generic.v3.Generic";
const OAUTH: &str = "envoy.extensions.http.injected_credentials.oauth2.v3.OAuth2";

crate::stats! {
    /// `http.<stat_prefix>.credential_injector.`.
    pub struct InjectorStats {
        counters { injected, failed, already_exists }
        gauges {}
        histograms {}
    }
}

/// The filter.
#[derive(Debug)]
pub struct Config {
    /// A value that the request has is replaced.
    overwrite: bool,
    /// A request goes on where there is no credential.
    optional: bool,
    header: HeaderKey,
    /// Before the secret.
    prefix: Box<[u8]>,
    secret: Secret,
    stats: InjectorStats,
}

impl Config {
    /// Compiles `config`, which counts in `stats`, the connection manager's. `None` when a problem was reported.
    pub fn compile(config: &pb::CredentialInjector, stats: &Scope, problems: &mut Problems) -> Option<Self> {
        // What is missing breaks field rules.
        let any = config.credential.as_ref()?.typed_config.as_ref()?;
        let generic: Generic = problems.at("credential.typed_config", |problems| match type_of(any) {
            GENERIC => extension(any, "", problems),
            OAUTH => {
                problems.report("credentials from a token endpoint are not supported yet");
                None
            }
            found => {
                problems.report(format_args!("is of type {found}, must be of {GENERIC}"));
                None
            }
        })?;
        let place: Secret = Arc::new(OnceLock::new());
        // Demanded by a field rule.
        let wanted = generic.credential.as_ref()?;
        problems.at("credential.typed_config.credential", |problems| problems.want_secret(wanted, &place));
        let header = if generic.header.is_empty() { "authorization" } else { &generic.header };
        Some(Self {
            overwrite: config.overwrite,
            optional: config.allow_request_without_credential,
            header: HeaderKey::new(header),
            prefix: generic.header_value_prefix.as_bytes().into(),
            secret: place,
            stats: InjectorStats::new(&stats.sub("credential_injector")),
        })
    }

    pub(super) fn on_request(&self, ex: &mut Exchange<'_>) -> Step {
        let refused = ex.request.as_mut().and_then(|request| self.inject(request));
        refused.map_or(Step::Continue, Step::Reply)
    }

    /// Puts the credential into a request's head; an answer where it is needed and not there.
    pub(in crate::http) fn inject(&self, request: &mut RequestHead) -> Option<Reply> {
        if !self.overwrite && request.first(&self.header).is_some() {
            self.stats.already_exists.increment(1);
            return None;
        }
        let value = secret(&self.secret).map(|secret| [&self.prefix, &secret[..]].concat());
        match value.filter(|value| is_field_value(value)) {
            Some(value) => {
                request.set(&self.header, &value);
                self.stats.injected.increment(1);
                None
            }
            None => {
                self.stats.failed.increment(1);
                let reply = Reply::new(401, "failed_to_inject_credential");
                (!self.optional).then(|| reply.body("Failed to inject credential."))
            }
        }
    }
}
