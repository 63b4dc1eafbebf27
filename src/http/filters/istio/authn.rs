//! Istio's `istio_authn`, of its releases up to 1.21: who the peer and the user of a request are, as its policies want
//! them known, and that as dynamic metadata for authorization (`istio_authn`).
//!
//! Comes in: the names in the certificates of both sides, and what `jwt_authn` before it has noted of tokens. Goes out:
//! 401, or the metadata. Tokens are not verified here: who has none that was verified has none.

use outrigger_control_api::pb::envoy::r#type::matcher::v3 as matcher;
use outrigger_control_api::pb::google::protobuf::{value::Kind, ListValue, Struct, Value};
use outrigger_control_api::pb::istio::authentication::v1alpha1 as policy;
use outrigger_control_api::pb::istio::envoy::config::filter::http::authn::v2alpha1 as pb;

use crate::config::discovery::SanKind;
use crate::config::matcher::StringMatcher;
use crate::config::problems::Problems;
use crate::config::{HeaderKey, HeaderView, RequestView};
use crate::http::exchange::{Exchange, Reply};
use crate::http::filters::chain::{active, Step};
use crate::policy::jwt::token::json;
use crate::telemetry::stream_info::DynamicMetadata;
use crate::tls::peer::{Facts, TlsInfo};

/// Where the filter leaves its notes, and where `jwt_authn` does.
const NAMESPACE: &str = "istio_authn";
const TOKENS: &str = "envoy.filters.http.jwt_authn";
const SPIFFE: &str = "spiffe://";
/// The header of tokens that were exchanged for others, and the claim in which they keep those.
const EXCHANGED: &str = "ingress-authorization";
const ORIGINAL: &str = "original_claims";

/// The filter.
#[derive(Debug)]
pub struct Config {
    peers: Box<[Method]>,
    peer_is_optional: bool,
    origins: Box<[Token]>,
    origin_is_optional: bool,
    /// The principal is the user, not the peer.
    by_origin: bool,
    /// Peers of other trust domains are taken.
    any_domain: bool,
    /// The route is found anew, which may read the metadata.
    reroutes: bool,
    preflight: [HeaderKey; 2],
}

/// How a peer proves who it is.
#[derive(Debug)]
enum Method {
    /// By its certificate; without one it is let in if so.
    Certificate {
        permissive: bool,
    },
    Token(Token),
}

/// A token of one issuer.
#[derive(Debug)]
struct Token {
    issuer: Box<str>,
    exchanged: bool,
    rules: Box<[Trigger]>,
}

/// Paths that need the token.
#[derive(Debug)]
struct Trigger {
    excluded: Box<[StringMatcher]>,
    included: Box<[StringMatcher]>,
}

/// What is known of a request.
struct Facing<'a> {
    tls: Option<&'a TlsInfo>,
    tokens: Option<&'a Struct>,
}

/// What was found out.
#[derive(Default)]
struct Found {
    peer: String,
    principal: String,
    origin: Option<Claims>,
}

/// What a token says.
#[derive(Clone)]
struct Claims {
    raw: String,
    /// Texts as lists of their words.
    words: Struct,
}

/// Who somebody says to be; of two things that were looked at the later one counts.
enum Identity {
    Nobody,
    Certificate(String),
    Token(Claims),
}

