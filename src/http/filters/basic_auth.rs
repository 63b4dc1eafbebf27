//! Names and passwords (`envoy.filters.http.basic_auth`, RFC 7617): who knows one of those that config has may pass.
//!
//! Comes in: a request. Goes out: it, perhaps with the name in a header and in its metadata, or 401. Passwords are known by
//! their digests alone, and neither they nor what clients send are shown anywhere.

use std::collections::HashMap;
use std::fmt;

use aws_lc_rs::{constant_time, digest};
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use base64::engine::DecodePaddingMode;
use base64::{alphabet, Engine};
use outrigger_control_api::pb::envoy::config::core::v3::DataSource;
use outrigger_control_api::pb::envoy::extensions::filters::http::basic_auth::v3 as pb;
use outrigger_control_api::pb::google::protobuf::{value::Kind, Value};

use super::chain::{At, Step};
use crate::config::compile::data_source;
use crate::config::problems::Problems;
use crate::config::route::RouteFilter;
use crate::config::{HeaderKey, HeaderMutate, HeaderView, Known, RequestView};
use crate::http::exchange::{Exchange, Reply};
use crate::http::fields::Fields;
use crate::http::head::RequestHead;
use crate::telemetry::metrics::Scope;

/// Before name and password.
const BASIC: &[u8] = b"Basic ";
/// Before a digest (htpasswd's `-s`).
const SHA: &str = "{SHA}";
/// Characters of a SHA-1 digest in base64.
const DIGEST: usize = 28;
/// Most bytes of a request's path in a realm, as in Envoy.
const PATH: usize = 256;
/// Clients may leave the padding out.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

crate::stats! {
    /// `http.<stat_prefix>.basic_auth.`.
    pub struct BasicAuthStats {
        counters { allowed, denied }
        gauges {}
        histograms {}
    }
}

/// The filter.
#[derive(Debug)]
pub struct Config {
    stats: BasicAuthStats,
    own: PerRoute,
    /// Where the name goes.
    forward: Option<HeaderKey>,
    /// Where name and password are.
    from: HeaderKey,
    allow_missing: bool,
    /// The name is noted in metadata.
    note: bool,
}

/// Who may pass (`BasicAuthPerRoute`).
#[derive(Debug)]
pub struct PerRoute {
    users: Users,
    /// What clients are told that the names are for; `None` = as the filter says, or the URL.
    realm: Option<Box<str>>,
}

/// Digests by name.
struct Users(HashMap<Box<[u8]>, Box<[u8]>>);

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} users", self.0.len())
    }
}

impl Config {
    /// Compiles `config`, which counts in `stats`, the connection manager's. `None` when a problem was reported.
    pub fn compile(config: &pb::BasicAuth, stats: &Scope, problems: &mut Problems) -> Option<Self> {
        if config.users.is_none() {
            problems.report_at("users", "is required");
        }
        let name = |name: &str, default: &str| {
            let name = if name.is_empty() { default } else { name };
            (!name.is_empty()).then(|| HeaderKey::new(name))
        };
        Some(Self {
            stats: BasicAuthStats::new(&stats.sub("basic_auth")),
            own: per_route(config.users.as_ref(), &config.realm, false, problems)?,
            forward: name(&config.forward_username_header, ""),
            from: name(&config.authentication_header, "authorization")?,
            allow_missing: config.allow_missing,
            note: config.emit_dynamic_metadata,
        })
    }

