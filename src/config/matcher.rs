//! Matchers that several rooms share: strings, headers, query parameters, fractions.
//!
//! Comes in: their protobuf form, problems reported with the field's path. Goes out: tests of a head
//! that allocate nothing. A matcher that cannot be compiled is `None`, and its problem is reported.

use arc_swap::ArcSwap;
use memchr::memmem;
use outrigger_control_api::pb::envoy::config::core::v3::RuntimeFractionalPercent;
use outrigger_control_api::pb::envoy::config::route::v3 as pb;
use outrigger_control_api::pb::envoy::r#type::matcher::v3 as matcher;
use outrigger_control_api::pb::envoy::r#type::v3::{fractional_percent::DenominatorType, FractionalPercent};

use super::compile::runtime::Runtime;
use super::headers::{HeaderKey, HeaderView};
use super::problems::Problems;
use super::regex::{Regex, Substitution};

/// A test of a string (`envoy.type.matcher.v3.StringMatcher`).
#[derive(Debug, Clone)]
pub struct StringMatcher {
    pattern: Pattern,
    /// Ignores ASCII case; regular expressions do not heed it.
    ignore_case: bool,
}

#[derive(Debug, Clone)]
enum Pattern {
    Exact(Box<[u8]>),
    Prefix(Box<[u8]>),
    Suffix(Box<[u8]>),
    Contains(Box<memmem::Finder<'static>>),
    Regex(Box<Regex>),
}

/// Compiles each of the list in `field`, and reports the problems of all; `None` if one of them is bad.
fn all<C, T>(
    list: &[C],
    field: &str,
    problems: &mut Problems,
    compile: impl Fn(&C, &mut Problems) -> Option<T>,
) -> Option<Box<[T]>> {
    let all: Vec<_> = (list.iter().enumerate())
        .map(|(index, config)| problems.at_index(field, index, |problems| compile(config, problems)))
        .collect();
    all.into_iter().collect()
}

impl StringMatcher {
    /// Compiles the list in `field`; `None` if one of them is bad.
    pub fn compile_all(
        list: &[matcher::StringMatcher],
        field: &str,
        problems: &mut Problems,
    ) -> Option<Box<[Self]>> {
        all(list, field, problems, Self::compile)
    }

    /// Equality with `text`.
    pub fn exact(text: &str) -> Self {
        Self { pattern: Pattern::Exact(text.as_bytes().into()), ignore_case: false }
    }

    /// A match of the whole text.
    pub fn of_regex(regex: Regex) -> Self {
        Self { pattern: Pattern::Regex(Box::new(regex)), ignore_case: false }
    }

    /// Compiles `config`.
    pub fn compile(config: &matcher::StringMatcher, problems: &mut Problems) -> Option<Self> {
        use matcher::string_matcher::MatchPattern;

        let pattern = match config.match_pattern.as_ref()? {
            MatchPattern::Exact(text) => Pattern::Exact(text.as_bytes().into()),
            MatchPattern::Prefix(text) => Pattern::Prefix(text.as_bytes().into()),
            MatchPattern::Suffix(text) => Pattern::Suffix(text.as_bytes().into()),
            MatchPattern::Contains(text) => contains(text),
            MatchPattern::SafeRegex(config) => {
                Pattern::Regex(Box::new(problems.at("safe_regex", |problems| regex(config, problems))?))
            }
            MatchPattern::Custom(_) => {
                problems.report_at("custom", "matcher extensions are not supported");
                return None;
            }
        };
        Some(Self { pattern, ignore_case: config.ignore_case })
    }

