//! The unified matcher of RBAC and of others that match connections: `xds.type.matcher.v3.Matcher` in, a [`Tree`] out.

use std::sync::Arc;

use outrigger_control_api::pb::envoy::config::rbac::v3::Action as ActionConfig;
use outrigger_control_api::pb::envoy::extensions::filters::udp::udp_proxy::v3::Route;
use outrigger_control_api::pb::envoy::extensions::matching::common_inputs::network::v3::{
    dynamic_metadata_input::path_segment::Segment, DynamicMetadataInput,
};
use outrigger_control_api::pb::envoy::extensions::matching::input_matchers::ip::v3::Ip;
use outrigger_control_api::pb::envoy::extensions::matching::input_matchers::metadata::v3::Metadata;
use outrigger_control_api::pb::envoy::r#type::matcher::v3 as envoy;
use outrigger_control_api::pb::xds::core::v3::TypedExtensionConfig;
use outrigger_control_api::pb::xds::r#type::matcher::v3 as pb;
use outrigger_control_api::type_of;

use super::rbac::{action, Layer};
use super::{cel, cidr, extension, rbac};
use crate::config::discovery::SanKind;
use crate::config::matcher::StringMatcher;
use crate::config::problems::Problems;
use crate::config::HeaderKey;
use crate::policy::rbac::tree::{Input, Node, OnMatch, Predicate, Search, Then, Tree};
use crate::policy::rbac::{Action, MetadataMatcher, Networks, Whose};
use crate::telemetry::stream_info::read_dynamic_metadata;

const ACTION: &str = "envoy.config.rbac.v3.Action";
const ROUTE: &str = "envoy.extensions.filters.udp.udp_proxy.v3.Route";
const SKIP: &str = "envoy.extensions.filters.common.matcher.action.v3.SkipFilter";
const IP: &str = "envoy.extensions.matching.input_matchers.ip.v3.Ip";
const METADATA: &str = "envoy.extensions.matching.input_matchers.metadata.v3.Metadata";
const METADATA_INPUT: &str = "envoy.extensions.matching.common_inputs.network.v3.DynamicMetadataInput";
const CEL: &str = "xds.type.matcher.v3.CelMatcher";
const ATTRIBUTES: &str = "xds.type.matcher.v3.HttpAttributesCelMatchInput";
const HEADER: &str = "envoy.type.matcher.v3.HttpRequestHeaderMatchInput";

/// Compiles `config`. `None` when a problem was reported.
pub(super) fn compile(layer: Layer, config: &pb::Matcher, problems: &mut Problems) -> Option<Tree> {
    let mut compiler = Compiler { layer, logs: false, actions: Actions::Decide };
    let root = compiler.node(config, problems)?;
    Some(Tree { root, logs: compiler.logs })
}

/// Compiles `config`, whose only action is to skip an HTTP filter. `None` when a problem was reported.
pub(super) fn skipping(config: &pb::Matcher, problems: &mut Problems) -> Option<Tree> {
    let mut compiler = Compiler { layer: Layer::Http, logs: false, actions: Actions::Skip };
    let root = compiler.node(config, problems)?;
    Some(Tree { root, logs: false })
}

/// Compiles `config`, whose actions name the clusters that datagrams go to; these too. `None` when a problem was
/// reported.
pub(super) fn routing(config: &pb::Matcher, problems: &mut Problems) -> Option<(Tree, Vec<Arc<str>>)> {
    let mut compiler = Compiler { layer: Layer::Network, logs: false, actions: Actions::Route(Vec::new()) };
    let root = compiler.node(config, problems)?;
    let Actions::Route(mut clusters) = compiler.actions else { return None };
    clusters.sort();
    clusters.dedup();
    Some((Tree { root, logs: false }, clusters))
}

struct Compiler {
    layer: Layer,
    /// An action is about logs.
    logs: bool,
    actions: Actions,
}

/// What actions are about.
enum Actions {
    /// They allow or deny.
    Decide,
    /// They skip a filter.
    Skip,
    /// They name clusters, which are noted.
    Route(Vec<Arc<str>>),
}