impl Config {
    /// Compiles `config`. `None` when a problem was reported.
    pub fn compile(config: &pb::FilterConfig, problems: &mut Problems) -> Option<Self> {
        let before = problems.count();
        let empty = policy::Policy::default();
        let own = config.policy.as_ref().unwrap_or(&empty);
        let (mut peers, mut origins) = (Vec::new(), Vec::new());
        problems.at("policy", |problems| {
            use policy::peer_authentication_method::Params;
            for (index, method) in own.peers.iter().enumerate() {
                problems.at_index("peers", index, |problems| match &method.params {
                    Some(Params::Mtls(mtls)) => {
                        let permissive = mtls.mode() == policy::mutual_tls::Mode::Permissive;
                        peers.push(Method::Certificate { permissive });
                    }
                    Some(Params::Jwt(jwt)) => {
                        let token = problems.at("jwt", |problems| Token::compile(jwt, problems));
                        peers.push(Method::Token(token));
                    }
                    None => problems.report("needs mtls or jwt"),
                });
            }
            for (index, method) in own.origins.iter().enumerate() {
                problems.at_index("origins", index, |problems| match &method.jwt {
                    Some(jwt) => {
                        origins.push(problems.at("jwt", |problems| Token::compile(jwt, problems)));
                    }
                    None => problems.report_at("jwt", "is required"),
                });
            }
        });
        (problems.count() == before).then(|| Self {
            peers: peers.into(),
            peer_is_optional: own.peer_is_optional,
            origins: origins.into(),
            origin_is_optional: own.origin_is_optional,
            by_origin: own.principal_binding() == policy::PrincipalBinding::UseOrigin,
            any_domain: config.skip_validate_trust_domain,
            reroutes: !config.disable_clear_route_cache,
            preflight: [HeaderKey::new("origin"), HeaderKey::new("access-control-request-method")],
        })
    }

    pub(in crate::http::filters) fn on_request(&self, ex: &mut Exchange<'_>) -> Step {
        let Some(request) = &ex.request else { return Step::Continue };
        let tokens = ex.info.metadata.as_ref().and_then(|all| all.get(TOKENS));
        let facing = Facing { tls: ex.info.connection.tls.as_deref(), tokens };
        let says = |key| request.first(key).is_some_and(|value| !value.is_empty());
        let preflight = request.is_method(b"OPTIONS") && self.preflight.iter().all(says);
        match self.judge(&facing, request.path(), preflight) {
            Ok(found) => {
                found.note(ex.info.metadata.get_or_insert_default());
                if self.reroutes {
                    active(ex).reroute = true;
                }
                Step::Continue
            }
            Err(why) => Step::Reply(Reply::new(401, "istio_authn_access_denied").body(why)),
        }
    }

    /// Who the peer and the user are; why the request is refused, if it is.
    fn judge(&self, facing: &Facing<'_>, path: &[u8], preflight: bool) -> Result<Found, &'static str> {
        let mut found = Found::default();
        let mut identity = Identity::Nobody;
        let known = self.peers.is_empty()
            || self.peers.iter().any(|method| self.proves(method, facing, &mut identity));
        if !known && !self.peer_is_optional {
            return Err("Peer authentication failed.");
        }
        if known && !self.peers.is_empty() {
            found.peer = match &identity {
                Identity::Nobody => String::new(),
                Identity::Certificate(name) => name.clone(),
                Identity::Token(claims) => claims.user(),
            };
        }
        if self.origins.is_empty() && self.by_origin {
            return match self.origin_is_optional {
                true => Ok(found),
                false => Err("Origin authentication failed."),
            };
        }
        // Browsers send preflights without credentials.
        if preflight {
            return Ok(found);
        }
        let path = path.split(|byte| matches!(byte, b'?' | b'#')).next().unwrap_or_default();
        let mut wanted = self.origins.iter().filter(|token| token.is_wanted(path)).peekable();
        let none = wanted.peek().is_none();
        let claims = wanted.find_map(|token| token.claims(facing));
        if !none && claims.is_none() {
            return match self.origin_is_optional {
                true => Ok(found),
                false => Err("Origin authentication failed."),
            };
        }
        found.origin = claims.or(match identity {
            Identity::Token(claims) => Some(claims),
            _ => None,
        });
        found.principal = match self.by_origin {
            true => found.origin.as_ref().map(Claims::user).unwrap_or_default(),
            false => found.peer.clone(),
        };
        Ok(found)
    }

    /// Whether a peer has proved who it is.
    fn proves(&self, method: &Method, facing: &Facing<'_>, identity: &mut Identity) -> bool {
        let permissive = match method {
            Method::Certificate { permissive } => *permissive,
            Method::Token(token) => {
                let claims = token.claims(facing);
                let has = claims.is_some();
                if let Some(claims) = claims {
                    *identity = Identity::Token(claims);
                }
                return has;
            }
        };
        let name = facing.tls.and_then(TlsInfo::peer_facts).and_then(name_of);
        let Some(name) = name else { return permissive };
        let bare = name.strip_prefix(SPIFFE).unwrap_or(name);
        *identity = Identity::Certificate(bare.to_owned());
        if self.any_domain {
            return true;
        }
        let own = facing.tls.and_then(TlsInfo::local_facts).and_then(name_of).and_then(domain_of);
        own.is_some() && domain_of(name) == own
    }
}

/// The name of a certificate: that of SPIFFE, or the first.
fn name_of(facts: &Facts) -> Option<&str> {
    let mut names = facts.of_kind(SanKind::Uri);
    names.find(|name| name.starts_with(SPIFFE)).or_else(|| facts.of_kind(SanKind::Uri).next())
}

/// The trust domain of a name of SPIFFE.
fn domain_of(name: &str) -> Option<&str> {
    Some(name.strip_prefix(SPIFFE)?.split_once('/')?.0)
}

impl Token {
    fn compile(config: &policy::Jwt, problems: &mut Problems) -> Self {
        let rules = config.trigger_rules.iter().enumerate().map(|(index, rule)| {
            problems.at_index("trigger_rules", index, |problems| Trigger {
                excluded: paths(&rule.excluded_paths, "excluded_paths", problems),
                included: paths(&rule.included_paths, "included_paths", problems),
            })
        });
        let rules = rules.collect();
        let exchanged = matches!(&*config.jwt_headers, [only] if only.eq_ignore_ascii_case(EXCHANGED));
        Self { issuer: config.issuer.as_str().into(), exchanged, rules }
    }

