//! HTTP filters but the router: their messages in, [`HttpFilter`]s out.

use std::sync::Arc;

use outrigger_control_api::pb::envoy::extensions::filters::http::grpc_http1_bridge::v3::Config as Bridge;
use outrigger_control_api::pb::envoy::extensions::filters::http::grpc_stats::v3 as stats;
use outrigger_control_api::pb::envoy::extensions::filters::http::grpc_web::v3::GrpcWeb;
use outrigger_control_api::pb::google::protobuf::Any;
use outrigger_control_api::type_of;

use super::{bool_or, extension};
use crate::config::http::HttpFilter;
use crate::config::problems::Problems;
use crate::http::filters::grpc_http1_bridge;
use crate::http::filters::grpc_stats::{ByMethod, Config};

const STATS: &str = "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig";
const WEB: &str = "envoy.extensions.filters.http.grpc_web.v3.GrpcWeb";
const BRIDGE: &str = "envoy.extensions.filters.http.grpc_http1_bridge.v3.Config";

/// Whether filters of this type are compiled here.
pub(super) fn knows(kind: &str) -> bool {
    matches!(kind, STATS | WEB | BRIDGE)
}

/// The filter in `any`. `None` when a problem was reported.
pub(super) fn compile(any: &Any, problems: &mut Problems) -> Option<HttpFilter> {
    match type_of(any) {
        STATS => Some(HttpFilter::GrpcStats(grpc_stats(&extension(any, "", problems)?))),
        WEB => {
            let _: GrpcWeb = extension(any, "", problems)?;
            Some(HttpFilter::GrpcWeb)
        }
        _ => {
            let config: Bridge = extension(any, "", problems)?;
            Some(HttpFilter::GrpcHttp1Bridge(grpc_http1_bridge::Config {
                protobuf: config.upgrade_protobuf_to_grpc,
                drop_query: config.ignore_query_parameters,
            }))
        }
    }
}

fn grpc_stats(config: &stats::FilterConfig) -> Config {
    use stats::filter_config::PerMethodStatSpecifier;
    let by_method = match &config.per_method_stat_specifier {
        Some(PerMethodStatSpecifier::IndividualMethodStatsAllowlist(list)) => {
            let path = |service: &str, method: &str| format!("/{service}/{method}").into_bytes().into();
            let paths = list
                .services
                .iter()
                .flat_map(|service| service.method_names.iter().map(|method| path(&service.name, method)));
            ByMethod::These(Arc::new(paths.collect()))
        }
        Some(PerMethodStatSpecifier::StatsForAllMethods(all)) if bool_or(Some(*all), false) => ByMethod::All,
        _ => ByMethod::None,
    };
    Config {
        by_method,
        times: config.enable_upstream_stats,
        replace_dots: config.replace_dots_in_grpc_service_name,
    }
}