impl Compiler {
    fn node(&mut self, config: &pb::Matcher, problems: &mut Problems) -> Option<Node> {
        use pb::matcher::MatcherType;
        let before = problems.count();
        let search = match &config.matcher_type {
            None => Some(Search::Nothing),
            Some(MatcherType::MatcherList(list)) => {
                problems.at("matcher_list", |problems| self.list(list, problems))
            }
            Some(MatcherType::MatcherTree(tree)) => {
                problems.at("matcher_tree", |problems| self.tree(tree, problems))
            }
        };
        let on_no_match = config
            .on_no_match
            .as_ref()
            .and_then(|config| problems.at("on_no_match", |problems| self.on_match(config, problems)))
            .map(Box::new);
        if problems.count() > before {
            return None;
        }
        Some(Node { search: search?, on_no_match })
    }

    fn list(&mut self, list: &pb::matcher::MatcherList, problems: &mut Problems) -> Option<Search> {
        let mut compiled = Vec::with_capacity(list.matchers.len());
        for (index, config) in list.matchers.iter().enumerate() {
            problems.at_index("matchers", index, |problems| {
                // What is missing breaks field rules.
                let (Some(predicate), Some(on_match)) = (&config.predicate, &config.on_match) else { return };
                let predicate = problems.at("predicate", |problems| self.predicate(predicate, problems));
                let on_match = problems.at("on_match", |problems| self.on_match(on_match, problems));
                compiled.extend(predicate.zip(on_match));
            });
        }
        (compiled.len() == list.matchers.len()).then_some(Search::List(compiled))
    }

    fn tree(&mut self, tree: &pb::matcher::MatcherTree, problems: &mut Problems) -> Option<Search> {
        use pb::matcher::matcher_tree::TreeType;
        // What is missing breaks field rules.
        let input = problems.at("input", |problems| self.input(tree.input.as_ref()?, problems));
        let (field, map) = match tree.tree_type.as_ref()? {
            TreeType::ExactMatchMap(map) => ("exact_match_map", map),
            TreeType::PrefixMatchMap(map) => ("prefix_match_map", map),
            TreeType::CustomMatch(_) => {
                problems.report_at("custom_match", "matcher extensions are not supported here");
                return None;
            }
        };
        let mut keys: Vec<&String> = map.map.keys().collect();
        keys.sort();
        let mut entries = Vec::with_capacity(keys.len());
        for (key, config) in keys.into_iter().filter_map(|key| Some((key, map.map.get(key)?))) {
            let on_match = problems
                .at(format_args!("{field}.map[{key:?}]"), |problems| self.on_match(config, problems))?;
            entries.push((Box::from(key.as_bytes()), on_match));
        }
        Some(match tree.tree_type.as_ref()? {
            TreeType::ExactMatchMap(_) => Search::Exact(input?, entries.into_iter().collect()),
            _ => {
                entries.sort_by_key(|(key, _): &(Box<[u8]>, _)| std::cmp::Reverse(key.len()));
                Search::Prefix(input?, entries)
            }
        })
    }

    fn on_match(&mut self, config: &pb::matcher::OnMatch, problems: &mut Problems) -> Option<OnMatch> {
        use pb::matcher::on_match::OnMatch as Kind;
        // A missing one breaks a field rule.
        let then = match config.on_match.as_ref()? {
            Kind::Matcher(matcher) => {
                let node = problems.at("matcher", |problems| self.node(matcher, problems))?;
                Then::Node(Box::new(node))
            }
            Kind::Action(config) => problems.at("action", |problems| self.action(config, problems))?,
        };
        Some(OnMatch { then, keep_matching: config.keep_matching })
    }

    fn action(&mut self, config: &TypedExtensionConfig, problems: &mut Problems) -> Option<Then> {
        // Demanded by a field rule.
        let any = config.typed_config.as_ref()?;
        problems.at("typed_config", |problems| match type_of(any) {
            SKIP if matches!(self.actions, Actions::Skip) => Some(Then::Act("".into(), Action::Log)),
            ROUTE if matches!(self.actions, Actions::Route(_)) => {
                let config: Route = extension(any, "", problems)?;
                let cluster: Arc<str> = config.cluster.as_str().into();
                if let Actions::Route(clusters) = &mut self.actions {
                    clusters.push(cluster.clone());
                }
                Some(Then::Act(cluster, Action::Allow))
            }
            ACTION if matches!(self.actions, Actions::Decide) => {
                let config: ActionConfig = extension(any, "", problems)?;
                let action = action(config.action());
                self.logs |= action == Action::Log;
                Some(Then::Act(config.name.as_str().into(), action))
            }
            found => {
                let wanted = match self.actions {
                    Actions::Decide => ACTION,
                    Actions::Skip => SKIP,
                    Actions::Route(_) => ROUTE,
                };
                problems.report(format_args!("is of type {found}, must be of {wanted}"));
                None
            }
        })
    }