    /// Whether a request to `path` needs it.
    fn is_wanted(&self, path: &[u8]) -> bool {
        let triggers = |rule: &Trigger| {
            let any = |matchers: &[StringMatcher]| matchers.iter().any(|matcher| matcher.matches(path));
            !any(&rule.excluded) && (rule.included.is_empty() || any(&rule.included))
        };
        path.is_empty() || self.rules.is_empty() || self.rules.iter().any(triggers)
    }

    /// What it says, where it was verified.
    fn claims(&self, facing: &Facing<'_>) -> Option<Claims> {
        let mut payload = structure(facing.tokens?, &self.issuer)?;
        if payload.fields.is_empty() {
            return None;
        }
        if self.exchanged {
            payload = structure(payload, ORIGINAL)?;
        }
        let raw = json(&Kind::StructValue(payload.clone())).to_string();
        Some(Claims { raw, words: words_of(payload) })
    }
}

fn paths(list: &[policy::StringMatch], field: &str, problems: &mut Problems) -> Box<[StringMatcher]> {
    use matcher::string_matcher::MatchPattern;
    use policy::string_match::MatchType;
    let each = |(index, config): (usize, &policy::StringMatch)| {
        let pattern = match config.match_type.clone()? {
            MatchType::Exact(text) => MatchPattern::Exact(text),
            MatchType::Prefix(text) => MatchPattern::Prefix(text),
            MatchType::Suffix(text) => MatchPattern::Suffix(text),
            MatchType::Regex(regex) => {
                MatchPattern::SafeRegex(matcher::RegexMatcher { regex, ..matcher::RegexMatcher::default() })
            }
        };
        let matcher =
            matcher::StringMatcher { match_pattern: Some(pattern), ..matcher::StringMatcher::default() };
        problems.at_index(field, index, |problems| StringMatcher::compile(&matcher, problems))
    };
    // One that says nothing matches nothing.
    list.iter().enumerate().filter_map(each).collect()
}

fn structure<'a>(fields: &'a Struct, name: &str) -> Option<&'a Struct> {
    match fields.fields.get(name)?.kind.as_ref()? {
        Kind::StructValue(inner) => Some(inner),
        _ => None,
    }
}

