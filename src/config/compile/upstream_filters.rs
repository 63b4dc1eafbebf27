//! HTTP filters of a cluster (`HttpProtocolOptions.http_filters`): their messages in, [`UpstreamFilter`]s out.

use std::sync::Arc;

use outrigger_control_api::pb::envoy::extensions::filters::http::header_mutation::v3::HeaderMutation;
use outrigger_control_api::pb::envoy::extensions::filters::network::http_connection_manager::v3 as pb;
use outrigger_control_api::type_of;

use super::extension;
use crate::config::cluster::{UpstreamFilter, UpstreamFilterKind};
use crate::config::problems::Problems;
use crate::config::route::FilterName;
use crate::http::filters::{credential_injector, header_mutation};
use crate::telemetry::metrics::Scope;

const CODEC: &str = "envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec";
const CREDENTIAL_INJECTOR: &str = "envoy.extensions.filters.http.credential_injector.v3.CredentialInjector";
const HEADER_MUTATION: &str = "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation";

/// The filters before the codec, which is the last one, of a cluster that counts under `stat_name`.
pub(super) fn compile(
    list: &[pb::HttpFilter],
    stat_name: &str,
    problems: &mut Problems,
) -> Arc<[UpstreamFilter]> {
    let mut filters = Vec::new();
    let mut ends = list.is_empty();
    for (index, config) in list.iter().enumerate() {
        problems.at_index("http_filters", index, |problems| {
            let Some(pb::http_filter::ConfigType::TypedConfig(any)) = &config.config_type else {
                return problems
                    .report_at("typed_config", "is required: filters of clusters are not discovered");
            };
            if config.disabled {
                return problems.report_at("disabled", "filters of clusters are on");
            }
            let last = index + 1 == list.len();
            match type_of(any) {
                CODEC if last => ends = true,
                CODEC => problems.report_at("typed_config", "the codec must be the last filter"),
                HEADER_MUTATION => problems.at("typed_config", |problems| {
                    let Some(config_of) = extension::<HeaderMutation>(any, "", problems) else { return };
                    let mutations = config_of.mutations.clone().unwrap_or_default();
                    for (field, list) in [
                        ("request_trailers_mutations", &mutations.request_trailers_mutations),
                        ("response_trailers_mutations", &mutations.response_trailers_mutations),
                    ] {
                        if !list.is_empty() {
                            let why = "filters of clusters see no trailers; those of a connection manager do";
                            problems.report_at(format_args!("mutations.{field}"), why);
                        }
                    }
                    if let Some(filter) = header_mutation::Config::compile(&config_of, problems) {
                        let filter = UpstreamFilterKind::HeaderMutation(filter);
                        filters.push(UpstreamFilter { name: FilterName::new(&config.name), filter });
                    }
                }),
                CREDENTIAL_INJECTOR => problems.at("typed_config", |problems| {
                    let Some(config_of) = extension(any, "", problems) else { return };
                    let stats = Scope::cluster(stat_name);
                    if let Some(filter) = credential_injector::Config::compile(&config_of, &stats, problems) {
                        let filter = UpstreamFilterKind::CredentialInjector(Arc::new(filter));
                        filters.push(UpstreamFilter { name: FilterName::new(&config.name), filter });
                    }
                }),
                found => {
                    let why = format!("{found} is no filter that a cluster can have yet");
                    problems.report_at("typed_config", why);
                }
            }
        });
    }
    if !ends {
        problems.report_at("http_filters", "must end with the codec (envoy.filters.http.upstream_codec)");
    }
    filters.into()
}