    fn predicate(
        &mut self,
        config: &pb::matcher::matcher_list::Predicate,
        problems: &mut Problems,
    ) -> Option<Predicate> {
        use pb::matcher::matcher_list::predicate::{MatchType, PredicateList};
        let mut several = |field: &str, list: &PredicateList, problems: &mut Problems| {
            problems.at(field, |problems| {
                let all: Vec<_> = (list.predicate.iter().enumerate())
                    .map(|(index, config)| {
                        problems.at_index("predicate", index, |problems| self.predicate(config, problems))
                    })
                    .collect();
                all.into_iter().collect::<Option<Vec<_>>>()
            })
        };
        // What is missing breaks field rules.
        match config.match_type.as_ref()? {
            MatchType::OrMatcher(list) => several("or_matcher", list, problems).map(Predicate::Any),
            MatchType::AndMatcher(list) => several("and_matcher", list, problems).map(Predicate::All),
            MatchType::NotMatcher(inner) => {
                let inner = problems.at("not_matcher", |problems| self.predicate(inner, problems))?;
                Some(Predicate::Not(Box::new(inner)))
            }
            MatchType::SinglePredicate(single) => {
                problems.at("single_predicate", |problems| self.single(single, problems))
            }
        }
    }

    fn single(
        &self,
        config: &pb::matcher::matcher_list::predicate::SinglePredicate,
        problems: &mut Problems,
    ) -> Option<Predicate> {
        use pb::matcher::matcher_list::predicate::single_predicate::Matcher;
        // What is missing breaks field rules.
        let input = config.input.as_ref().and_then(|config| config.typed_config.as_ref());
        let attributes = input.is_some_and(|any| type_of(any) == ATTRIBUTES);
        let metadata = input.filter(|any| type_of(any) == METADATA_INPUT);
        match config.matcher.as_ref()? {
            matcher if metadata.is_some() => {
                let input = problems.at("input.typed_config", |problems| extension(metadata?, "", problems));
                return self.metadata(&input?, matcher, problems);
            }
            Matcher::CustomMatch(config) if attributes => {
                let any = config.typed_config.as_ref()?;
                return problems.at("custom_match.typed_config", |problems| {
                    if type_of(any) != CEL {
                        problems.report(format_args!("is of type {}, must be of {CEL}", type_of(any)));
                        return None;
                    }
                    let config: pb::CelMatcher = extension(any, "", problems)?;
                    let compiled = problems
                        .at("expr_match", |problems| cel::any(config.expr_match.as_ref()?, problems))?;
                    Some(Predicate::Expression(Box::new(compiled)))
                });
            }
            _ => {}
        }
        let input = problems.at("input", |problems| self.input(config.input.as_ref()?, problems));
        match config.matcher.as_ref()? {
            Matcher::ValueMatch(config) => {
                let matcher = problems.at("value_match", |problems| {
                    StringMatcher::compile(&of_xds(config, problems)?, problems)
                })?;
                Some(Predicate::Text(input?, matcher))
            }
            Matcher::CustomMatch(config) => problems.at("custom_match.typed_config", |problems| {
                // Demanded by a field rule.
                let any = config.typed_config.as_ref()?;
                match type_of(any) {
                    IP => {
                        let config: Ip = extension(any, "", problems)?;
                        let mut networks = Networks::default();
                        for (index, range) in config.cidr_ranges.iter().enumerate() {
                            let (ip, length) =
                                problems.at_index("cidr_ranges", index, |problems| cidr(range, problems))?;
                            networks.extend(Networks::one(ip, length));
                        }
                        Some(Predicate::Ip(input?, networks))
                    }
                    found => {
                        problems.report(format_args!("the matcher {found} is not supported here"));
                        None
                    }
                }
            }),
        }
    }

