//! What routes demand of a request beyond its head: metadata, filter state, the client's certificate.

use outrigger_control_api::pb::envoy::config::route::v3 as pb;

use crate::config::compile::rbac;
use crate::config::problems::Problems;
use crate::policy::rbac::MetadataMatcher;
use crate::policy::state::StateMatcher;
use crate::telemetry::stream_info::{read_dynamic_metadata, StreamInfo};

/// All of it must hold.
#[derive(Debug)]
pub(super) struct Beyond {
    metadata: Box<[MetadataMatcher]>,
    state: Box<[StateMatcher]>,
    /// Whether the client has a certificate, and one that was verified.
    presented: Option<bool>,
    validated: Option<bool>,
}

impl Beyond {
    /// Compiles that of `config`; `Ok(None)` if it demands nothing.
    ///
    /// # Errors
    /// A problem was reported.
    pub(super) fn compile(config: &pb::RouteMatch, problems: &mut Problems) -> Result<Option<Self>, ()> {
        let before = problems.count();
        let mut metadata = Vec::new();
        for (index, config) in config.dynamic_metadata.iter().enumerate() {
            read_dynamic_metadata();
            metadata.extend(
                problems.at_index("dynamic_metadata", index, |problems| rbac::metadata(config, problems)),
            );
        }
        let mut state = Vec::new();
        for (index, config) in config.filter_state.iter().enumerate() {
            state.extend(problems.at_index("filter_state", index, |problems| rbac::state(config, problems)));
        }
        let tls = config.tls_context.as_ref();
        let presented = tls.and_then(|tls| tls.presented).map(|wanted| wanted.value);
        let validated = tls.and_then(|tls| tls.validated).map(|wanted| wanted.value);
        if problems.count() > before {
            return Err(());
        }
        let nothing = metadata.is_empty() && state.is_empty() && presented.is_none() && validated.is_none();
        let all = Self { metadata: metadata.into(), state: state.into(), presented, validated };
        Ok((!nothing).then_some(all))
    }

    /// Whether it holds of a stream; where none is known, it does not.
    pub(super) fn holds(&self, stream: Option<&StreamInfo>) -> bool {
        let Some(stream) = stream else { return false };
        let noted = |filter: &str| stream.metadata.as_deref().and_then(|all| all.get(filter));
        let tls = stream.connection.tls.as_ref();
        self.state.iter().all(|matcher| matcher.matches(stream))
            && self.metadata.iter().all(|matcher| matcher.matches(noted(&matcher.filter)))
            && self.presented.is_none_or(|wanted| tls.is_some_and(|tls| tls.peer.is_some()) == wanted)
            && self.validated.is_none_or(|wanted| tls.is_some_and(|tls| tls.is_verified()) == wanted)
    }
}