/// Claims as authorization reads them: texts and lists of texts as lists, and what is in structures; no others.
fn words_of(payload: &Struct) -> Struct {
    let list =
        |words: Vec<Value>| (!words.is_empty()).then_some(Kind::ListValue(ListValue { values: words }));
    let value = |value: &Value| match value.kind.as_ref()? {
        Kind::StringValue(text) => {
            list(text.split(' ').filter(|word| !word.is_empty()).map(text_value).collect())
        }
        Kind::ListValue(values) => {
            let text = |value: &Value| matches!(value.kind, Some(Kind::StringValue(_)));
            values.values.iter().all(text).then(|| list(values.values.clone())).flatten()
        }
        Kind::StructValue(inner) => Some(Kind::StructValue(words_of(inner))),
        _ => None,
    };
    let fields = payload.fields.iter();
    let kept = fields.filter_map(|(name, field)| Some((name.clone(), Value { kind: Some(value(field)?) })));
    Struct { fields: kept.collect() }
}

fn text_value(text: &str) -> Value {
    Value { kind: Some(Kind::StringValue(text.to_owned())) }
}

impl Claims {
    /// The first word of a claim.
    fn first(&self, name: &str) -> Option<&str> {
        let Kind::ListValue(list) = self.words.fields.get(name)?.kind.as_ref()? else { return None };
        match list.values.first()?.kind.as_ref()? {
            Kind::StringValue(text) => Some(text),
            _ => None,
        }
    }

    /// `ISSUER/SUBJECT`, empty without either.
    fn user(&self) -> String {
        match (self.first("iss"), self.first("sub")) {
            (Some(issuer), Some(subject)) => format!("{issuer}/{subject}"),
            _ => String::new(),
        }
    }
}