    /// A test of what filters have left.
    fn metadata(
        &self,
        input: &DynamicMetadataInput,
        matcher: &pb::matcher::matcher_list::predicate::single_predicate::Matcher,
        problems: &mut Problems,
    ) -> Option<Predicate> {
        use pb::matcher::matcher_list::predicate::single_predicate::Matcher;
        if self.layer != Layer::Http {
            problems.report_at("input", "metadata are looked at for requests only");
            return None;
        }
        let Matcher::CustomMatch(config) = matcher else {
            problems.report_at("value_match", format!("of metadata the matcher {METADATA} is wanted"));
            return None;
        };
        // Demanded by a field rule.
        let any = config.typed_config.as_ref()?;
        problems.at("custom_match.typed_config", |problems| {
            if type_of(any) != METADATA {
                problems.report(format_args!("is of type {}, must be of {METADATA}", type_of(any)));
                return None;
            }
            let config: Metadata = extension(any, "", problems)?;
            let value = problems.at("value", |problems| rbac::value(config.value.as_ref()?, problems))?;
            read_dynamic_metadata();
            // What is missing breaks field rules.
            let path = input.path.iter().map(|segment| match segment.segment.as_ref()? {
                Segment::Key(key) => Some(key.as_str().into()),
            });
            Some(Predicate::Metadata(Box::new(MetadataMatcher {
                filter: input.filter.as_str().into(),
                path: path.collect::<Option<_>>()?,
                value,
                invert: config.invert,
            })))
        })
    }

    fn input(&self, config: &TypedExtensionConfig, problems: &mut Problems) -> Option<Input> {
        // Demanded by a field rule.
        let any = config.typed_config.as_ref()?;
        problems.at("typed_config", |problems| {
            const NETWORK: &str = "envoy.extensions.matching.common_inputs.network.v3.";
            const SSL: &str = "envoy.extensions.matching.common_inputs.ssl.v3.";
            let found = type_of(any);
            let parts = (found.strip_prefix(NETWORK), found.strip_prefix(SSL));
            let of_datagrams =
                ["DestinationIPInput", "DestinationPortInput", "SourceIPInput", "SourcePortInput"];
            let routes = matches!(self.actions, Actions::Route(_));
            let known = match parts {
                // Of a datagram no more than its addresses is known.
                (name, _) if routes && !name.is_some_and(|name| of_datagrams.contains(&name)) => None,
                (Some("DestinationIPInput"), _) => Some(Input::Ip(Whose::Destination)),
                (Some("DestinationPortInput"), _) => Some(Input::Port(Whose::Destination)),
                (Some("SourceIPInput"), _) => Some(Input::Ip(Whose::Remote)),
                (Some("SourcePortInput"), _) => Some(Input::Port(Whose::Remote)),
                (Some("DirectSourceIPInput"), _) => Some(Input::Ip(Whose::DirectRemote)),
                (Some("ServerNameInput"), _) => Some(Input::ServerName),
                (_, Some("UriSanInput")) => Some(Input::Names(SanKind::Uri)),
                (_, Some("DnsSanInput")) => Some(Input::Names(SanKind::Dns)),
                (_, Some("SubjectInput")) => Some(Input::Subject),
                _ if found == HEADER && self.layer == Layer::Http => {
                    let config: envoy::HttpRequestHeaderMatchInput = extension(any, "", problems)?;
                    Some(Input::Header(HeaderKey::new(&config.header_name)))
                }
                _ => None,
            };
            if known.is_none() {
                problems.report(format_args!("the input {found} is not supported here"));
            }
            known
        })
    }
}

/// The same matcher in Envoy's own message.
pub(super) fn of_xds(config: &pb::StringMatcher, problems: &mut Problems) -> Option<envoy::StringMatcher> {
    use envoy::string_matcher::MatchPattern as To;
    use pb::string_matcher::MatchPattern as From;
    // A missing pattern breaks a field rule.
    let pattern = match config.match_pattern.as_ref()? {
        From::Exact(text) => To::Exact(text.clone()),
        From::Prefix(text) => To::Prefix(text.clone()),
        From::Suffix(text) => To::Suffix(text.clone()),
        From::Contains(text) => To::Contains(text.clone()),
        From::SafeRegex(regex) => To::SafeRegex(envoy::RegexMatcher {
            regex: regex.regex.clone(),
            ..envoy::RegexMatcher::default()
        }),
        From::Custom(_) => {
            problems.report_at("custom", "matcher extensions are not supported");
            return None;
        }
    };
    Some(envoy::StringMatcher { match_pattern: Some(pattern), ignore_case: config.ignore_case })
}
