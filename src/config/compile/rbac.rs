//! Role-based access control: both RBAC filters' messages in, [`Filter`]s of [`crate::policy::rbac`] out.

use outrigger_control_api::pb::envoy::config::core::v3::TypedExtensionConfig;
use outrigger_control_api::pb::envoy::config::rbac::v3 as pb;
use outrigger_control_api::pb::envoy::config::route::v3 as route;
use outrigger_control_api::pb::envoy::extensions::filters::http::rbac::v3 as http;
use outrigger_control_api::pb::envoy::extensions::filters::network::rbac::v3 as network;
use outrigger_control_api::pb::envoy::extensions::rbac::principals::mtls_authenticated::v3::Config as Mtls;
use outrigger_control_api::pb::envoy::r#type::matcher::v3 as matcher;
use outrigger_control_api::pb::envoy::r#type::v3::Int32Range;
use outrigger_control_api::pb::xds::r#type::matcher::v3::Matcher as Tree;
use outrigger_control_api::type_of;

use super::{cel, cidr, extension, networks, path_template, rbac_tree, tls};
use crate::config::listener::NetworkRbac;
use crate::config::matcher::{HeaderMatcher, StringMatcher};
use crate::config::problems::Problems;
use crate::config::HeaderKey;
use crate::policy::rbac::{
    Action, Condition, Engine, Filter, MetadataMatcher, MetadataSource, Networks, Policy, Ports, Rules,
    TextInput, TextSet, ValueMatcher, Whose,
};
use crate::policy::state::{StateMatcher, Wanted};
use crate::telemetry::metrics::Scope;
use crate::telemetry::stream_info::read_dynamic_metadata;

/// The type of the HTTP filter.
pub(crate) const HTTP: &str = "envoy.extensions.filters.http.rbac.v3.RBAC";
/// The type of what a route says to it.
pub(crate) const PER_ROUTE: &str = "envoy.extensions.filters.http.rbac.v3.RBACPerRoute";
/// The type of the network filter.
pub(crate) const NETWORK: &str = "envoy.extensions.filters.network.rbac.v3.RBAC";

const MTLS: &str = "envoy.extensions.rbac.principals.mtls_authenticated.v3.Config";

/// What rules are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layer {
    Network,
    Http,
}

/// Compiles the engines of either filter's message: both have them in fields of the same names.
macro_rules! engines {
    ($layer:expr, $config:ident, $problems:ident) => {
        (
            engine($layer, ("rules", &$config.rules), ("matcher", &$config.matcher), $problems),
            engine(
                $layer,
                ("shadow_rules", &$config.shadow_rules),
                ("shadow_matcher", &$config.shadow_matcher),
                $problems,
            ),
        )
    };
}

/// The HTTP filter, which counts below `stats` (`http.<stat_prefix>.`).
pub(crate) fn http(config: &http::Rbac, stats: &Scope, problems: &mut Problems) -> Option<Filter> {
    let rules = http_rules(config, problems)?;
    Some(Filter::new(stats, &config.rules_stat_prefix, Some("envoy_rbac_http_prefix"), rules))
}

/// What a route says; a message without rules turns the filter off.
pub(crate) fn per_route(config: &http::RbacPerRoute, problems: &mut Problems) -> Option<Rules> {
    match &config.rbac {
        Some(rbac) => problems.at("rbac", |problems| http_rules(rbac, problems)),
        None => Some(Rules::default()),
    }
}

fn http_rules(config: &http::Rbac, problems: &mut Problems) -> Option<Rules> {
    let before = problems.count();
    let (enforced, shadow) = engines!(Layer::Http, config, problems);
    (problems.count() == before).then(|| Rules {
        enforced,
        shadow,
        prefix: config.rules_stat_prefix.as_str().into(),
        shadow_prefix: config.shadow_rules_stat_prefix.as_str().into(),
        by_policy: config.track_per_rule_stats,
    })
}

