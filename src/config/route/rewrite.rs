//! Rewrites of a request's path and host.

use std::borrow::Cow;

use bytes::Bytes;

use super::path::{without_query, PathMatch};
use crate::config::headers::{HeaderKey, RequestView};
use crate::config::regex::Substitution;

/// How a path is rewritten; its query is kept.
#[derive(Debug, Clone)]
pub enum PathRewrite {
    /// The matched prefix (of a regex or CONNECT route: the whole path) becomes this.
    Prefix(Bytes),
    /// Every match in the path is replaced: where it is a template's, that is all of it.
    Regex(Box<Substitution>),
}

impl PathRewrite {
    /// `original`, a path with its query, rewritten.
    pub fn apply(&self, matched: &PathMatch, original: &[u8]) -> Vec<u8> {
        let (length, replacement) = match self {
            PathRewrite::Prefix(prefix) => (matched.matched_length(original), Cow::Borrowed(&**prefix)),
            PathRewrite::Regex(substitution) => {
                let bare = without_query(original);
                (bare.len(), Cow::Owned(substitution.replace_all(bare)))
            }
        };
        let rest = original.get(length..).unwrap_or_default();
        [&replacement, rest].concat()
    }
}

/// How the authority is rewritten.
#[derive(Debug, Clone, Default)]
pub enum HostRewrite {
    /// Not at all.
    #[default]
    None,
    /// To this.
    Literal(Bytes),
    /// To this header's first value, if it has one.
    Header(HeaderKey),
    /// To the path without its query, with every match replaced.
    PathRegex(Box<Substitution>),
    /// To the chosen host's name; only the data path can do this.
    Auto,
}

impl HostRewrite {
    /// The new authority; `None` = unchanged.
    pub fn apply<'a, R: RequestView>(&'a self, request: &'a R) -> Option<Cow<'a, [u8]>> {
        let host: Cow<'a, [u8]> = match self {
            HostRewrite::None | HostRewrite::Auto => return None,
            HostRewrite::Literal(host) => Cow::Borrowed(host),
            HostRewrite::Header(key) => Cow::Borrowed(request.first(key)?),
            HostRewrite::PathRegex(substitution) => {
                Cow::Owned(substitution.replace_all(without_query(request.path())))
            }
        };
        (!host.is_empty()).then_some(host)
    }
}
