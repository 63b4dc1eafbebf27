//! Answers in place of others: `envoy.filters.http.custom_response`'s messages in, [`Config`] out.

use std::sync::Arc;

use outrigger_control_api::pb::envoy::extensions::filters::http::custom_response::v3::CustomResponse;
use outrigger_control_api::pb::envoy::extensions::http::custom_response::local_response_policy::v3::{
    local_response_policy::ResponseCodeDetailsAction, LocalResponsePolicy,
};
use outrigger_control_api::pb::envoy::extensions::http::custom_response::redirect_policy::v3::{
    redirect_policy::RedirectActionSpecifier, RedirectPolicy,
};
use outrigger_control_api::pb::envoy::r#type::matcher::v3 as envoy;
use outrigger_control_api::pb::xds::core::v3::TypedExtensionConfig;
use outrigger_control_api::pb::xds::r#type::matcher::v3 as pb;
use outrigger_control_api::type_of;

use super::rbac_tree::of_xds;
use super::{cel, data_source, extension, local_reply};
use crate::config::matcher::StringMatcher;
use crate::config::problems::Problems;
use crate::config::route::{redirect_action, HeaderOps, RedirectPath};
use crate::config::HeaderKey;
use crate::http::filters::custom_response::{Config, Elsewhere, ElsewhereStats, Place, Policy, Test, Then};
use crate::http::location::Location;
use crate::telemetry::metrics::Scope;

/// The type of the filter, and of what a route says to it.
pub(super) const TYPE: &str = "envoy.extensions.filters.http.custom_response.v3.CustomResponse";

const REDIRECT: &str = "envoy.extensions.http.custom_response.redirect_policy.v3.RedirectPolicy";
const LOCAL: &str = "envoy.extensions.http.custom_response.local_response_policy.v3.LocalResponsePolicy";
const CEL: &str = "xds.type.matcher.v3.CelMatcher";
const ATTRIBUTES: &str = "xds.type.matcher.v3.HttpAttributesCelMatchInput";

/// Compiles `config`, which counts in `stats`. `None` when a problem was reported.
pub(super) fn compile(config: &CustomResponse, stats: &Scope, problems: &mut Problems) -> Option<Config> {
    let Some(matcher) = &config.custom_response_matcher else {
        return Some(Config { rules: Vec::new(), otherwise: None });
    };
    problems.at("custom_response_matcher", |problems| rules(matcher, stats, problems))
}

fn rules(matcher: &pb::Matcher, stats: &Scope, problems: &mut Problems) -> Option<Config> {
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
                    let then = problems.at("on_match", |problems| then(on_match, stats, problems));
                    rules.extend(test.zip(then));
                });
            }
        }
    }
    let otherwise = matcher
        .on_no_match
        .as_ref()
        .and_then(|config| problems.at("on_no_match", |problems| then(config, stats, problems)));
    (problems.count() == before).then_some(Config { rules, otherwise })
}

fn then(config: &pb::matcher::OnMatch, stats: &Scope, problems: &mut Problems) -> Option<Then> {
    use pb::matcher::on_match::OnMatch as Kind;
    if config.keep_matching {
        problems.report_at("keep_matching", "the first match counts");
    }
    // A missing one breaks a field rule.
    let action = match config.on_match.as_ref()? {
        Kind::Action(action) => action,
        Kind::Matcher(matcher) => {
            let inner = problems.at("matcher", |problems| rules(matcher, stats, problems))?;
            return Some(Then::Rules(Box::new(inner)));
        }
    };
    // Demanded by a field rule.
    let any = action.typed_config.as_ref()?;
    problems.at("action.typed_config", |problems| {
        match type_of(any) {
            LOCAL => {}
            REDIRECT => {
                let policy = elsewhere(&extension(any, "", problems)?, stats, problems)?;
                return Some(Then::Elsewhere(Arc::new(policy)));
            }
            found => {
                problems.report(format_args!("is of type {found}, must be of {LOCAL} or {REDIRECT}"));
                return None;
            }
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

fn elsewhere(config: &RedirectPolicy, stats: &Scope, problems: &mut Problems) -> Option<Elsewhere> {
    let before = problems.count();
    // A missing one breaks a field rule.
    let place = match config.redirect_action_specifier.as_ref()? {
        RedirectActionSpecifier::Uri(uri) => {
            if Location::of(uri.as_bytes()).is_none() {
                problems.report_at("uri", format_args!("{uri:?} is no absolute URL"));
            }
            Some(Place::Url(uri.as_str().into()))
        }
        RedirectActionSpecifier::RedirectAction(action) => problems.at("redirect_action", |problems| {
            let redirect = redirect_action(action, false, problems)?;
            if matches!(redirect.path, RedirectPath::Rewrite(_)) {
                problems.report("prefix_rewrite and regex_rewrite are not supported here, in Envoy either");
            }
            Some(Place::Action(Box::new(redirect)))
        }),
    };
    // Its field rule bounds it.
    let status = config.status_code.and_then(|status| u16::try_from(status.value).ok());
    if status.is_some_and(|status| status < 200 || matches!(status, 204 | 304)) {
        problems.report_at("status_code", "is one of answers without a body");
    }
    let mut headers = |list: &[_], field: &str| HeaderOps::compile(list, field, &[], "", problems);
    let response_headers = headers(&config.response_headers_to_add, "response_headers_to_add");
    let request_headers = headers(&config.request_headers_to_add, "request_headers_to_add");
    (problems.count() == before).then_some(())?;
    Some(Elsewhere {
        place: place?,
        status,
        response_headers: response_headers?,
        request_headers: request_headers?,
        stats: ElsewhereStats::new(stats),
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
