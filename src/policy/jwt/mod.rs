//! Who a token says the client is: JSON Web Tokens of configured issuers.
//!
//! Comes in: providers and requirements, compiled, and a request. Goes out: whether its tokens fulfil a requirement; if
//! they do, what is taken from them is in the request's head. Keys of other services are fetched by whoever asks
//! ([`Stop::Needs`]), never here. What a token says is neither logged nor shown.

mod cache;
mod extract;
mod failure;
mod keys;
pub(crate) mod token;

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use base64::prelude::{Engine as _, BASE64_STANDARD as BASE64};
use outrigger_control_api::pb::google::protobuf::{value::Kind, ListValue, Struct, Value};

pub use self::cache::TokenCache;
pub use self::extract::Extractor;
pub use self::failure::{details, Failure};
pub use self::keys::KeySet;
pub use self::token::Token;
use crate::config::matcher::StringMatcher;
use crate::config::services::{HttpTarget, Retries};
use crate::config::{HeaderKey, HeaderMutate, RequestView};

/// Where a claim is in a payload: the names on the way to it.
pub type ClaimPath = Box<[Box<str>]>;

/// Whose tokens are accepted, and what becomes of them (`JwtProvider`).
#[derive(Debug)]
pub struct Provider {
    /// Who must have issued them; empty for anybody.
    pub issuer: Box<str>,
    /// For whom they must be; none for anybody.
    pub audiences: Audiences,
    /// About whom they must be.
    pub subjects: Option<StringMatcher>,
    /// How long they may be valid from now on; the inner `None` = for ever, but not without an end.
    pub lifetime: Option<Option<Duration>>,
    /// What verifies them.
    pub keys: Keys,
    /// They stay in the request.
    pub forward: bool,
    /// Gets the payload, padded or not.
    pub payload_header: Option<(HeaderKey, bool)>,
    /// Get claims: a name, and where in the payload.
    pub claims: Box<[(HeaderKey, ClaimPath)]>,
    /// Metadata that get the payload, the header, or what was wrong.
    pub payload_metadata: Box<str>,
    /// The header's.
    pub header_metadata: Box<str>,
    /// A failure's.
    pub failure_metadata: Box<str>,
    /// Claims that are lists of words in these metadata.
    pub split: Box<[Box<str>]>,
    /// Seconds by which clocks may differ.
    pub skew: u64,
    /// The route is found anew.
    pub reroute: bool,
    /// Tokens that were verified before.
    pub cache: Option<TokenCache>,
}

/// What verifies signatures.
#[derive(Debug)]
pub enum Keys {
    /// These.
    Local(KeySet),
    /// Those of another service.
    Remote(Arc<RemoteKeys>),
}

/// Keys of another service (`RemoteJwks`).
#[derive(Debug)]
pub struct RemoteKeys {
    /// Where they are.
    pub target: HttpTarget,
    /// How long they may be used.
    pub lifetime: Duration,
    /// They are fetched before they are asked for, and again so long after a failure.
    pub ahead: Option<Duration>,
    /// How often to try again.
    pub retries: Option<Retries>,
    current: ArcSwapOption<Fetched>,
}

#[derive(Debug)]
struct Fetched {
    keys: KeySet,
    /// `None` = until there are others.
    until: Option<Instant>,
}

impl RemoteKeys {
    /// None are here yet.
    pub fn new(
        target: HttpTarget,
        lifetime: Duration,
        ahead: Option<Duration>,
        retries: Option<Retries>,
    ) -> Self {
        Self { target, lifetime, ahead, retries, current: ArcSwapOption::empty() }
    }

    /// These were fetched.
    pub fn put(&self, keys: KeySet, now: Instant) {
        // Those that are fetched ahead serve until the next ones.
        let until = self.ahead.is_none().then(|| now + self.lifetime);
        self.current.store(Some(Arc::new(Fetched { keys, until })));
    }

