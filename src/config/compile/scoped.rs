//! Scoped routes: `ScopedRoutes` of a connection manager, and `ScopedRouteConfiguration`, inline or as a
//! control plane sends it.

use std::sync::Arc;

use outrigger_control_api::pb::envoy::config::route::v3 as route;
use outrigger_control_api::pb::envoy::extensions::filters::network::http_connection_manager::v3 as pb;

use super::discovery::config_source;
use super::resource::{RouteNeed, ScopesNeed};
use super::{rooms, Environment};
use crate::config::discovery::{ConfigSource, Source};
use crate::config::problems::Problems;
use crate::config::route::RouteTable;
use crate::config::scopes::{
    conflict, Extract, FragmentBuilder, KeyBuilder, Scope, ScopeKey, ScopeTable, ScopedRoutes,
};
use crate::config::{HeaderKey, Slot};

/// A compiled `ScopedRouteConfiguration`: a scope before its table is looked for.
#[derive(Debug)]
pub struct ScopeConfig {
    /// Its name.
    pub name: Arc<str>,
    /// Its key.
    pub key: ScopeKey,
    /// Its table.
    pub table: ScopeTableRef,
}

/// Where the table of a scope is.
#[derive(Debug)]
pub enum ScopeTableRef {
    /// By RDS.
    Named {
        /// The name to ask for.
        name: Arc<str>,
        /// Only when a request wants it.
        on_demand: bool,
    },
    /// In the scope itself.
    Inline(Arc<Slot<RouteTable>>),
}