    /// Whether `text` passes.
    pub fn matches(&self, text: &[u8]) -> bool {
        match &self.pattern {
            Pattern::Exact(wanted) => equal(text, wanted, self.ignore_case),
            Pattern::Prefix(wanted) => {
                text.get(..wanted.len()).is_some_and(|start| equal(start, wanted, self.ignore_case))
            }
            Pattern::Suffix(wanted) => text
                .len()
                .checked_sub(wanted.len())
                .and_then(|start| text.get(start..))
                .is_some_and(|end| equal(end, wanted, self.ignore_case)),
            Pattern::Contains(wanted) if self.ignore_case => {
                let needle = wanted.needle();
                needle.is_empty() || text.windows(needle.len()).any(|part| part.eq_ignore_ascii_case(needle))
            }
            Pattern::Contains(wanted) => wanted.find(text).is_some(),
            Pattern::Regex(regex) => regex.matches(text),
        }
    }
}

fn contains(text: &str) -> Pattern {
    Pattern::Contains(Box::new(memmem::Finder::new(text).into_owned()))
}

fn equal(text: &[u8], wanted: &[u8], ignore_case: bool) -> bool {
    if ignore_case {
        text.eq_ignore_ascii_case(wanted)
    } else {
        text == wanted
    }
}

/// Compiles a regular expression that must match a whole text.
pub fn regex(config: &matcher::RegexMatcher, problems: &mut Problems) -> Option<Regex> {
    problems.at("regex", |problems| problems.take(Regex::new(&config.regex)))
}

/// Compiles a regular expression and its substitution.
pub fn substitution(
    config: &matcher::RegexMatchAndSubstitute,
    problems: &mut Problems,
) -> Option<Substitution> {
    let pattern = config.pattern.as_ref()?;
    problems.take(Substitution::new(&pattern.regex, &config.substitution))
}

/// A test of a header (`envoy.config.route.v3.HeaderMatcher`).
///
/// A header with several values passes when any of them does. A missing header passes no test of its
/// value, inverted or not, unless it is to be taken as empty.
#[derive(Debug, Clone)]
pub struct HeaderMatcher {
    key: HeaderKey,
    test: HeaderTest,
    invert: bool,
    missing_is_empty: bool,
}

#[derive(Debug, Clone)]
enum HeaderTest {
    Present(bool),
    /// Any value at all: what an empty `exact_match` means.
    AnyValue,
    Text(StringMatcher),
    /// A decimal number from the first up to, not including, the second.
    Range(i64, i64),
}

impl HeaderMatcher {
    /// The header is there.
    pub fn present(key: HeaderKey) -> Self {
        Self { key, test: HeaderTest::Present(true), invert: false, missing_is_empty: false }
    }

    /// Compiles `config`.
    pub fn compile(config: &pb::HeaderMatcher, problems: &mut Problems) -> Option<Self> {
        use pb::header_matcher::HeaderMatchSpecifier as Specifier;

        let text = |pattern: Pattern| Some(HeaderTest::Text(StringMatcher { pattern, ignore_case: false }));
        let test = match &config.header_match_specifier {
            None => Some(HeaderTest::Present(true)),
            Some(Specifier::PresentMatch(present)) => Some(HeaderTest::Present(*present)),
            Some(Specifier::ExactMatch(wanted)) if wanted.is_empty() => Some(HeaderTest::AnyValue),
            Some(Specifier::ExactMatch(wanted)) => text(Pattern::Exact(wanted.as_bytes().into())),
            Some(Specifier::PrefixMatch(wanted)) => text(Pattern::Prefix(wanted.as_bytes().into())),
            Some(Specifier::SuffixMatch(wanted)) => text(Pattern::Suffix(wanted.as_bytes().into())),
            Some(Specifier::ContainsMatch(wanted)) => text(contains(wanted)),
            Some(Specifier::SafeRegexMatch(config)) => problems
                .at("safe_regex_match", |problems| regex(config, problems))
                .and_then(|regex| text(Pattern::Regex(Box::new(regex)))),
            Some(Specifier::RangeMatch(range)) => Some(HeaderTest::Range(range.start, range.end)),
            Some(Specifier::StringMatch(config)) => problems
                .at("string_match", |problems| StringMatcher::compile(config, problems))
                .map(HeaderTest::Text),
        }?;
        Some(Self {
            key: HeaderKey::new(&config.name),
            test,
            invert: config.invert_match,
            missing_is_empty: config.treat_missing_header_as_empty,
        })
    }