    pub(super) fn on_request(&self, ex: &mut Exchange<'_>, at: &At<'_>) -> Step {
        let who = match at.said() {
            Some(RouteFilter::BasicAuth(said)) => said,
            _ => &self.own,
        };
        let Some(request) = &mut ex.request else { return Step::Continue };
        let name = match request.first(&self.from) {
            // That is counted nowhere, as in Envoy.
            None if self.allow_missing => return Step::Continue,
            None => Err(MISSING),
            Some(value) => match self.is_several(request) {
                // Joined by a comma, as Envoy sees them, they have no colon.
                true if value.starts_with(BASIC) => Err(FORMAT),
                true => Err(SCHEME),
                false => who.users.name_in(value),
            },
        };
        let name = match name {
            Ok(name) => name,
            Err((details, text)) => {
                self.stats.denied.increment(1);
                let realm = match who.realm.as_ref().or(self.own.realm.as_ref()) {
                    Some(realm) => realm.as_bytes().to_vec(),
                    None => url(request),
                };
                let mut fields = Fields::default();
                let value = [b"Basic realm=\"", quoted(&realm).as_slice(), b"\""].concat();
                fields.push(b"www-authenticate", &value);
                return Step::Reply(Reply::new(401, details).body(text).with_fields(fields));
            }
        };
        if let Some(header) = &self.forward {
            request.set(header, &name);
        }
        if self.note {
            let text = String::from_utf8_lossy(&name).into_owned();
            let value = Value { kind: Some(Kind::StringValue(text)) };
            let all = ex.info.metadata.get_or_insert_default();
            all.entry(at.name.text().to_string()).or_default().fields.insert("username".to_owned(), value);
        }
        self.stats.allowed.increment(1);
        Step::Continue
    }
}

impl Config {
    /// Whether there is more than one `authorization`, of which servers could read either.
    fn is_several(&self, request: &RequestHead) -> bool {
        let mut count = 0;
        request.values(&self.from, &mut |_| count += 1);
        count > 1 && self.from == Known::Authorization.into()
    }
}

impl PerRoute {
    /// Compiles what a route says. `None` when a problem was reported.
    pub fn compile(config: &pb::BasicAuthPerRoute, problems: &mut Problems) -> Option<Self> {
        per_route(config.users.as_ref(), &config.realm, true, problems)
    }
}

fn per_route(
    users: Option<&DataSource>,
    realm: &str,
    nobody: bool,
    problems: &mut Problems,
) -> Option<PerRoute> {
    let users = problems.at("users", |problems| {
        let text = data_source(users?, problems)?;
        if text.is_empty() && !nobody {
            problems.report("nobody is in it");
        }
        Users::parse(&text, problems)
    })?;
    Some(PerRoute { users, realm: (!realm.is_empty()).then(|| realm.into()) })
}

/// Why a request does not pass: the details of its answer, and the body.
type Refusal = (&'static str, &'static str);

const MISSING: Refusal =
    ("no_credential_for_basic_auth", "User authentication failed. Missing username and password.");
const SCHEME: Refusal =
    ("invalid_scheme_for_basic_auth", "User authentication failed. Expected 'Basic' authentication scheme.");
const FORMAT: Refusal =
    ("invalid_format_for_basic_auth", "User authentication failed. Invalid basic credential format.");
const WRONG: Refusal = (
    "invalid_credential_for_basic_auth",
    "User authentication failed. Invalid username/password combination.",
);

impl Users {
    /// Reads lines of htpasswd; those that are empty or begin with `#` say nothing. Problems name lines by their numbers:
    /// what is in them is not for logs.
    fn parse(text: &[u8], problems: &mut Problems) -> Option<Self> {
        let before = problems.count();
        let mut users = HashMap::new();
        for (index, line) in text.split(|byte| *byte == b'\n').enumerate() {
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            let mut wrong = |what: &str| problems.report(format_args!("line {}: {what}", index + 1));
            let mut parts = line.splitn(2, |byte| *byte == b':');
            let (Some(name), Some(hash)) = (parts.next(), parts.next()) else {
                wrong("a name, a colon and a digest are expected");
                continue;
            };
            match hash.strip_prefix(SHA.as_bytes()) {
                _ if name.is_empty() || hash.is_empty() => wrong("the name or the digest is empty"),
                None => wrong("the password is to be a digest that begins with {SHA}"),
                Some(digest) if digest.len() != DIGEST => wrong("the digest has 28 characters in base64"),
                Some(digest) => {
                    if users.insert(name.into(), digest.into()).is_some() {
                        wrong("an earlier line has the same name");
                    }
                }
            }
        }
        (problems.count() == before).then_some(Self(users))
    }

