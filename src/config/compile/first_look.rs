//! What a connection manager does to requests before all else: who the client is, and changes to the head.

use outrigger_control_api::pb::envoy::config::core::v3 as core;
use outrigger_control_api::pb::envoy::extensions::filters::network::http_connection_manager::v3 as pb;
use outrigger_control_api::pb::envoy::extensions::http::original_ip_detection::custom_header::v3::CustomHeaderConfig;
use outrigger_control_api::pb::envoy::extensions::http::original_ip_detection::xff::v3::XffConfig;
use outrigger_control_api::pb::google::protobuf::Any;
use outrigger_control_api::type_of;

use super::{bool_or, cidr, extension};
use crate::config::problems::Problems;
use crate::config::HeaderKey;
use crate::http::detection::{Detection, Trusted};
use crate::http::filters::header_mutation::Mutations;
use crate::policy::rbac::Networks;

/// How clients are found: `xff_num_trusted_hops`, and extensions that say more.
pub(super) fn detections(
    config: &pb::HttpConnectionManager,
    problems: &mut Problems,
) -> (u32, Vec<Detection>) {
    const FIELD: &str = "original_ip_detection_extensions";
    let list = &config.original_ip_detection_extensions;
    if list.is_empty() {
        return (config.xff_num_trusted_hops, Vec::new());
    }
    if bool_or(config.use_remote_address, false) {
        problems.report_at(FIELD, "cannot be combined with use_remote_address");
    }
    if config.xff_num_trusted_hops > 0 {
        problems.report_at(FIELD, "cannot be combined with xff_num_trusted_hops");
    }
    let each = |(index, config): (usize, &core::TypedExtensionConfig)| {
        problems.at_index(FIELD, index, |problems| match &config.typed_config {
            Some(any) => problems.at("typed_config", |problems| detection(any, problems)),
            None => {
                problems.report_at("typed_config", "is required");
                None
            }
        })
    };
    let detections: Vec<_> = list.iter().enumerate().filter_map(each).collect();
    match detections.as_slice() {
        // This says no more than the field would.
        [Detection::Forwarded { trusted: Trusted::Hops(hops), append: false }] => (*hops, Vec::new()),
        _ => (0, detections),
    }
}

fn detection(any: &Any, problems: &mut Problems) -> Option<Detection> {
    match type_of(any) {
        "envoy.extensions.http.original_ip_detection.xff.v3.XffConfig" => {
            let config: XffConfig = extension(any, "", problems)?;
            let mut trusted = Trusted::Hops(config.xff_num_trusted_hops);
            if let Some(cidrs) = &config.xff_trusted_cidrs {
                if config.xff_num_trusted_hops > 0 {
                    problems.report_at("xff_trusted_cidrs", "cannot be combined with xff_num_trusted_hops");
                }
                let mut networks = Networks::default();
                for (index, range) in cidrs.cidrs.iter().enumerate() {
                    let found =
                        problems.at_index("xff_trusted_cidrs.cidrs", index, |problems| cidr(range, problems));
                    if let Some((ip, length)) = found {
                        networks.extend(Networks::one(ip, length));
                    }
                }
                trusted = Trusted::In(networks);
            }
            Some(Detection::Forwarded { trusted, append: !bool_or(config.skip_xff_append, true) })
        }
        "envoy.extensions.http.original_ip_detection.custom_header.v3.CustomHeaderConfig" => {
            let config: CustomHeaderConfig = extension(any, "", problems)?;
            // As in Envoy, a refusal is never told as a success.
            let refusal = config.reject_with_status.map(|status| {
                u16::try_from(status.code).ok().filter(|code| (400..600).contains(code)).unwrap_or(403)
            });
            Some(Detection::Header {
                name: HeaderKey::new(&config.header_name),
                trusted: config.allow_extension_to_set_address_as_trusted,
                refusal,
            })
        }
        found => {
            problems.report(format_args!("{found} finds no addresses"));
            None
        }
    }
}

/// `early_header_mutation_extensions`.
pub(super) fn early(config: &pb::HttpConnectionManager, problems: &mut Problems) -> Vec<Mutations> {
    let each = |(index, config): (usize, &core::TypedExtensionConfig)| {
        problems.at_index("early_header_mutation_extensions", index, |problems| {
            problems.at("typed_config", |problems| {
                // Demanded by a field rule; other extensions are refused by the support table.
                Mutations::early(&extension(config.typed_config.as_ref()?, "", problems)?, problems)
            })
        })
    };
    config.early_header_mutation_extensions.iter().enumerate().filter_map(each).collect()
}