    /// Compiles the list in `field`; `None` if one of them is bad.
    pub fn compile_all(
        list: &[pb::HeaderMatcher],
        field: &str,
        problems: &mut Problems,
    ) -> Option<Box<[Self]>> {
        all(list, field, problems, Self::compile)
    }

    /// Whether `head` passes.
    pub fn matches<V: HeaderView + ?Sized>(&self, head: &V) -> bool {
        let first = head.first(&self.key);
        let passes = match (&self.test, first) {
            (HeaderTest::Present(wanted), first) => (first.is_some() || self.missing_is_empty) == *wanted,
            (_, None) if !self.missing_is_empty => return false,
            (test, None) => test.value_passes(b""),
            (test, Some(value)) if test.value_passes(value) => true,
            (test, Some(_)) => {
                let mut any = false;
                head.values(&self.key, &mut |value| any = any || test.value_passes(value));
                any
            }
        };
        passes != self.invert
    }
}

impl HeaderTest {
    fn value_passes(&self, value: &[u8]) -> bool {
        match self {
            HeaderTest::Present(wanted) => *wanted,
            HeaderTest::AnyValue => true,
            HeaderTest::Text(text) => text.matches(value),
            HeaderTest::Range(start, end) => {
                number::<i64>(value).is_some_and(|number| *start <= number && number < *end)
            }
        }
    }
}

/// A decimal number, white space around it allowed.
pub fn number<T: std::str::FromStr>(value: &[u8]) -> Option<T> {
    std::str::from_utf8(value).ok()?.trim_ascii().parse().ok()
}

/// A test of a query parameter (`envoy.config.route.v3.QueryParameterMatcher`). Names and values are
/// compared as sent, without percent-decoding; of a repeated parameter the first value counts.
#[derive(Debug, Clone)]
pub struct QueryParameterMatcher {
    name: Box<[u8]>,
    test: QueryTest,
}

#[derive(Debug, Clone)]
enum QueryTest {
    Present(bool),
    Text(StringMatcher),
}

impl QueryParameterMatcher {
    /// Compiles `config`.
    pub fn compile(config: &pb::QueryParameterMatcher, problems: &mut Problems) -> Option<Self> {
        use pb::query_parameter_matcher::QueryParameterMatchSpecifier as Specifier;

        let test = match &config.query_parameter_match_specifier {
            None => QueryTest::Present(true),
            Some(Specifier::PresentMatch(present)) => QueryTest::Present(*present),
            Some(Specifier::StringMatch(config)) => QueryTest::Text(
                problems.at("string_match", |problems| StringMatcher::compile(config, problems))?,
            ),
        };
        Some(Self { name: config.name.as_bytes().into(), test })
    }

    /// Whether `path`, with its query, passes.
    pub fn matches(&self, path: &[u8]) -> bool {
        let value = query_value(path, &self.name);
        match &self.test {
            QueryTest::Present(wanted) => value.is_some() == *wanted,
            QueryTest::Text(text) => value.is_some_and(|value| text.matches(value)),
        }
    }
}

/// The first value of the query parameter `name` in `path`; empty for one without `=`.
pub fn query_value<'p>(path: &'p [u8], name: &[u8]) -> Option<&'p [u8]> {
    let start = memchr::memchr(b'?', path)?;
    path.get(start + 1..)?.split(|byte| *byte == b'&').find_map(|pair| {
        let (key, value) = match memchr::memchr(b'=', pair) {
            Some(equals) => (pair.get(..equals)?, pair.get(equals + 1..)?),
            None => (pair, b"".as_slice()),
        };
        (key == name).then_some(value)
    })
}

/// A test of a cookie (`envoy.config.route.v3.CookieMatcher`). Of a cookie that is sent more than once
/// the first value counts; double quotes around it do not. A missing cookie passes an inverted test.
#[derive(Debug, Clone)]
pub struct CookieMatcher {
    name: Box<[u8]>,
    text: StringMatcher,
    invert: bool,
}

