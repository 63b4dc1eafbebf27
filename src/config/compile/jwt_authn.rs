//! JSON Web Tokens: `envoy.filters.http.jwt_authn`'s messages in, providers and requirements of [`crate::policy::jwt`]
//! out.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use outrigger_control_api::pb::envoy::extensions::filters::http::jwt_authn::v3 as pb;
use outrigger_control_api::pb::envoy::extensions::filters::http::jwt_authn::v3::jwt_provider::JwksSourceSpecifier;
use outrigger_control_api::pb::envoy::extensions::filters::http::jwt_authn::v3::jwt_requirement::RequiresType;

use super::{data_source, duration, duration_or};
use crate::config::matcher::StringMatcher;
use crate::config::problems::Problems;
use crate::config::route::RequestMatch;
use crate::config::services::{HttpTarget, Retries, ANY_FAILURE};
use crate::config::{Cluster, Directory, HeaderKey};
use crate::http::filters::jwt_authn::{fetch_ahead, ByState, Config, Demand, JwtStats, PerRoute, Rule};
use crate::policy::jwt::{Audiences, Extractor, KeySet, Keys, Provider, RemoteKeys, Requirement, TokenCache};
use crate::telemetry::metrics::Scope;

/// The filter's type.
pub(super) const TYPE: &str = "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication";
/// The type of what a route says to it.
pub(super) const PER_ROUTE: &str = "envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig";

/// Seconds by which clocks may differ where config does not say.
const SKEW: u32 = 60;
/// How long fetched keys are used where config does not say.
const LIFETIME: Duration = Duration::from_secs(600);
/// How long after a failure keys are fetched ahead again where config does not say.
const FAILED: Duration = Duration::from_secs(1);
/// Tokens cached, and bytes of one, where config does not say.
const CACHED: u32 = 100;
const CACHED_BYTES: u32 = 4096;

/// The filter, which counts below `stats`. `None` when a problem was reported.
pub(super) fn compile(
    config: &pb::JwtAuthentication,
    stats: &Scope,
    clusters: &Directory<Cluster>,
    problems: &mut Problems,
) -> Option<Config> {
    let before = problems.count();
    let scope = stats.sub("jwt_authn");
    let scope = match config.stat_prefix.trim_end_matches('.') {
        "" => scope,
        prefix => scope.sub(prefix),
    };
    let stats = Arc::new(JwtStats::new(&scope));
    let mut providers = Providers::default();
    let mut names: Vec<&String> = config.providers.keys().collect();
    names.sort();
    for name in names {
        let Some(message) = config.providers.get(name) else { continue };
        problems.at(format_args!("providers[{name:?}]"), |problems| {
            if let Some(provider) = provider(message, clusters, problems) {
                let extractor = extractor([message]);
                providers.0.insert(name, (message, Arc::new(provider), Arc::new(extractor)));
            }
        });
    }
    if problems.count() > before {
        return None;
    }
    let mut named = BTreeMap::new();
    for (name, config) in &config.requirement_map {
        problems.at(format_args!("requirement_map[{name:?}]"), |problems| {
            let requirement = providers.requirement(config, &[], problems);
            named.extend(requirement.map(|requirement| (Box::from(name.as_str()), requirement)));
        });
    }
    let rules = (config.rules.iter().enumerate())
        .filter_map(|(index, rule)| {
            problems.at_index("rules", index, |problems| {
                let matched = rule.r#match.as_ref().and_then(|config| {
                    problems.at("match", |problems| RequestMatch::compile(config, problems))
                });
                use pb::requirement_rule::RequirementType;
                let demand = match &rule.requirement_type {
                    None => None,
                    Some(RequirementType::Requires(config)) => problems
                        .at("requires", |problems| providers.requirement(config, &[], problems))
                        .map(Demand::Own),
                    Some(RequirementType::RequirementName(name)) => {
                        if !named.contains_key(name.as_str()) {
                            let message = format!("there is no {name:?} in requirement_map");
                            problems.report_at("requirement_name", message);
                        }
                        Some(Demand::Named(name.as_str().into()))
                    }
                };
                matched.map(|matched| Rule { matched, demand })
            })
        })
        .collect();
    let by_state = config.filter_state_rules.as_ref().map(|config| {
        problems.at("filter_state_rules", |problems| {
            let mut requires = HashMap::new();
            for (text, config) in &config.requires {
                let requirement = problems.at(format_args!("requires[{text:?}]"), |problems| {
                    providers.requirement(config, &[], problems)
                });
                requires.extend(requirement.map(|requirement| (Box::from(text.as_str()), requirement)));
            }
            ByState { name: config.name.as_str().into(), requires }
        })
    });
    if problems.count() > before {
        return None;
    }
    for (_, provider, _) in providers.0.values() {
        match &provider.keys {
            Keys::Remote(remote) if remote.ahead.is_some() => fetch_ahead(remote, &stats),
            _ => {}
        }
    }
    Some(Config {
        rules,
        named,
        providers: providers.0.values().map(|(_, provider, _)| provider.clone()).collect(),
        bypass_preflight: config.bypass_cors_preflight,
        terse: config.strip_failure_response,
        preflight: [HeaderKey::new("origin"), HeaderKey::new("access-control-request-method")],
        stats,
        by_state,
    })
}

