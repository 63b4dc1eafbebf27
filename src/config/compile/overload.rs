//! What the bootstrap says of overload, and its extensions.

use outrigger_control_api::pb::envoy::config::core::v3::TypedExtensionConfig;
use outrigger_control_api::pb::envoy::config::overload::v3 as pb;
use outrigger_control_api::pb::envoy::extensions::bootstrap::internal_listener::v3::InternalListener;
use outrigger_control_api::pb::envoy::extensions::resource_monitors::downstream_connections::v3::DownstreamConnectionsConfig;
use outrigger_control_api::type_of;

use super::extension;
use crate::config::problems::Problems;
use crate::runtime::internal;

const CONNECTIONS: &str =
    "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig";
const INTERNAL_LISTENER: &str = "envoy.extensions.bootstrap.internal_listener.v3.InternalListener";
/// It changes nothing here.
const WORKLOADS: &str = "istio.workload.BootstrapExtension";

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

/// Takes what the extensions say; those that are not known are refused.
pub(super) fn check_extensions(list: &[TypedExtensionConfig], problems: &mut Problems) {
    for (index, config) in list.iter().enumerate() {
        problems.at_index("bootstrap_extensions", index, |problems| {
            let found = config.typed_config.as_ref().map(type_of).unwrap_or_default();
            if found == INTERNAL_LISTENER {
                problems.at("typed_config", |problems| {
                    let any = config.typed_config.as_ref();
                    let config = any.and_then(|any| extension::<InternalListener>(any, "", problems));
                    internal::set_buffer(match config.and_then(|config| config.buffer_size_kb) {
                        Some(size) => (size.value as usize).saturating_mul(1 << 10),
                        None => internal::BUFFER,
                    });
                });
            } else if found != WORKLOADS {
                problems
                    .report_at("typed_config", format!("the bootstrap extension {found} is not supported"));
            }
        });
    }
}