    /// The name in a header's value, if its password is right.
    fn name_in(&self, value: &[u8]) -> Result<Vec<u8>, Refusal> {
        // Envoy takes no other spelling.
        let token = value.strip_prefix(BASIC).ok_or(SCHEME)?;
        let mut text = LENIENT.decode(token).unwrap_or_default();
        let colon = memchr::memchr(b':', &text).ok_or(FORMAT)?;
        let (name, password) = text.split_at(colon);
        // The colon is there.
        let password = password.get(1..).unwrap_or_default();
        let given = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, password);
        let given = STANDARD.encode(given);
        let known = self.0.get(name).ok_or(WRONG)?;
        constant_time::verify_slices_are_equal(known, given.as_bytes()).map_err(|_| WRONG)?;
        text.truncate(colon);
        Ok(text)
    }
}

/// The URL of a request, cut where its path is long.
fn url(request: &impl RequestView) -> Vec<u8> {
    let path = request.path();
    let path = path.get(..PATH).unwrap_or(path);
    [request.scheme(), b"://", request.authority(), path].concat()
}

/// As it stands between quotes.
fn quoted(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    for byte in text {
        if matches!(byte, b'"' | b'\\') {
            out.push(b'\\');
        }
        out.push(*byte);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `secret`, as htpasswd has it.
    const SECRET: &str = "{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=";

    fn parsed(text: &str) -> Result<Users, String> {
        let mut problems = Problems::new();
        let users = problems.at("users", |problems| Users::parse(text.as_bytes(), problems));
        users.ok_or_else(|| format!("{problems:?}"))
    }

    #[test]
    fn lines_of_htpasswd() {
        for text in ["", &format!("# all\njoe:{SECRET}\n\nann:{SECRET}"), &format!("joe:{SECRET}\n")] {
            assert!(parsed(text).is_ok(), "{text:?}");
        }
        for (text, wanted) in [
            ("joe", "line 1: a name, a colon"),
            ("joe:secret", "line 1: the password is to be a digest"),
            (&format!("joe:{SECRET}\r\nann:{SECRET}"), "line 1: the digest has 28"),
            (&format!(":{SECRET}"), "line 1: the name or the digest is empty"),
            ("\njoe:", "line 2: the name or the digest is empty"),
            (&format!("joe:{SECRET}\njoe:{SECRET}"), "line 2: an earlier line"),
        ] {
            let problem = parsed(text).unwrap_err();
            assert!(problem.contains(wanted) && problem.contains("users"), "{text:?}: {problem}");
            assert!(!problem.contains("secret") && !problem.contains("5en6"), "{problem}");
        }
    }

    #[test]
    fn nothing_of_them_is_shown() {
        let users = parsed(&format!("joe:{SECRET}")).unwrap();
        assert_eq!(format!("{users:?}"), "1 users");
    }

    #[test]
    fn what_clients_send() {
        let users = parsed(&format!("joe:{SECRET}")).unwrap();
        let told = |text: &str| users.name_in(text.as_bytes()).map_err(|(details, _)| details);
        let sent = |text: &str| told(&format!("Basic {}", STANDARD.encode(text)));
        assert_eq!(sent("joe:secret"), Ok(b"joe".to_vec()));
        assert_eq!(told(&format!("basic {}", STANDARD.encode("joe:secret"))), Err(SCHEME.0));
        assert_eq!(sent("joe:secre"), Err(WRONG.0));
        assert_eq!(sent("ann:secret"), Err(WRONG.0));
        assert_eq!(sent("joe"), Err(FORMAT.0));
        assert_eq!(told("Basic !"), Err(FORMAT.0));
        assert_eq!(told("Bearer x"), Err(SCHEME.0));
        assert_eq!(told(""), Err(SCHEME.0));
    }
}