    fn fresh(&self, now: Instant) -> Option<Arc<Fetched>> {
        self.current.load_full().filter(|fetched| fetched.until.is_none_or(|until| now < until))
    }
}

/// Audiences, without scheme and last slash.
#[derive(Debug, Default)]
pub struct Audiences(Box<[Box<str>]>);

impl Audiences {
    /// These.
    pub fn new(list: &[String]) -> Self {
        Self(list.iter().map(|one| bare(one).into()).collect())
    }

    /// Whether there is any.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn allow(&self, token: &Token) -> bool {
        self.0.is_empty() || token.audiences.iter().any(|one| self.0.iter().any(|own| **own == *bare(one)))
    }
}

fn bare(audience: &str) -> &str {
    let rest = audience.strip_prefix("http://").or_else(|| audience.strip_prefix("https://"));
    let rest = rest.unwrap_or(audience);
    rest.strip_suffix('/').unwrap_or(rest)
}

/// What a request must have (`JwtRequirement`).
#[derive(Debug)]
pub enum Requirement {
    /// Nothing.
    Nothing,
    /// Tokens of this provider.
    Of {
        /// The provider.
        provider: Arc<Provider>,
        /// Where it looks for them.
        extractor: Arc<Extractor>,
        /// For whom they must be, instead of what the provider says.
        audiences: Option<Audiences>,
    },
    /// Any of these.
    Any(Vec<Requirement>),
    /// All of these.
    All(Vec<Requirement>),
    /// No token, or good ones of any provider.
    Optional {
        /// All providers, in the order of their names.
        providers: Arc<[Arc<Provider>]>,
        /// Where some of them look.
        extractor: Arc<Extractor>,
        /// Or bad ones.
        or_bad: bool,
    },
}

impl Requirement {
    /// Whether keys of other services, which are not here, may be needed.
    pub fn may_wait(&self, now: Instant) -> bool {
        let absent = |provider: &Arc<Provider>| match &provider.keys {
            Keys::Remote(remote) => remote.fresh(now).is_none(),
            Keys::Local(_) => false,
        };
        match self {
            Requirement::Nothing => false,
            Requirement::Of { provider, .. } => absent(provider),
            Requirement::Any(list) | Requirement::All(list) => list.iter().any(|one| one.may_wait(now)),
            Requirement::Optional { providers, .. } => providers.iter().any(absent),
        }
    }
}

/// Why a requirement is not fulfilled.
#[derive(Debug)]
pub enum Stop {
    /// The client is told this.
    Failed(Failure),
    /// These keys must be fetched first.
    Needs(Arc<RemoteKeys>),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Stop::Failed(failure)
    }
}

/// One request's way through a requirement.
#[derive(Debug)]
pub struct Trial<'r, R> {
    /// The request; what is taken from tokens is written to it.
    pub request: &'r mut R,
    /// The clock.
    pub now: Instant,
    /// The same in seconds since 1970.
    pub wall: u64,
    /// Keys that were fetched for it, and whether they came.
    pub fetched: &'r [(Arc<RemoteKeys>, bool)],
    /// Tokens that were cached.
    pub hits: u64,
    /// Tokens that were not.
    pub misses: u64,
    /// What metadata are to have, in order.
    pub told: Vec<(Box<str>, Struct)>,
    /// The route is to be found anew.
    pub reroute: bool,
}