impl Found {
    fn note(self, metadata: &mut DynamicMetadata) {
        let mut notes: Vec<(&str, String)> = vec![("request.auth.principal", self.principal)];
        let namespace =
            self.peer.split_once("/ns/").map(|(_, rest)| rest.split('/').next().unwrap_or_default());
        notes.push(("source.namespace", namespace.unwrap_or_default().to_owned()));
        notes.push(("source.user", self.peer.clone()));
        notes.push(("source.principal", self.peer));
        let mut claims = None;
        if let Some(origin) = self.origin {
            let first = |name: &str| origin.first(name).unwrap_or_default().to_owned();
            notes.push(("request.auth.audiences", first("aud")));
            notes.push(("request.auth.presenter", first("azp")));
            notes.push(("request.auth.raw_claims", origin.raw));
            claims = Some(origin.words).filter(|words| !words.fields.is_empty());
        }
        let fields = &mut metadata.entry(NAMESPACE.to_owned()).or_default().fields;
        for (name, text) in notes.into_iter().filter(|(_, text)| !text.is_empty()) {
            fields.insert(name.to_owned(), text_value(&text));
        }
        if let Some(words) = claims {
            let claims = Value { kind: Some(Kind::StructValue(words)) };
            fields.insert("request.auth.claims".to_owned(), claims);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{json, Value as Json};

    use super::*;
    use crate::policy::jwt::token::object;

    fn config(policy: &Json) -> Config {
        let config = json!({
            "@type": "type.googleapis.com/istio.envoy.config.filter.http.authn.v2alpha1.FilterConfig", "policy": policy
        });
        let loaded = outrigger_control_api::load::<pb::FilterConfig>(
            &config.to_string(),
            outrigger_control_api::Format::Json,
        );
        let loaded = loaded.expect("a filter").message;
        let mut problems = Problems::new();
        let compiled = Config::compile(&loaded, &mut problems);
        compiled.unwrap_or_else(|| panic!("{:?}", problems.list()))
    }

    fn tokens(tokens: &Json) -> Struct {
        object(tokens.to_string().as_bytes()).expect("an object")
    }

    fn judged(config: &Config, held: &Json, path: &str) -> Result<Json, &'static str> {
        let held = tokens(held);
        let found = config.judge(&Facing { tls: None, tokens: Some(&held) }, path.as_bytes(), false)?;
        let mut metadata = DynamicMetadata::default();
        found.note(&mut metadata);
        Ok(super::json(&Kind::StructValue(metadata.remove(NAMESPACE).unwrap_or_default())))
    }

    #[test]
    fn what_a_token_says_is_noted_in_words() {
        let config = config(&json!({
            "origins": [{"jwt": {"issuer": "other"}}, {"jwt": {"issuer": "me"}}], "principal_binding": "USE_ORIGIN",
        }));
        let token = json!({"iss": "me", "sub": "joe", "aud": ["a", "b"], "azp": "app", "scope": "read  write", "exp": 5,
            "roles": {"staff": ["x"], "level": 3}, "mixed": ["a", 1], "empty": "", "none": []});
        let noted = judged(&config, &json!({"me": token, "third": {"iss": "third"}}), "/").expect("let in");
        let raw: Json =
            serde_json::from_str(noted["request.auth.raw_claims"].as_str().expect("a text")).expect("JSON");
        assert_eq!(raw, token);
        assert_eq!(
            noted["request.auth.claims"],
            json!({"iss": ["me"], "sub": ["joe"], "aud": ["a", "b"], "azp": ["app"], "scope": ["read", "write"], "roles": {"staff": ["x"]}})
        );
        let texts =
            ["principal", "audiences", "presenter"].map(|name| noted[format!("request.auth.{name}")].clone());
        assert_eq!(texts, ["me/joe", "a", "app"]);
        assert!(noted.get("source.user").is_none());
        assert_eq!(
            judged(&config, &json!({"third": {"iss": "third"}}), "/"),
            Err("Origin authentication failed.")
        );
        assert_eq!(judged(&config, &json!({"me": {}}), "/"), Err("Origin authentication failed."));
    }

    #[test]
    fn rules_say_which_paths_need_a_token() {
        let rules = json!([
            {"excluded_paths": [{"prefix": "/open"}, {"suffix": ".css"}], "included_paths": [{"regex": "/[a-z]+"}, {"exact": "/A"}]},
            {"included_paths": [{"exact": "/open/not"}]},
        ]);
        let config = config(&json!({"origins": [{"jwt": {"issuer": "me", "trigger_rules": rules}}]}));
        for (path, needs) in [
            ("/abc", true),
            ("/abc?x", true),
            ("/A", true),
            ("/a1", false),
            ("/open", false),
            ("/open/not#x", true),
            ("/x.css", false),
        ] {
            let refused = judged(&config, &json!({}), path).is_err();
            assert_eq!(refused, needs, "{path}");
        }
    }

    #[test]
    fn exchanged_tokens_keep_the_claims_of_others() {
        let config =
            config(&json!({"origins": [{"jwt": {"issuer": "me", "jwt_headers": ["Ingress-Authorization"]}}],
            "principal_binding": "USE_ORIGIN"}));
        let inner = json!({"iss": "far", "sub": "joe"});
        let noted =
            judged(&config, &json!({"me": {"iss": "me", "original_claims": inner}}), "/").expect("let in");
        assert_eq!(noted["request.auth.principal"], "far/joe");
        assert!(judged(&config, &json!({"me": {"iss": "me"}}), "/").is_err());
    }

    #[test]
    fn a_peer_may_have_a_token_or_none() {
        let peers = json!([{"mtls": {}}, {"jwt": {"issuer": "me"}}]);
        let strict = config(&json!({"peers": peers}));
        assert_eq!(judged(&strict, &json!({}), "/"), Err("Peer authentication failed."));
        let noted = judged(&strict, &json!({"me": {"iss": "a/ns/b", "sub": "c"}}), "/").expect("let in");
        let parts = ["source.user", "source.principal", "source.namespace", "request.auth.principal"];
        assert_eq!(parts.map(|part| noted[part].clone()), ["a/ns/b/c", "a/ns/b/c", "b", "a/ns/b/c"]);
        for lenient in [
            json!({"peers": peers, "peer_is_optional": true}),
            json!({"peers": [{"mtls": {"mode": "PERMISSIVE"}}]}),
        ] {
            assert_eq!(judged(&config(&lenient), &json!({}), "/"), Ok(json!({})));
        }
        let nobody = config(&json!({"principal_binding": "USE_ORIGIN"}));
        assert_eq!(judged(&nobody, &json!({}), "/"), Err("Origin authentication failed."));
        let anybody = config(&json!({"principal_binding": "USE_ORIGIN", "origin_is_optional": true}));
        assert_eq!(judged(&anybody, &json!({}), "/"), Ok(json!({})));
    }
}