/// What a route says; a message without a word, which a field rule forbids, says nothing.
pub(super) fn per_route(config: &pb::PerRouteConfig) -> Option<PerRoute> {
    use pb::per_route_config::RequirementSpecifier;
    Some(match config.requirement_specifier.as_ref()? {
        RequirementSpecifier::Disabled(_) => PerRoute::Off,
        RequirementSpecifier::RequirementName(name) => PerRoute::Named(name.as_str().into()),
    })
}

/// Providers by name, in their order: their messages, and what they became.
#[derive(Default)]
struct Providers<'c>(BTreeMap<&'c str, (&'c pb::JwtProvider, Arc<Provider>, Arc<Extractor>)>);

impl Providers<'_> {
    /// A requirement; `beside` are the names of the providers that the list around it names.
    fn requirement(
        &self,
        config: &pb::JwtRequirement,
        beside: &[&str],
        problems: &mut Problems,
    ) -> Option<Requirement> {
        match &config.requires_type {
            None => Some(Requirement::Nothing),
            Some(RequiresType::ProviderName(name)) => self.of(name, &[], "provider_name", problems),
            Some(RequiresType::ProviderAndAudiences(config)) => problems
                .at("provider_and_audiences", |problems| {
                    self.of(&config.provider_name, &config.audiences, "provider_name", problems)
                }),
            Some(RequiresType::RequiresAll(list)) => problems.at("requires_all", |problems| {
                let all: Vec<_> = (list.requirements.iter().enumerate())
                    .map(|(index, config)| {
                        problems.at_index("requirements", index, |problems| {
                            self.requirement(config, &[], problems)
                        })
                    })
                    .collect();
                all.into_iter().collect::<Option<_>>().map(Requirement::All)
            }),
            Some(RequiresType::RequiresAny(list)) => {
                problems.at("requires_any", |problems| self.any(&list.requirements, problems))
            }
            Some(RequiresType::AllowMissing(_)) => Some(self.optional(beside, false)),
            Some(RequiresType::AllowMissingOrFailed(_)) => Some(self.optional(beside, true)),
            // Refused by the support table.
            Some(RequiresType::ExtractOnlyWithoutValidation(_)) => None,
        }
    }

    fn any(&self, list: &[pb::JwtRequirement], problems: &mut Problems) -> Option<Requirement> {
        let mut used = Vec::new();
        let (mut any, mut optional) = (Vec::new(), None);
        for (index, config) in list.iter().enumerate() {
            match &config.requires_type {
                Some(RequiresType::ProviderName(name)) => used.push(name.as_str()),
                Some(RequiresType::ProviderAndAudiences(config)) => used.push(config.provider_name.as_str()),
                // Of several of these the most generous counts, and its turn is the last.
                Some(RequiresType::AllowMissing(_)) => {
                    optional.get_or_insert(config);
                    continue;
                }
                Some(RequiresType::AllowMissingOrFailed(_)) => {
                    optional = Some(config);
                    continue;
                }
                _ => {}
            }
            any.push(
                problems.at_index("requirements", index, |problems| self.requirement(config, &[], problems)),
            );
        }
        any.extend(optional.map(|config| self.requirement(config, &used, problems)));
        any.into_iter().collect::<Option<_>>().map(Requirement::Any)
    }

    fn of(
        &self,
        name: &str,
        audiences: &[String],
        field: &str,
        problems: &mut Problems,
    ) -> Option<Requirement> {
        let Some((_, provider, extractor)) = self.0.get(name) else {
            problems.report_at(field, format!("there is no provider {name:?}"));
            return None;
        };
        Some(Requirement::Of {
            provider: provider.clone(),
            extractor: extractor.clone(),
            audiences: (!audiences.is_empty()).then(|| Audiences::new(audiences)),
        })
    }

    fn optional(&self, beside: &[&str], or_bad: bool) -> Requirement {
        // Alone it looks where any provider does.
        let meant = |name: &str| beside.is_empty() || beside.contains(&name);
        let messages = self.0.iter().filter(|(name, _)| meant(name)).map(|(_, (message, ..))| *message);
        Requirement::Optional {
            providers: self.0.values().map(|(_, provider, _)| provider.clone()).collect(),
            extractor: Arc::new(extractor(messages)),
            or_bad,
        }
    }
}

