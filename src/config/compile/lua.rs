//! Scripts: `envoy.filters.http.lua`'s messages in, the [`Config`] of a processor that is asked in place out.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use outrigger_control_api::pb::envoy::config::common::mutation_rules::v3::HeaderMutationRules;
use outrigger_control_api::pb::envoy::config::core::v3::DataSource;
use outrigger_control_api::pb::envoy::extensions::filters::http::lua::v3 as pb;
use outrigger_control_api::pb::google::protobuf::{BoolValue, Struct};

use super::{bool_or, data_source};
use crate::config::problems::Problems;
use crate::http::filters::ext_authz::rules::MutationRules;
use crate::http::filters::ext_proc::{Body, Config, Mode, ProcessorStats, RouteCache, Service};
use crate::http::filters::lua::{Choice, PerRoute, Script, ScriptStats, Scripts};
use crate::telemetry::metrics::Scope;
use crate::telemetry::stream_info::{read_dynamic_metadata, read_route_metadata};

/// The filter's type.
pub(super) const TYPE: &str = "envoy.extensions.filters.http.lua.v3.Lua";
/// The type of what a route says to it.
pub(super) const PER_ROUTE: &str = "envoy.extensions.filters.http.lua.v3.LuaPerRoute";

/// A script takes the time that it takes.
const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// The filter, which counts below `stats`. `None` when a problem was reported.
pub(super) fn compile(config: &pb::Lua, stats: &Scope, problems: &mut Problems) -> Option<Config> {
    let before = problems.count();
    if !config.inline_code.is_empty() && config.default_source_code.is_some() {
        problems.report_at("inline_code", "only one of inline_code and default_source_code can be set");
    }
    let default = match &config.default_source_code {
        Some(source) => problems.at("default_source_code", |problems| read(source, problems)),
        None if config.inline_code.is_empty() => None,
        None => problems.at("inline_code", |problems| load(config.inline_code.as_bytes(), problems)),
    };
    let mut named = HashMap::new();
    for (name, source) in &config.source_codes {
        let script = problems.at(format_args!("source_codes[{name:?}]"), |problems| read(source, problems));
        named.extend(script.map(|script| (name.as_str().into(), script)));
    }
    let allow = Some(BoolValue { value: true });
    let rules = HeaderMutationRules {
        allow_all_routing: allow,
        allow_envoy: allow,
        ..HeaderMutationRules::default()
    };
    let rules = MutationRules::compile(&rules, problems);
    (problems.count() == before).then_some(())?;
    read_route_metadata();
    read_dynamic_metadata();
    let scripts = Scripts {
        default,
        named,
        context: config.filter_context.clone().map(Arc::new),
        stats: ScriptStats::new(&stats.sub("lua").sub(config.stat_prefix.trim_end_matches('.'))),
    };
    Some(Config {
        service: Service::Lua(Arc::new(scripts)),
        watches: None,
        fail_open: true,
        status_on_error: 500,
        mode: Mode {
            request_head: true,
            response_head: true,
            request_body: Body::None,
            response_body: Body::None,
            request_trailers: false,
            response_trailers: false,
        },
        timeout: FOR_EVER,
        max_timeout: Duration::ZERO,
        allow_override: true,
        overrides: Box::default(),
        no_immediate: false,
        route_cache: match bool_or(config.clear_route_cache, true) {
            true => RouteCache::AsAsked,
            false => RouteCache::Never,
        },
        rules: rules?,
        allowed: None,
        disallowed: Box::default(),
        told: Arc::default(),
        told_typed: Arc::default(),
        told_of_cluster: Arc::default(),
        heard: Arc::default(),
        attributes: Default::default(),
        stats: ProcessorStats::silent(),
    })
}

/// What a route says; a message without a word says nothing but what the script sees of it.
pub(super) fn per_route(config: &pb::LuaPerRoute, problems: &mut Problems) -> Option<PerRoute> {
    use pb::lua_per_route::Override;
    let choice = match &config.r#override {
        None => Choice::Default,
        Some(Override::Disabled(_)) => Choice::Off,
        Some(Override::Name(name)) => Choice::Named(name.as_str().into()),
        Some(Override::SourceCode(source)) => {
            Choice::Own(problems.at("source_code", |problems| read(source, problems))?)
        }
    };
    Some(PerRoute { choice, context: config.filter_context.clone().map(Arc::<Struct>::new) })
}

fn read(source: &DataSource, problems: &mut Problems) -> Option<Arc<Script>> {
    load(&data_source(source, problems)?, problems)
}

fn load(code: &[u8], problems: &mut Problems) -> Option<Arc<Script>> {
    match Script::load(code) {
        Ok(script) => Some(Arc::new(script)),
        Err(error) => {
            let first = error.lines().next().unwrap_or_default();
            problems.report(format_args!("script load error: {first}"));
            None
        }
    }
}