/// The network filter.
pub(crate) fn network(config: &network::Rbac, problems: &mut Problems) -> Option<NetworkRbac> {
    let before = problems.count();
    let (enforced, shadow) = engines!(Layer::Network, config, problems);
    let delay = super::idle(&config.delay_deny, None, "delay_deny", problems);
    (problems.count() == before).then(|| {
        let rules = Rules {
            enforced,
            shadow,
            shadow_prefix: config.shadow_rules_stat_prefix.as_str().into(),
            ..Rules::default()
        };
        let scope = match config.stat_prefix.trim_end_matches('.') {
            "" => Scope::raw(""),
            prefix => Scope::raw("").named("envoy_rbac_prefix", prefix),
        };
        NetworkRbac {
            filter: Filter::new(&scope, "", None, rules),
            continuous: config.enforcement_type() == network::rbac::EnforcementType::Continuous,
            delay,
        }
    })
}

/// The engine of `rules`, or of `tree`, which goes before.
fn engine(
    layer: Layer,
    (rules_field, rules): (&str, &Option<pb::Rbac>),
    (tree_field, tree): (&str, &Option<Tree>),
    problems: &mut Problems,
) -> Option<Engine> {
    let policies = rules
        .as_ref()
        .and_then(|rules| problems.at(rules_field, |problems| policies(layer, rules, problems)));
    match tree {
        Some(tree) => {
            if rules.is_some() {
                problems.note(rules_field, format_args!("{tree_field} is set and goes before"));
            }
            let tree = problems.at(tree_field, |problems| rbac_tree::compile(layer, tree, problems));
            tree.map(Engine::Tree)
        }
        None => policies,
    }
}

fn policies(layer: Layer, config: &pb::Rbac, problems: &mut Problems) -> Option<Engine> {
    let before = problems.count();
    let mut names: Vec<&String> = config.policies.keys().collect();
    names.sort();
    let mut policies = Vec::with_capacity(names.len());
    for name in names {
        let Some(policy) = config.policies.get(name) else { continue };
        problems.at(format_args!("policies[{name:?}]"), |problems| {
            let permissions = any_of("permissions", &policy.permissions, problems, |config, problems| {
                permission(layer, config, problems)
            });
            let principals = any_of("principals", &policy.principals, problems, |config, problems| {
                principal(layer, config, problems)
            });
            let expression = expression(policy, problems);
            policies.extend(permissions.zip(principals).zip(expression).map(
                |((permissions, principals), expression)| Policy {
                    name: name.as_str().into(),
                    condition: Condition::all(vec![permissions, principals, expression]),
                },
            ));
        });
    }
    (problems.count() == before).then(|| Engine::new(action(config.action()), policies))
}

/// What a policy demands in CEL.
fn expression(policy: &pb::Policy, problems: &mut Problems) -> Option<Condition> {
    let checked = policy.checked_condition.as_ref();
    let (field, tree) = match (&policy.condition, checked) {
        (None, None) => return Some(Condition::Always),
        (_, Some(checked)) => ("checked_condition", checked.expr.as_ref()),
        (Some(tree), None) => ("condition", Some(tree)),
    };
    problems.at(field, |problems| {
        let Some(tree) = tree else {
            problems.report("holds no expression");
            return None;
        };
        cel::tree(tree, problems).map(|compiled| Condition::Expression(Box::new(compiled)))
    })
}

pub(super) fn action(action: pb::rbac::Action) -> Action {
    match action {
        pb::rbac::Action::Allow => Action::Allow,
        pb::rbac::Action::Deny => Action::Deny,
        pb::rbac::Action::Log => Action::Log,
    }
}

fn each<T>(
    field: &str,
    list: &[T],
    problems: &mut Problems,
    mut compile: impl FnMut(&T, &mut Problems) -> Option<Condition>,
) -> Option<Vec<Condition>> {
    let compiled: Vec<_> = (list.iter().enumerate())
        .map(|(index, config)| problems.at_index(field, index, |problems| compile(config, problems)))
        .collect();
    compiled.into_iter().collect()
}

fn any_of<T>(
    field: &str,
    list: &[T],
    problems: &mut Problems,
    compile: impl FnMut(&T, &mut Problems) -> Option<Condition>,
) -> Option<Condition> {
    each(field, list, problems, compile).map(Condition::any)
}

