//! Answers in place of others: `envoy.filters.http.custom_response`'s messages in, [`Config`] out.

use std::sync::Arc;

use outrigger_control_api::pb::envoy::extensions::filters::http::custom_response::v3::CustomResponse;
use outrigger_control_api::pb::envoy::extensions::http::custom_response::local_response_policy::v3::{
    local_response_policy::ResponseCodeDetailsAction, LocalResponsePolicy,
};
use outrigger_control_api::pb::envoy::r#type::matcher::v3 as envoy;
use outrigger_control_api::pb::xds::core::v3::TypedExtensionConfig;
use outrigger_control_api::pb::xds::r#type::matcher::v3 as pb;
use outrigger_control_api::type_of;

use super::rbac_tree::of_xds;
use super::{cel, data_source, extension, local_reply};
use crate::config::matcher::StringMatcher;
use crate::config::problems::Problems;
use crate::config::route::HeaderOps;
use crate::config::HeaderKey;
use crate::http::filters::custom_response::{Config, Policy, Test, Then};

/// The type of the filter, and of what a route says to it.
pub(super) const TYPE: &str = "envoy.extensions.filters.http.custom_response.v3.CustomResponse";

const LOCAL: &str = "envoy.extensions.http.custom_response.local_response_policy.v3.LocalResponsePolicy";
const CEL: &str = "xds.type.matcher.v3.CelMatcher";
const ATTRIBUTES: &str = "xds.type.matcher.v3.HttpAttributesCelMatchInput";

/// Compiles `config`. `None` when a problem was reported.
pub(super) fn compile(config: &CustomResponse, problems: &mut Problems) -> Option<Config> {
    let Some(matcher) = &config.custom_response_matcher else {
        return Some(Config { rules: Vec::new(), otherwise: None });
    };
    problems.at("custom_response_matcher", |problems| rules(matcher, problems))
}

fn rules(matcher: &pb::Matcher, problems: &mut Problems) -> Option<Config> {
    use pb::matcher::MatcherType;
    let before = problems.count();
    let mut rules = Vec::new();
    match &matcher.matcher_type {
        None => {}
        Some(MatcherType::MatcherTree(_)) => problems.report_at("matcher_tree", "use matcher_list"),
        Some(MatcherType::MatcherList(list)) => {
            for (index, config) in list.matchers.iter().enumerate() {
                problems.at_index("matcher_list.matchers", index, |problems| {
                    // What is missing breaks field rules.
                    let (Some(predicate), Some(on_match)) = (&config.predicate, &config.on_match) else {
                        return;
                    };
                    let test = problems.at("predicate", |problems| test(predicate, problems));
                    let then = problems.at("on_match", |problems| then(on_match, problems));
                    rules.extend(test.zip(then));
                });
            }
        }
    }
    let otherwise = matcher
        .on_no_match
        .as_ref()
        .and_then(|config| problems.at("on_no_match", |problems| then(config, problems)));
    (problems.count() == before).then_some(Config { rules, otherwise })
}

fn then(config: &pb::matcher::OnMatch, problems: &mut Problems) -> Option<Then> {
    use pb::matcher::on_match::OnMatch as Kind;
    if config.keep_matching {
        problems.report_at("keep_matching", "the first match counts");
    }
    // A missing one breaks a field rule.
    let action = match config.on_match.as_ref()? {
        Kind::Action(action) => action,
        Kind::Matcher(matcher) => {
            let inner = problems.at("matcher", |problems| rules(matcher, problems))?;
            return Some(Then::Rules(Box::new(inner)));
        }
    };
    // Demanded by a field rule.
    let any = action.typed_config.as_ref()?;
    problems.at("action.typed_config", |problems| {
        if type_of(any) != LOCAL {
            problems.report(format_args!("is of type {}, must be of {LOCAL}", type_of(any)));
            return None;
        }
        let config: LocalResponsePolicy = extension(any, "", problems)?;
        let before = problems.count();
        let body =
            config.body.as_ref().and_then(|body| problems.at("body", |problems| data_source(body, problems)));
        let format = config.body_format.as_ref().and_then(|format| {
            problems.at("body_format", |problems| local_reply::of_format(format, problems))
        });
        let headers =
            HeaderOps::compile(&config.response_headers_to_add, "response_headers_to_add", &[], "", problems);
        (problems.count() == before).then_some(())?;
        Some(Then::Answer(Arc::new(Policy {
            // Its field rule bounds it.
            status: config.status_code.and_then(|status| u16::try_from(status.value).ok()),
            body,
            format,
            headers: headers?,
            details: match config.response_code_details_action {
                None | Some(ResponseCodeDetailsAction::PreserveResponseCodeDetails(false)) => Some("".into()),
                Some(ResponseCodeDetailsAction::PreserveResponseCodeDetails(true)) => None,
                Some(ResponseCodeDetailsAction::ResponseCodeDetails(text)) => Some(text.into()),
            },
        })))
    })
}

