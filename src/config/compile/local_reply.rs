//! `local_reply_config`: which local replies get another status, body or headers.

use outrigger_control_api::pb::envoy::extensions::filters::network::http_connection_manager::v3 as pb;

use super::Environment;
use crate::config::http::LocalReplyRules;
use crate::config::problems::Problems;

/// The rules, if config has any.
pub(super) fn compile(
    config: Option<&pb::LocalReplyConfig>,
    _environment: &Environment<'_>,
    problems: &mut Problems,
) -> Option<LocalReplyRules> {
    config?;
    problems.report("local replies cannot be changed yet");
    None
}