fn permission(layer: Layer, config: &pb::Permission, problems: &mut Problems) -> Option<Condition> {
    use pb::permission::Rule;
    let set = |field: &str, set: &pb::permission::Set, problems: &mut Problems| {
        problems.at(field, |problems| {
            each("rules", &set.rules, problems, |config, problems| permission(layer, config, problems))
        })
    };
    // A missing rule breaks a field rule.
    match config.rule.as_ref()? {
        Rule::AndRules(rules) => set("and_rules", rules, problems).map(Condition::all),
        Rule::OrRules(rules) => set("or_rules", rules, problems).map(Condition::any),
        Rule::Any(_) => Some(Condition::Always),
        Rule::Header(config) => problems.at("header", |problems| header(layer, config, problems)),
        Rule::UrlPath(config) => problems.at("url_path", |problems| url_path(config, problems)),
        Rule::DestinationIp(range) => ip("destination_ip", Whose::Destination, range, problems),
        Rule::DestinationPort(port) => Some(match u16::try_from(*port) {
            Ok(port) => Condition::Port(Ports::range(port, port)),
            // Breaks a field rule.
            Err(_) => Condition::Never,
        }),
        Rule::DestinationPortRange(range) => {
            problems.at("destination_port_range", |problems| port_range(range, problems))
        }
        Rule::Metadata(config) => problems.at("metadata", |problems| {
            Some(metadata_at(MetadataSource::Dynamic, metadata(config, problems)?))
        }),
        Rule::SourcedMetadata(config) => {
            problems.at("sourced_metadata", |problems| sourced_metadata(config, problems))
        }
        Rule::NotRule(config) => {
            problems.at("not_rule", |problems| permission(layer, config, problems)).map(Condition::negated)
        }
        Rule::RequestedServerName(config) => {
            let set = problems.at("requested_server_name", |problems| text_set(config, problems))?;
            Some(Condition::Text(TextInput::ServerName, set))
        }
        Rule::UriTemplate(config) => problems.at("uri_template", |problems| uri_template(config, problems)),
        // Refused by the support table.
        Rule::Matcher(_) => None,
    }
}

fn principal(layer: Layer, config: &pb::Principal, problems: &mut Problems) -> Option<Condition> {
    use pb::principal::Identifier;
    let set = |field: &str, set: &pb::principal::Set, problems: &mut Problems| {
        problems.at(field, |problems| {
            each("ids", &set.ids, problems, |config, problems| principal(layer, config, problems))
        })
    };
    // A missing identifier breaks a field rule.
    match config.identifier.as_ref()? {
        Identifier::AndIds(ids) => set("and_ids", ids, problems).map(Condition::all),
        Identifier::OrIds(ids) => set("or_ids", ids, problems).map(Condition::any),
        Identifier::Any(_) => Some(Condition::Always),
        Identifier::Authenticated(config) => problems.at("authenticated", |problems| {
            let Some(name) = &config.principal_name else { return Some(Condition::Tls) };
            let set = problems.at("principal_name", |problems| text_set(name, problems))?;
            Some(Condition::Text(TextInput::Peer, set))
        }),
        Identifier::SourceIp(range) => ip("source_ip", Whose::Source, range, problems),
        Identifier::DirectRemoteIp(range) => ip("direct_remote_ip", Whose::DirectRemote, range, problems),
        Identifier::RemoteIp(range) => ip("remote_ip", Whose::Remote, range, problems),
        Identifier::Header(config) => problems.at("header", |problems| header(layer, config, problems)),
        Identifier::UrlPath(config) => problems.at("url_path", |problems| url_path(config, problems)),
        Identifier::Metadata(config) => problems.at("metadata", |problems| {
            Some(metadata_at(MetadataSource::Dynamic, metadata(config, problems)?))
        }),
        Identifier::SourcedMetadata(config) => {
            problems.at("sourced_metadata", |problems| sourced_metadata(config, problems))
        }
        Identifier::NotId(config) => {
            problems.at("not_id", |problems| principal(layer, config, problems)).map(Condition::negated)
        }
        Identifier::Custom(config) => problems.at("custom", |problems| custom(config, problems)),
        Identifier::FilterState(config) => problems
            .at("filter_state", |problems| state(config, problems))
            .map(|matcher| Condition::State(Box::new(matcher))),
    }
}

