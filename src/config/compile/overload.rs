//! What the bootstrap says of overload, and its extensions.

use outrigger_control_api::pb::envoy::config::core::v3::TypedExtensionConfig;
use outrigger_control_api::pb::envoy::config::overload::v3 as pb;
use outrigger_control_api::pb::envoy::extensions::resource_monitors::downstream_connections::v3::DownstreamConnectionsConfig;
use outrigger_control_api::type_of;

use super::extension;
use crate::config::problems::Problems;

const CONNECTIONS: &str =
    "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig";
const EXTENSIONS: [&str; 2] =
    ["envoy.extensions.bootstrap.internal_listener.v3.InternalListener", "istio.workload.BootstrapExtension"];

/// How many connections clients may have open; `None` = any number.
pub(super) fn connections(config: Option<&pb::OverloadManager>, problems: &mut Problems) -> Option<u64> {
    let mut most = None;
    for (index, monitor) in config?.resource_monitors.iter().enumerate() {
        problems.at("overload_manager", |problems| {
            problems.at_index("resource_monitors", index, |problems| {
                let Some(pb::resource_monitor::ConfigType::TypedConfig(any)) = &monitor.config_type else {
                    return problems.report_at("typed_config", "is required");
                };
                problems.at("typed_config", |problems| {
                    if type_of(any) != CONNECTIONS {
                        return problems.report(format!("{} is not watched", type_of(any)));
                    }
                    let config: Option<DownstreamConnectionsConfig> = extension(any, "", problems);
                    let given = config
                        .and_then(|config| u64::try_from(config.max_active_downstream_connections).ok());
                    match given {
                        Some(given) if given > 0 => most = Some(given),
                        _ => {
                            problems.report_at("max_active_downstream_connections", "must be greater than 0");
                        }
                    }
                });
            });
        });
    }
    most
}

/// Looks at the extensions: those that change nothing here are left out, all others refused.
pub(super) fn check_extensions(list: &[TypedExtensionConfig], problems: &mut Problems) {
    for (index, config) in list.iter().enumerate() {
        problems.at_index("bootstrap_extensions", index, |problems| {
            let found = config.typed_config.as_ref().map(type_of).unwrap_or_default();
            if !EXTENSIONS.contains(&found) {
                problems
                    .report_at("typed_config", format!("the bootstrap extension {found} is not supported"));
            }
        });
    }
}