/// Compiles `config`; the environment learns what is needed. `None` when a problem was reported.
pub(super) fn routes(
    config: &pb::ScopedRoutes,
    stat_prefix: &str,
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> Option<ScopedRoutes> {
    use pb::scoped_routes::ConfigSpecifier;
    let before = problems.count();
    let builder = problems.at("scope_key_builder", |problems| {
        // Demanded by a field rule.
        key_builder(config.scope_key_builder.as_ref()?, problems)
    });
    let source = |config: &Option<_>, field: &str, problems: &mut Problems| {
        let config = config.as_ref()?;
        problems.at(field, |problems| {
            config_source(config, environment.parent().as_ref(), environment.compiler, problems)
        })
    };
    let tables = source(&config.rds_config_source, "rds_config_source", problems);
    // Demanded by a field rule.
    let scopes = match config.config_specifier.as_ref()? {
        ConfigSpecifier::ScopedRouteConfigurationsList(list) => problems
            .at("scoped_route_configurations_list", |problems| {
                inline(list, config, tables.as_ref(), stat_prefix, environment, problems)
            }),
        ConfigSpecifier::ScopedRds(scoped) => {
            if config.rds_config_source.is_none() {
                problems.report_at("rds_config_source", "is required with scoped_rds");
            }
            let scopes = problems.at("scoped_rds", |problems| {
                source(&scoped.scoped_rds_config_source, "scoped_rds_config_source", problems)
            });
            scopes.zip(tables).map(|(source, tables)| {
                discovered(source, tables, (stat_prefix.into(), config.name.as_str().into()), environment)
            })
        }
    };
    (problems.count() == before).then_some(())?;
    Some(ScopedRoutes { builder: builder?, scopes: scopes? })
}

/// The slot of the scopes that a control plane sends; the environment learns that they are needed.
fn discovered(
    source: ConfigSource,
    tables: ConfigSource,
    user: (Arc<str>, Arc<str>),
    environment: &Environment<'_>,
) -> Arc<Slot<ScopeTable>> {
    let slot = environment.compiler.scopes_slot(&source.source, &tables.source);
    let mut needs = environment.needs.borrow_mut();
    match needs.scoped_routes.iter_mut().find(|need| Arc::ptr_eq(&need.slot, &slot)) {
        Some(need) => need.users.push(user),
        None => {
            needs.scoped_routes.push(ScopesNeed { source, tables, slot: slot.clone(), users: vec![user] });
        }
    }
    slot
}

/// The scopes of a list; the environment learns of the tables they need.
fn inline(
    list: &pb::ScopedRouteConfigurationsList,
    config: &pb::ScopedRoutes,
    tables: Option<&ConfigSource>,
    stat_prefix: &str,
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> Option<Arc<Slot<ScopeTable>>> {
    let before = problems.count();
    let mut compiled: Vec<ScopeConfig> = Vec::with_capacity(list.scoped_route_configurations.len());
    for (index, scope) in list.scoped_route_configurations.iter().enumerate() {
        problems.at_index("scoped_route_configurations", index, |problems| {
            if compiled.iter().any(|other| *other.name == *scope.name) {
                problems.report_at("name", format!("there are two scopes {:?}", scope.name));
            }
            if !scope.route_configuration_name.is_empty() && config.rds_config_source.is_none() {
                let message = "needs rds_config_source, which is not set";
                problems.report_at("route_configuration_name", message);
            }
            compiled.extend(scope_config(scope, environment, problems));
        });
    }
    if let Some((one, other)) = conflict(compiled.iter().map(|scope| (&*scope.name, &scope.key))) {
        problems.report(conflict_text(one, other));
    }
    if problems.count() > before {
        return None;
    }
    let mut needs = environment.needs.borrow_mut();
    let mut scopes = Vec::with_capacity(compiled.len());
    for scope in compiled {
        let (routes, on_demand) = match scope.table {
            ScopeTableRef::Inline(slot) => (slot, false),
            ScopeTableRef::Named { name, on_demand } => {
                // Reported above where there is none.
                let slot = environment.compiler.route_slot(&tables?.source, &name);
                let all = if on_demand { &mut needs.lazy_tables } else { &mut needs.route_tables };
                if !all.iter().any(|need| Arc::ptr_eq(&need.slot, &slot)) {
                    let stat_prefixes = vec![stat_prefix.into()];
                    all.push(RouteNeed { source: tables?.clone(), name, slot: slot.clone(), stat_prefixes });
                }
                (slot, on_demand)
            }
        };
        scopes.push(Scope { name: scope.name, key: scope.key, routes, on_demand });
    }
    Some(Slot::anonymous(Arc::new(ScopeTable::new(scopes))))
}

/// What is wrong with two scopes that have the same key.
pub fn conflict_text(first: &str, second: &str) -> String {
    format!("scope key conflict: the scopes {first:?} and {second:?} have the same key")
}

fn key_builder(config: &pb::scoped_routes::ScopeKeyBuilder, problems: &mut Problems) -> Option<KeyBuilder> {
    use pb::scoped_routes::scope_key_builder::fragment_builder::header_value_extractor::ExtractType;
    use pb::scoped_routes::scope_key_builder::fragment_builder::Type;
    let mut fragments = Vec::with_capacity(config.fragments.len());
    for (index, fragment) in config.fragments.iter().enumerate() {
        let Some(Type::HeaderValueExtractor(extractor)) = &fragment.r#type else { continue };
        problems.at(format_args!("fragments[{index}].header_value_extractor"), |problems| {
            let extract = match &extractor.extract_type {
                None => return problems.report("needs index or element"),
                Some(ExtractType::Index(index)) => {
                    if *index > 0 && extractor.element_separator.is_empty() {
                        let message = format!("is {index}, must be 0 without element_separator");
                        return problems.report_at("index", message);
                    }
                    Extract::Index(*index as usize)
                }
                Some(ExtractType::Element(element)) => Extract::Element {
                    separator: element.separator.as_bytes().into(),
                    key: element.key.as_bytes().into(),
                },
            };
            fragments.push(FragmentBuilder {
                header: HeaderKey::new(&extractor.name),
                separator: extractor.element_separator.as_bytes().into(),
                extract,
            });
        });
    }
    // One that is missing was reported here, or by a field rule.
    (fragments.len() == config.fragments.len()).then(|| KeyBuilder { fragments: fragments.into() })
}

/// Compiles one scope. `None` when a problem was reported.
pub(super) fn scope_config(
    config: &route::ScopedRouteConfiguration,
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> Option<ScopeConfig> {
    use route::scoped_route_configuration::key::fragment::Type;
    let before = problems.count();
    let fragments = config.key.iter().flat_map(|key| &key.fragments);
    // One without a type breaks a field rule.
    let types = fragments.filter_map(|fragment| fragment.r#type.as_ref());
    let key = types.map(|Type::StringKey(text)| text.as_bytes().into());
    let name = config.route_configuration_name.as_str();
    let table = match (&config.route_configuration, name.is_empty()) {
        (Some(routes), true) => {
            let table = problems.at("route_configuration", |problems| {
                rooms::route_table(routes, false, environment, problems)
            });
            table.map(|table| ScopeTableRef::Inline(Slot::anonymous(Arc::new(table))))
        }
        (None, false) if name.starts_with("xdstp:") => {
            problems.report_at("route_configuration_name", "xdstp names are not supported");
            None
        }
        (None, false) => Some(ScopeTableRef::Named { name: name.into(), on_demand: config.on_demand }),
        (Some(_), false) => {
            problems.report_at("route_configuration", "excludes route_configuration_name: set one of them");
            None
        }
        (None, true) => {
            let message = "is required where there is no route_configuration";
            problems.report_at("route_configuration_name", message);
            None
        }
    };
    let scope = ScopeConfig { name: config.name.as_str().into(), key: key.collect(), table: table? };
    (problems.count() == before).then_some(scope)
}

impl Environment<'_> {
    /// What `self` means in the resource that is compiled; nothing in the bootstrap.
    pub(super) fn parent(&self) -> Option<Source> {
        self.dynamic.then(|| self.compiler.lds.clone().unwrap_or(Source::SameAsParent))
    }
}