fn extractor<'c>(providers: impl IntoIterator<Item = &'c pb::JwtProvider>) -> Extractor {
    let mut extractor = Extractor::default();
    for provider in providers {
        let issuer = &provider.issuer;
        for header in &provider.from_headers {
            extractor.header(issuer, &header.name, &header.value_prefix);
        }
        for name in &provider.from_params {
            extractor.parameter(issuer, name);
        }
        for name in &provider.from_cookies {
            extractor.cookie(issuer, name);
        }
        if provider.from_headers.is_empty()
            && provider.from_params.is_empty()
            && provider.from_cookies.is_empty()
        {
            extractor.header(issuer, "authorization", "Bearer ");
            extractor.parameter(issuer, "access_token");
        }
        if !provider.forward_payload_header.is_empty() {
            extractor.sanitize(&provider.forward_payload_header);
        }
        for claim in &provider.claim_to_headers {
            extractor.sanitize(&claim.header_name);
        }
    }
    extractor
}

fn provider(
    config: &pb::JwtProvider,
    clusters: &Directory<Cluster>,
    problems: &mut Problems,
) -> Option<Provider> {
    let before = problems.count();
    // Demanded by a field rule.
    let keys = match config.jwks_source_specifier.as_ref()? {
        JwksSourceSpecifier::LocalJwks(source) => problems.at("local_jwks", |problems| {
            let keys = KeySet::parse(&data_source(source, problems)?);
            if keys.is_none() {
                problems.report("is no key set with a key that can be used");
            }
            keys.map(Keys::Local)
        }),
        JwksSourceSpecifier::RemoteJwks(config) => {
            problems.at("remote_jwks", |problems| remote(config, clusters, problems))
        }
    };
    let subjects = config
        .subjects
        .as_ref()
        .and_then(|config| problems.at("subjects", |problems| StringMatcher::compile(config, problems)));
    let lifetime = duration(&config.max_lifetime, "max_lifetime", problems);
    let claims = (config.claim_to_headers.iter())
        .map(|claim| {
            let path: Box<[Box<str>]> = if claim.claim_path.is_empty() {
                claim.claim_name.split('.').map(Box::from).collect()
            } else {
                claim.claim_path.iter().map(|segment| segment.key.as_str().into()).collect()
            };
            (HeaderKey::new(&claim.header_name), path)
        })
        .collect();
    let payload_header = (!config.forward_payload_header.is_empty())
        .then(|| (HeaderKey::new(&config.forward_payload_header), config.pad_forward_payload_header));
    let cache = config.jwt_cache_config.as_ref().map(|cache| {
        let or = |value: u32, default: u32| if value == 0 { default } else { value } as usize;
        TokenCache::new(or(cache.jwt_cache_size, CACHED), or(cache.jwt_max_token_size, CACHED_BYTES))
    });
    let split = config.normalize_payload_in_metadata.as_ref();
    (problems.count() == before).then_some(())?;
    Some(Provider {
        issuer: config.issuer.as_str().into(),
        audiences: Audiences::new(&config.audiences),
        subjects,
        lifetime: match lifetime {
            Some(most) => Some(Some(most)),
            None => config.require_expiration.then_some(None),
        },
        keys: keys?,
        forward: config.forward,
        payload_header,
        claims,
        payload_metadata: config.payload_in_metadata.as_str().into(),
        header_metadata: config.header_in_metadata.as_str().into(),
        failure_metadata: config.failed_status_in_metadata.as_str().into(),
        split: split
            .map(|split| split.space_delimited_claims.iter().map(|name| name.as_str().into()).collect())
            .unwrap_or_default(),
        skew: u64::from(if config.clock_skew_seconds == 0 { SKEW } else { config.clock_skew_seconds }),
        reroute: config.clear_route_cache,
        cache,
    })
}

fn remote(config: &pb::RemoteJwks, clusters: &Directory<Cluster>, problems: &mut Problems) -> Option<Keys> {
    // Demanded by a field rule.
    let target = config.http_uri.as_ref().and_then(|config| {
        problems.at("http_uri", |problems| HttpTarget::compile(config, clusters, problems))
    });
    let lifetime = duration_or(&config.cache_duration, LIFETIME, "cache_duration", problems);
    let ahead = config.async_fetch.as_ref().map(|config| {
        problems.at("async_fetch", |problems| {
            if !config.fast_listener {
                problems.note("fast_listener", "listeners never wait for keys; requests do");
            }
            duration_or(&config.failed_refetch_duration, FAILED, "failed_refetch_duration", problems)
        })
    });
    let retries = problems
        .at("retry_policy", |problems| Retries::compile(config.retry_policy.as_ref(), ANY_FAILURE, problems));
    Some(Keys::Remote(Arc::new(RemoteKeys::new(target?, lifetime, ahead, retries))))
}