impl CookieMatcher {
    /// Compiles `config`.
    pub fn compile(config: &pb::CookieMatcher, problems: &mut Problems) -> Option<Self> {
        let text = config.string_match.as_ref()?;
        let text = problems.at("string_match", |problems| StringMatcher::compile(text, problems))?;
        Some(Self { name: config.name.as_bytes().into(), text, invert: config.invert_match })
    }

    /// Whether the cookies of `head` pass; `cookie` is the key of their header.
    pub fn matches<V: HeaderView + ?Sized>(&self, head: &V, cookie: &HeaderKey) -> bool {
        let mut passes = None;
        head.values(cookie, &mut |pairs| {
            if passes.is_none() {
                passes = cookie_value(pairs, &self.name).map(|value| self.text.matches(value));
            }
        });
        passes.unwrap_or(false) != self.invert
    }
}

/// The first value of the cookie `name` in the `cookie` header `pairs`.
pub(crate) fn cookie_value<'p>(pairs: &'p [u8], name: &[u8]) -> Option<&'p [u8]> {
    pairs.split(|byte| *byte == b';').find_map(|pair| {
        let pair = pair.trim_ascii();
        let equals = memchr::memchr(b'=', pair)?;
        let value = pair.get(equals + 1..)?;
        let quoted = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
        (pair.get(..equals)? == name).then_some(quoted.unwrap_or(value))
    })
}

/// A share of requests (`FractionalPercent`), decided by a random number drawn once for each request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fraction {
    numerator: u32,
    denominator: u32,
}

/// A share of requests that runtime may change (`RuntimeFractionalPercent`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeFraction {
    /// The key that is looked up each time.
    key: Option<Box<str>>,
    default: Fraction,
}

impl RuntimeFraction {
    /// `default`, unless runtime says otherwise under `key`; an empty key is none.
    pub fn new(key: &str, default: Fraction) -> Self {
        Self { key: (!key.is_empty()).then(|| key.into()), default }
    }

    /// Compiles `config`.
    pub fn of(config: &RuntimeFractionalPercent) -> Self {
        Self::new(&config.runtime_key, Fraction::of(config.default_value.as_ref()))
    }

    /// The share as it is now.
    pub fn now(&self, runtime: &ArcSwap<Runtime>) -> Fraction {
        self.key.as_ref().and_then(|key| runtime.load().fraction(key)).unwrap_or(self.default)
    }
}

impl Fraction {
    /// `numerator` of `denominator` requests; the latter is not 0.
    pub fn new(numerator: u32, denominator: u32) -> Self {
        Self { numerator, denominator: denominator.max(1) }
    }

    /// No more than `numerator`.
    #[must_use]
    pub fn at_most(self, numerator: u32) -> Self {
        Self { numerator: self.numerator.min(numerator), ..self }
    }

    /// Whether it is the same for every request, and then which.
    pub fn certain(&self) -> Option<bool> {
        match self.numerator {
            0 => Some(false),
            numerator if numerator >= self.denominator => Some(true),
            _ => None,
        }
    }

    /// Every request.
    pub const ALL: Self = Self { numerator: 100, denominator: 100 };

    /// Reads `config`; absent means none of the requests.
    pub fn of(config: Option<&FractionalPercent>) -> Self {
        let Some(config) = config else { return Self { numerator: 0, denominator: 100 } };
        let denominator = match config.denominator() {
            DenominatorType::Hundred => 100,
            DenominatorType::TenThousand => 10_000,
            DenominatorType::Million => 1_000_000,
        };
        Self { numerator: config.numerator, denominator }
    }

    /// Reads the default value of `config`, which is in the field `field`: runtime does not override it there.
    pub fn of_runtime(config: &RuntimeFractionalPercent, field: &str, problems: &mut Problems) -> Self {
        if !config.runtime_key.is_empty() {
            problems.note(format_args!("{field}.runtime_key"), "runtime does not override it");
        }
        Self::of(config.default_value.as_ref())
    }

    /// Whether a request that drew `random` is in the share.
    pub fn holds(&self, random: u64) -> bool {
        random % u64::from(self.denominator) < u64::from(self.numerator)
    }
}

#[cfg(test)]
mod tests;