fn test(config: &pb::matcher::matcher_list::Predicate, problems: &mut Problems) -> Option<Test> {
    use pb::matcher::matcher_list::predicate::{MatchType, PredicateList};
    let several = |field: &str, list: &PredicateList, problems: &mut Problems| {
        problems.at(field, |problems| {
            let all: Vec<_> = (list.predicate.iter().enumerate())
                .map(|(index, config)| {
                    problems.at_index("predicate", index, |problems| test(config, problems))
                })
                .collect();
            all.into_iter().collect::<Option<Vec<_>>>()
        })
    };
    // What is missing breaks field rules.
    match config.match_type.as_ref()? {
        MatchType::OrMatcher(list) => several("or_matcher", list, problems).map(Test::Any),
        MatchType::AndMatcher(list) => several("and_matcher", list, problems).map(Test::All),
        MatchType::NotMatcher(inner) => {
            let inner = problems.at("not_matcher", |problems| test(inner, problems))?;
            Some(Test::Not(Box::new(inner)))
        }
        MatchType::SinglePredicate(config) => {
            problems.at("single_predicate", |problems| single(config, problems))
        }
    }
}

fn single(
    config: &pb::matcher::matcher_list::predicate::SinglePredicate,
    problems: &mut Problems,
) -> Option<Test> {
    use pb::matcher::matcher_list::predicate::single_predicate::Matcher;
    // What is missing breaks field rules.
    let input: &TypedExtensionConfig = config.input.as_ref()?;
    let input = input.typed_config.as_ref()?;
    let matcher = match config.matcher.as_ref()? {
        Matcher::CustomMatch(config) => {
            let any = config.typed_config.as_ref()?;
            return problems.at("custom_match.typed_config", |problems| {
                if (type_of(any), type_of(input)) != (CEL, ATTRIBUTES) {
                    let message =
                        format!("the matcher {} is not supported for {}", type_of(any), type_of(input));
                    problems.report(message);
                    return None;
                }
                let config: pb::CelMatcher = extension(any, "", problems)?;
                let compiled =
                    problems.at("expr_match", |problems| cel::any(config.expr_match.as_ref()?, problems))?;
                Some(Test::Expression(Box::new(compiled)))
            });
        }
        Matcher::ValueMatch(config) => problems
            .at("value_match", |problems| StringMatcher::compile(&of_xds(config, problems)?, problems))?,
    };
    problems.at("input.typed_config", |problems| match type_of(input) {
        "envoy.type.matcher.v3.HttpResponseStatusCodeMatchInput" => Some(Test::Status(matcher)),
        "envoy.type.matcher.v3.HttpResponseStatusCodeClassMatchInput" => Some(Test::Class(matcher)),
        "envoy.type.matcher.v3.HttpResponseLocalReplyMatchInput" => Some(Test::Own(matcher)),
        "envoy.type.matcher.v3.HttpResponseHeaderMatchInput" => {
            let config: envoy::HttpResponseHeaderMatchInput = extension(input, "", problems)?;
            Some(Test::Header(HeaderKey::new(&config.header_name), matcher))
        }
        "envoy.type.matcher.v3.HttpRequestHeaderMatchInput" => {
            let config: envoy::HttpRequestHeaderMatchInput = extension(input, "", problems)?;
            Some(Test::RequestHeader(HeaderKey::new(&config.header_name), matcher))
        }
        found => {
            problems.report(format_args!("the input {found} is not supported here"));
            None
        }
    })
}