/// A set of the texts that `config` wants.
fn text_set(config: &matcher::StringMatcher, problems: &mut Problems) -> Option<TextSet> {
    use matcher::string_matcher::MatchPattern;
    let compiled = StringMatcher::compile(config, problems)?;
    Some(match config.match_pattern.as_ref()? {
        _ if config.ignore_case => TextSet::other(compiled),
        MatchPattern::Exact(text) => TextSet::exact(text),
        MatchPattern::Prefix(text) => TextSet::prefix(text),
        MatchPattern::Suffix(text) => TextSet::suffix(text),
        _ => TextSet::other(compiled),
    })
}

fn url_path(config: &matcher::PathMatcher, problems: &mut Problems) -> Option<Condition> {
    // A missing rule breaks a field rule.
    let matcher::path_matcher::Rule::Path(config) = config.rule.as_ref()?;
    let set = problems.at("path", |problems| text_set(config, problems))?;
    Some(Condition::Text(TextInput::Path, set))
}

fn uri_template(config: &TypedExtensionConfig, problems: &mut Problems) -> Option<Condition> {
    let matcher = StringMatcher::of_regex(path_template(config, problems)?);
    Some(Condition::Text(TextInput::Path, TextSet::other(matcher)))
}

fn header(layer: Layer, config: &route::HeaderMatcher, problems: &mut Problems) -> Option<Condition> {
    use route::header_matcher::HeaderMatchSpecifier as Specifier;
    if layer == Layer::Network {
        problems.report("a connection has no headers to look at");
        return None;
    }
    let compiled = HeaderMatcher::compile(config, problems)?;
    let set = match &config.header_match_specifier {
        _ if config.invert_match || config.treat_missing_header_as_empty => None,
        Some(Specifier::ExactMatch(text)) if !text.is_empty() => Some(TextSet::exact(text)),
        Some(Specifier::PrefixMatch(text)) => Some(TextSet::prefix(text)),
        Some(Specifier::SuffixMatch(text)) => Some(TextSet::suffix(text)),
        Some(Specifier::StringMatch(config)) => {
            // Its problems were reported above.
            text_set(config, &mut Problems::new())
        }
        _ => None,
    };
    Some(match set {
        Some(set) => Condition::Text(TextInput::Header(HeaderKey::new(&config.name)), set),
        None => Condition::Header(Box::new(compiled)),
    })
}

fn ip(
    field: &str,
    whose: Whose,
    range: &outrigger_control_api::pb::envoy::config::core::v3::CidrRange,
    problems: &mut Problems,
) -> Option<Condition> {
    let (ip, length) = problems.at(field, |problems| cidr(range, problems))?;
    Some(Condition::Ip(whose, Networks::one(ip, length)))
}

/// From `start` up to, not including, `end`.
fn port_range(range: &Int32Range, problems: &mut Problems) -> Option<Condition> {
    const MAX: i32 = 65536;
    for (field, value) in [("start", range.start), ("end", range.end)] {
        if !(0..=MAX).contains(&value) {
            problems.report_at(field, format_args!("is {value}, must be from 0 to {MAX}"));
            return None;
        }
    }
    if range.start >= range.end {
        problems.report(format_args!("starts at {} and ends before {}", range.start, range.end));
        return None;
    }
    let (first, last) = (u16::try_from(range.start).ok()?, u16::try_from(range.end - 1).ok()?);
    Some(Condition::Port(Ports::range(first, last)))
}

fn custom(config: &TypedExtensionConfig, problems: &mut Problems) -> Option<Condition> {
    // Demanded by a field rule.
    let any = config.typed_config.as_ref()?;
    problems.at("typed_config", |problems| match type_of(any) {
        MTLS => {
            let config: Mtls = extension(any, "", problems)?;
            let name = match &config.san_matcher {
                Some(config) => {
                    Some(problems.at("san_matcher", |problems| tls::name_matcher(config, problems))?)
                }
                None if config.any_validated_client_certificate => None,
                None => {
                    problems.report("needs san_matcher or any_validated_client_certificate");
                    return None;
                }
            };
            Some(Condition::Verified(name.map(Box::new)))
        }
        found => {
            problems.report(format_args!("the principal {} ({found}) is not supported", config.name));
            None
        }
    })
}

