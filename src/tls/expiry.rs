//! When certificates expire: of all contexts in use, for statistics and the admin's `/certs`.
//!
//! In: contexts, as they are made. Out: the certificates that they have now.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::SystemTime;

use tokio_rustls::rustls::pki_types::CertificateDer;

use super::identity::Identity;
use super::peer::Facts;
use super::secret::{Content, Slot};
use super::stats::SslStats;
use super::validation::{Roots, Validation};

/// What a context has.
#[derive(Debug, Default)]
pub struct Held {
    /// Certificates to present.
    pub own: Vec<Arc<Identity>>,
    /// Whom it trusts.
    pub trusted: Vec<Arc<Validation>>,
}

/// A context.
pub(super) trait Context: Send + Sync {
    /// What it has now; nothing of what has not arrived.
    fn held(&self) -> Held;
}

static CONTEXTS: Mutex<Contexts> = Mutex::new(Contexts { list: Vec::new(), sweep_at: 0 });

struct Contexts {
    list: Vec<Weak<dyn Context>>,
    /// Those that are gone are looked for when there are so many: twice as many as lived the last time.
    sweep_at: usize,
}

/// Fewer contexts are not worth a sweep.
const LEAST: usize = 64;

/// Notes a context for as long as it is used.
pub(super) fn register(context: Weak<dyn Context>) {
    let mut contexts = CONTEXTS.lock().unwrap_or_else(PoisonError::into_inner);
    if contexts.list.len() >= contexts.sweep_at {
        contexts.list.retain(|context| context.strong_count() > 0);
        contexts.sweep_at = (contexts.list.len() * 2).max(LEAST);
    }
    contexts.list.push(context);
}

/// What all contexts have.
pub fn held() -> Vec<Held> {
    let contexts: Vec<_> = {
        let known = CONTEXTS.lock().unwrap_or_else(PoisonError::into_inner);
        known.list.iter().filter_map(Weak::upgrade).collect()
    };
    contexts.iter().map(|context| context.held()).collect()
}

/// Whole days until the first certificate of any context expires; 0 if one has, `None` without certificates.
pub fn days_until_first(now: SystemTime) -> Option<u64> {
    let all = held();
    let own = all.iter().flat_map(|held| &held.own).filter_map(|identity| identity.facts().not_after);
    let trusted = all.iter().flat_map(|held| &held.trusted).filter_map(|trusted| trusted.end());
    own.chain(trusted).min().map(|end| days_between(now, end))
}

/// Whole days from `now` to `end`; 0 if that is past.
pub fn days_between(now: SystemTime, end: SystemTime) -> u64 {
    const DAY: u64 = 24 * 60 * 60;
    end.duration_since(now).map_or(0, |left| left.as_secs() / DAY)
}

/// What slots hold.
pub(super) fn of_slots<'s>(slots: impl Iterator<Item = &'s Arc<Slot>>, fixed: Option<&Validation>) -> Held {
    let mut held = Held::default();
    for slot in slots {
        match slot.load().as_ref().map(|secret| &secret.content) {
            Some(Content::Certificate(identity)) => held.own.push(identity.clone()),
            Some(Content::Validation(validation)) => held.trusted.push(validation.clone()),
            Some(Content::TicketKeys(_) | Content::Generic(_)) | None => {}
        }
    }
    // Most say only which names will do, and have no certificates.
    held.trusted.extend(fixed.filter(|fixed| fixed.is_rooted()).map(|fixed| Arc::new(fixed.clone())));
    held
}

/// Brings the gauges of a context's certificates up to date: `certificate.<name>.expiration_unix_time_seconds`.
pub(super) fn count<'s>(slots: impl Iterator<Item = &'s Arc<Slot>>, stats: &SslStats) {
    for slot in slots {
        let (kind, end) = match slot.load().as_ref().map(|secret| &secret.content) {
            Some(Content::Certificate(identity)) => ("unnamed_cert", identity.facts().not_after),
            // Those of trust domains are counted one by one, as by Envoy.
            Some(Content::Validation(validation)) if validation.domains.is_some() => {
                let ends = validation.trusted().map(|(_, certificate)| Facts::of(certificate).not_after);
                let name = if slot.secret_name().is_empty() { "unnamed_ca_cert" } else { slot.secret_name() };
                for (index, end) in ends.enumerate() {
                    stats.expires(&format!("{name}_{index}"), end);
                }
                continue;
            }
            Some(Content::Validation(validation)) => ("unnamed_ca_cert", validation.end()),
            Some(Content::TicketKeys(_) | Content::Generic(_)) | None => continue,
        };
        match slot.secret_name() {
            "" => stats.expires(&format!("{kind}_{NAMELESS}"), end),
            name => stats.expires(name, end),
        }
    }
}

/// What Envoy has for a certificate without a name: the beginning of the hash of nothing.
const NAMELESS: &str = "e3b0c442";

impl Validation {
    /// The certificates that are trusted, but for the system's, each with where it is from.
    pub fn trusted(&self) -> impl Iterator<Item = (String, &CertificateDer<'static>)> {
        let own = self.roots.iter().filter(|_| self.domains.is_none());
        let own = own.map(|roots| (self.path.to_string(), roots));
        let bundles = self.domains.iter().flat_map(|domains| domains.bundles());
        let of_domains =
            bundles.map(|(domain, bundle)| (format!("{domain}: {}", bundle.path), &bundle.roots));
        own.chain(of_domains).flat_map(|(path, roots)| {
            roots.certificates().iter().map(move |certificate| (path.clone(), certificate))
        })
    }

    /// When the first of them expires.
    pub fn end(&self) -> Option<SystemTime> {
        self.all_roots().filter_map(|roots| roots.end()).min()
    }

    fn all_roots(&self) -> impl Iterator<Item = &Arc<Roots>> {
        let bundles = self.domains.iter().flat_map(|domains| domains.bundles().values());
        self.roots.iter().filter(|_| self.domains.is_none()).chain(bundles.map(|bundle| &bundle.roots))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn days_are_whole() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let day = Duration::from_secs(24 * 60 * 60);
        for (left, days) in [(day * 3, 3), (day * 3 - Duration::from_secs(1), 2), (Duration::ZERO, 0)] {
            assert_eq!(days_between(now, now + left), days);
        }
        assert_eq!(days_between(now, now - day), 0);
    }
}