impl<R: RequestView + HeaderMutate> Trial<'_, R> {
    /// Whether `requirement` is fulfilled.
    ///
    /// # Errors
    /// Why not.
    pub fn run(&mut self, requirement: &Requirement) -> Result<(), Stop> {
        match requirement {
            Requirement::Nothing => Ok(()),
            Requirement::Of { provider, extractor, audiences } => {
                extractor.clean(self.request);
                let result = self.of(provider, extractor, audiences.as_ref());
                if let (Err(Stop::Failed(failure)), false) = (&result, provider.failure_metadata.is_empty()) {
                    self.tell_failure(provider, *failure);
                }
                result
            }
            Requirement::Any(list) => {
                let (mut last, mut needs) = (Failure::Missing, None);
                for one in list {
                    match self.run(one) {
                        Ok(()) => return Ok(()),
                        Err(Stop::Failed(Failure::Missing)) => {}
                        Err(Stop::Failed(Failure::UnknownIssuer)) => {
                            if last == Failure::Missing {
                                last = Failure::UnknownIssuer;
                            }
                        }
                        Err(Stop::Failed(failure)) => last = failure,
                        // Another may do without.
                        Err(Stop::Needs(remote)) => needs = needs.or(Some(remote)),
                    }
                }
                Err(needs.map_or(Stop::Failed(last), Stop::Needs))
            }
            Requirement::All(list) => list.iter().try_for_each(|one| self.run(one)),
            Requirement::Optional { providers, extractor, or_bad } => {
                extractor.clean(self.request);
                self.optional(providers, extractor, *or_bad)
            }
        }
    }

    fn of(
        &mut self,
        provider: &Provider,
        extractor: &Extractor,
        audiences: Option<&Audiences>,
    ) -> Result<(), Stop> {
        let mut found = extractor.find(&*self.request);
        if found.is_empty() {
            return Err(Failure::Missing.into());
        }
        // All must be good: the service behind may look at another than this did.
        while let Some(one) = found.pop() {
            let cached = provider.cache.as_ref().and_then(|cache| cache.find(&one.token, self.wall));
            *if cached.is_some() { &mut self.hits } else { &mut self.misses } += 1;
            let known = cached.is_some();
            let token = match cached {
                Some(token) => token,
                None => Arc::new(Token::parse(&one.token)?),
            };
            if !one.allows(&token.issuer) {
                return Err(Failure::UnknownIssuer.into());
            }
            self.check(provider, audiences, &token, known)?;
            if let (Some(cache), false) = (&provider.cache, known) {
                cache.put(&one.token, &token);
            }
            self.take(provider, one.place, &token);
        }
        Ok(())
    }

    fn optional(
        &mut self,
        providers: &[Arc<Provider>],
        extractor: &Extractor,
        or_bad: bool,
    ) -> Result<(), Stop> {
        let mut found = extractor.find(&*self.request);
        let mut result = Ok(());
        while let Some(one) = found.pop() {
            result = self.one_of(providers, &one);
            match &result {
                Err(Stop::Needs(_)) => return result,
                _ if or_bad => result = Ok(()),
                _ => {}
            }
        }
        result
    }

    fn one_of(&mut self, providers: &[Arc<Provider>], one: &extract::Found<'_>) -> Result<(), Stop> {
        let token = Token::parse(&one.token)?;
        if !one.allows(&token.issuer) {
            return Err(Failure::UnknownIssuer.into());
        }
        let of = |issuer: &str| providers.iter().find(|provider| *provider.issuer == *issuer);
        let provider = of(&token.issuer).or_else(|| of("")).ok_or(Failure::UnknownIssuer)?;
        self.check(provider, None, &token, false)?;
        self.take(provider, one.place, &token);
        Ok(())
    }

    /// Whether a token is good. One that is `known` has a good signature.
    fn check(
        &self,
        provider: &Provider,
        audiences: Option<&Audiences>,
        token: &Token,
        known: bool,
    ) -> Result<(), Stop> {
        token.check_time(self.wall, provider.skew)?;
        if provider.subjects.as_ref().is_some_and(|subjects| !subjects.matches(token.subject.as_bytes())) {
            return Err(Failure::Verification.into());
        }
        if let Some(most) = provider.lifetime {
            let left = token.expiry.saturating_sub(self.wall);
            if !token.expires || most.is_some_and(|most| Duration::from_secs(left) >= most) {
                return Err(Failure::Verification.into());
            }
        }
        if !audiences.unwrap_or(&provider.audiences).allow(token) {
            return Err(Failure::AudienceNotAllowed.into());
        }
        if known {
            return Ok(());
        }
        match &provider.keys {
            Keys::Local(keys) => Ok(keys.verify(token)?),
            Keys::Remote(remote) => {
                let asked = self.fetched.iter().find(|(asked, _)| Arc::ptr_eq(asked, remote));
                // What was fetched for this request serves it, however short its life.
                let keys = match asked {
                    Some((_, true)) => remote.current.load_full(),
                    _ => remote.fresh(self.now),
                };
                match (keys, asked) {
                    (Some(fetched), _) => Ok(fetched.keys.verify(token)?),
                    (None, Some(_)) => Err(Failure::FetchFailed.into()),
                    (None, None) => Err(Stop::Needs(remote.clone())),
                }
            }
        }
    }

    /// Takes from a good token what the provider is to give away.
    fn take(&mut self, provider: &Provider, place: extract::Place<'_>, token: &Token) {
        if let Some((key, pad)) = &provider.payload_header {
            let mut text = token.payload_text().to_vec();
            if *pad {
                text.resize(text.len().next_multiple_of(4), b'=');
            }
            self.request.append(key, &text);
        }
        for (key, path) in &provider.claims {
            if let Some(text) = claim(&token.payload, path).filter(|text| !text.is_empty()) {
                self.request.append(key, text.as_bytes());
            }
        }
        if !provider.forward {
            place.remove(self.request);
        }
        if !provider.header_metadata.is_empty() {
            self.told.push((provider.header_metadata.clone(), token.header.clone()));
        }
        if !provider.payload_metadata.is_empty() {
            let mut payload = token.payload.clone();
            for name in &provider.split {
                split(&mut payload, name);
            }
            self.told.push((provider.payload_metadata.clone(), payload));
        }
        self.reroute |= provider.reroute;
    }

    fn tell_failure(&mut self, provider: &Provider, failure: Failure) {
        let text = |text: String| Value { kind: Some(Kind::StringValue(text)) };
        let mut told = Struct::default();
        told.fields.insert("code".to_owned(), text(failure.number().to_string()));
        told.fields.insert("message".to_owned(), text(failure.text().to_owned()));
        self.told.push((provider.failure_metadata.clone(), told));
    }
}