fn sourced_metadata(config: &pb::SourcedMetadata, problems: &mut Problems) -> Option<Condition> {
    // Demanded by a field rule.
    let matcher = config.metadata_matcher.as_ref()?;
    let matcher = problems.at("metadata_matcher", |problems| metadata(matcher, problems))?;
    let source = match config.metadata_source() {
        pb::MetadataSource::Dynamic => MetadataSource::Dynamic,
        pb::MetadataSource::Route => MetadataSource::Route,
    };
    Some(metadata_at(source, matcher))
}

fn metadata_at(source: MetadataSource, matcher: MetadataMatcher) -> Condition {
    if source == MetadataSource::Dynamic {
        read_dynamic_metadata();
    }
    Condition::Metadata(source, Box::new(matcher))
}

/// A test of filter state.
pub(crate) fn state(config: &matcher::FilterStateMatcher, problems: &mut Problems) -> Option<StateMatcher> {
    use matcher::filter_state_matcher::Matcher;
    let wanted = match &config.matcher {
        Some(Matcher::StringMatch(config)) => {
            Wanted::Text(problems.at("string_match", |problems| StringMatcher::compile(config, problems))?)
        }
        Some(Matcher::AddressMatch(config)) => problems.at("address_match", |problems| {
            Some(Wanted::Address(networks(&config.ranges, problems)?, config.invert_match))
        })?,
        None => {
            problems.report("needs string_match or address_match");
            return None;
        }
    };
    Some(StateMatcher { key: config.key.as_str().into(), wanted })
}

/// A test of a value in metadata.
pub(crate) fn metadata(
    config: &matcher::MetadataMatcher,
    problems: &mut Problems,
) -> Option<MetadataMatcher> {
    use matcher::metadata_matcher::path_segment::Segment;
    let path = config.path.iter().map(|segment| match segment.segment.as_ref()? {
        Segment::Key(key) => Some(key.as_str().into()),
    });
    // Missing ones break field rules.
    let path: Option<Box<[Box<str>]>> = path.collect();
    let value = problems.at("value", |problems| value(config.value.as_ref()?, problems))?;
    Some(MetadataMatcher { filter: config.filter.as_str().into(), path: path?, value, invert: config.invert })
}

/// A test of a value.
pub(super) fn value(config: &matcher::ValueMatcher, problems: &mut Problems) -> Option<ValueMatcher> {
    use matcher::double_matcher::MatchPattern as Double;
    use matcher::value_matcher::MatchPattern;
    // What is missing breaks field rules.
    Some(match config.match_pattern.as_ref()? {
        MatchPattern::NullMatch(_) => ValueMatcher::Null,
        MatchPattern::DoubleMatch(config) => match config.match_pattern.as_ref()? {
            Double::Exact(number) => ValueMatcher::Number(*number),
            Double::Range(range) => ValueMatcher::Range(range.start, range.end),
        },
        MatchPattern::StringMatch(config) => ValueMatcher::Text(
            problems.at("string_match", |problems| StringMatcher::compile(config, problems))?,
        ),
        MatchPattern::BoolMatch(wanted) => ValueMatcher::Bool(*wanted),
        MatchPattern::PresentMatch(wanted) => ValueMatcher::Present(*wanted),
        MatchPattern::ListMatch(config) => {
            let matcher::list_matcher::MatchPattern::OneOf(inner) = config.match_pattern.as_ref()?;
            let inner = problems.at("list_match.one_of", |problems| value(inner, problems))?;
            ValueMatcher::OneOf(Box::new(inner))
        }
        MatchPattern::OrMatch(config) => {
            let all: Vec<_> = (config.value_matchers.iter().enumerate())
                .map(|(index, config)| {
                    problems.at_index("or_match.value_matchers", index, |problems| value(config, problems))
                })
                .collect();
            let all: Option<Box<[_]>> = all.into_iter().collect();
            ValueMatcher::Any(all?)
        }
    })
}
