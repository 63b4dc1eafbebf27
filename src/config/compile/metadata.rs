//! Metadata of resources (`envoy.config.core.v3.Metadata`), as formats, expressions and filters read them.

use std::sync::Arc;

use outrigger_control_api::pb::envoy::config::core::v3::Metadata;

use crate::telemetry::stream_info::DynamicMetadata;

/// The fields of each namespace; `None` if there is none.
pub(in crate::config) fn noted(metadata: Option<&Metadata>) -> Option<Arc<DynamicMetadata>> {
    let fields = &metadata?.filter_metadata;
    (!fields.is_empty()).then(|| Arc::new(fields.clone().into_iter().collect()))
}