/// A claim as a header says it; `None` if there is none. Lists and objects are JSON in base64, as protobuf spells it.
fn claim(payload: &Struct, path: &[Box<str>]) -> Option<String> {
    let (last, parents) = path.split_last()?;
    let mut inner = payload;
    for parent in parents {
        match &inner.fields.get(&**parent)?.kind {
            Some(Kind::StructValue(next)) => inner = next,
            _ => return None,
        }
    }
    match inner.fields.get(&**last)?.kind.as_ref()? {
        Kind::StringValue(text) => Some(text.clone()),
        Kind::BoolValue(value) => Some(value.to_string()),
        // 2^64 is the first double beyond.
        Kind::NumberValue(number)
            if (0.0..18_446_744_073_709_551_616.0).contains(number) && number.fract() == 0.0 =>
        {
            Some((*number as u64).to_string())
        }
        Kind::NumberValue(number) => Some(format!("{number:.6}")),
        Kind::NullValue(_) => None,
        value @ (Kind::ListValue(_) | Kind::StructValue(_)) => {
            let text = token::json(value).to_string();
            Some(BASE64.encode(text.replace('<', "\\u003c").replace('>', "\\u003e")))
        }
    }
}

/// Makes a claim of words a list of them.
fn split(payload: &mut Struct, name: &str) {
    let Some(value) = payload.fields.get_mut(name) else { return };
    if let Some(Kind::StringValue(text)) = &value.kind {
        let word = |word: &str| Value { kind: Some(Kind::StringValue(word.to_owned())) };
        let values = text.split(' ').filter(|word| !word.is_empty()).map(word).collect();
        value.kind = Some(Kind::ListValue(ListValue { values }));
    }
}

#[cfg(test)]
mod tests;
