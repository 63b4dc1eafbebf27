//! Resumption: the tickets that we give to clients, and the sessions that we keep with servers.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::aead::{Aad, LessSafeKey, Nonce, UnboundKey, AES_256_GCM, NONCE_LEN};
use aws_lc_rs::digest::{digest, SHA256};
use aws_lc_rs::rand;
use tokio_rustls::rustls;

use rustls::client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::crypto::GetRandomFailed;
use rustls::pki_types::ServerName;
use rustls::server::ProducesTickets;
use rustls::ticketer::TicketRotator;
use rustls::NamedGroup;

/// Length of a configured ticket key (`TlsSessionTicketKeys`): a name and two keys.
pub const TICKET_KEY: usize = 80;
const NAME: usize = 16;
/// How long a ticket is honoured unless config says otherwise, in seconds.
const LIFETIME: u32 = 7200;
/// The longest that a ticket may be honoured, in seconds (RFC 8446 section 4.6.1).
const LONGEST: u32 = 604_800;

/// Keys of session tickets: the first encrypts, all decrypt.
pub struct TicketKeys(Vec<TicketKey>);

struct TicketKey {
    name: [u8; NAME],
    key: LessSafeKey,
}

/// Never shows a key.
impl std::fmt::Debug for TicketKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ticket keys", self.0.len())
    }
}

impl TicketKeys {
    /// From keys of [`TICKET_KEY`] bytes.
    ///
    /// # Errors
    /// The index of a key and what is wrong with it.
    pub fn new<'k>(keys: impl IntoIterator<Item = &'k [u8]>) -> Result<Self, (usize, String)> {
        let mut made = Vec::new();
        for (index, bytes) in keys.into_iter().enumerate() {
            let name = bytes.get(..NAME).and_then(|name| name.try_into().ok());
            let (Some(name), TICKET_KEY) = (name, bytes.len()) else {
                return Err((index, format!("has {} bytes, must have {TICKET_KEY}", bytes.len())));
            };
            // Our tickets need one key; all that was given goes into it.
            let secret = digest(&SHA256, bytes.get(NAME..).unwrap_or_default());
            let key = UnboundKey::new(&AES_256_GCM, secret.as_ref())
                .map_err(|_| (index, "cannot be used".to_owned()))?;
            made.push(TicketKey { name, key: LessSafeKey::new(key) });
        }
        Ok(Self(made))
    }
}

/// Gives out tickets.
#[derive(Debug)]
pub struct Ticketer {
    keys: std::sync::Arc<TicketKeys>,
    lifetime: u32,
    /// Told apart by it: tickets of other trust must not be honoured.
    context: [u8; 32],
}

impl Ticketer {
    /// With these keys, for clients of a context that `context` stands for.
    pub fn new(keys: std::sync::Arc<TicketKeys>, lifetime: Option<Duration>, context: [u8; 32]) -> Self {
        let lifetime = lifetime.map_or(LIFETIME, |time| u32::try_from(time.as_secs()).unwrap_or(u32::MAX));
        Self { keys, lifetime: lifetime.min(LONGEST), context }
    }
}

impl ProducesTickets for Ticketer {
    fn enabled(&self) -> bool {
        !self.keys.0.is_empty()
    }

    fn lifetime(&self) -> u32 {
        self.lifetime
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let key = self.keys.0.first()?;
        let mut nonce = [0u8; NONCE_LEN];
        rand::fill(&mut nonce).ok()?;
        let mut sealed = plain.to_vec();
        let aad = Aad::from(self.context);
        key.key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut sealed).ok()?;
        Some([key.name.as_slice(), &nonce, &sealed].concat())
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        let name = cipher.get(..NAME)?;
        let nonce: [u8; NONCE_LEN] = cipher.get(NAME..NAME + NONCE_LEN)?.try_into().ok()?;
        let key = self.keys.0.iter().find(|key| key.name == name)?;
        let mut sealed = cipher.get(NAME + NONCE_LEN..)?.to_vec();
        let nonce = Nonce::assume_unique_for_key(nonce);
        let length = key.key.open_in_place(nonce, Aad::from(self.context), &mut sealed).ok()?.len();
        sealed.truncate(length);
        Some(sealed)
    }
}

/// Tickets of keys that nobody else knows and that change with time: one is honoured for `lifetime`, 2 h unless given.
///
/// # Errors
/// There are no random numbers to be had.
pub fn random_tickets(lifetime: Option<Duration>) -> Result<TicketRotator, rustls::Error> {
    let lifetime = lifetime.map_or(LIFETIME, |time| u32::try_from(time.as_secs()).unwrap_or(u32::MAX));
    // A key makes tickets for half of the time, and reads them for the other half too.
    TicketRotator::new(lifetime.clamp(2, LONGEST) / 2, || {
        let mut key = [0u8; TICKET_KEY];
        rand::fill(&mut key).map_err(|_| GetRandomFailed)?;
        let keys = TicketKeys::new([key.as_slice()]).map_err(|_| GetRandomFailed)?;
        Ok(Box::new(Ticketer::new(std::sync::Arc::new(keys), None, [0; 32])))
    })
}

/// The sessions that a worker keeps with one host: at most `max_session_keys` of them, the latest.
#[derive(Debug)]
pub struct HostSessions {
    most: usize,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    hint: Option<(ServerName<'static>, NamedGroup)>,
    tls12: Option<(ServerName<'static>, Tls12ClientSessionValue)>,
    tls13: Vec<(ServerName<'static>, Tls13ClientSessionValue)>,
}

impl HostSessions {
    /// Room for `most` sessions.
    pub fn new(most: usize) -> Self {
        Self { most, kept: Mutex::default() }
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientSessionStore for HostSessions {
    fn set_kx_hint(&self, server_name: ServerName<'static>, group: NamedGroup) {
        self.kept().hint = Some((server_name, group));
    }

    fn kx_hint(&self, server_name: &ServerName<'_>) -> Option<NamedGroup> {
        let kept = self.kept();
        kept.hint.as_ref().filter(|(name, _)| name == server_name).map(|(_, group)| *group)
    }

    fn set_tls12_session(&self, server_name: ServerName<'static>, value: Tls12ClientSessionValue) {
        if self.most > 0 {
            self.kept().tls12 = Some((server_name, value));
        }
    }

    fn tls12_session(&self, server_name: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        let kept = self.kept();
        kept.tls12.as_ref().filter(|(name, _)| name == server_name).map(|(_, session)| session.clone())
    }

    fn remove_tls12_session(&self, _server_name: &ServerName<'static>) {
        self.kept().tls12 = None;
    }

    fn insert_tls13_ticket(&self, server_name: ServerName<'static>, value: Tls13ClientSessionValue) {
        if self.most == 0 {
            return;
        }
        let mut kept = self.kept();
        if kept.tls13.len() >= self.most {
            kept.tls13.remove(0);
        }
        kept.tls13.push((server_name, value));
    }

    fn take_tls13_ticket(&self, server_name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        let mut kept = self.kept();
        let at = kept.tls13.iter().rposition(|(name, _)| name == server_name)?;
        Some(kept.tls13.remove(at).1)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn keys(first: &[u8]) -> Arc<TicketKeys> {
        let keys: Vec<Vec<u8>> = first.iter().map(|byte| vec![*byte; TICKET_KEY]).collect();
        Arc::new(TicketKeys::new(keys.iter().map(Vec::as_slice)).unwrap())
    }

    #[test]
    fn tickets_live_as_long_as_is_said() {
        let lives = |time: Option<u64>| random_tickets(time.map(Duration::from_secs)).unwrap().lifetime();
        assert_eq!(
            [lives(None), lives(Some(100)), lives(Some(0)), lives(Some(u64::MAX))],
            [7200, 100, 2, LONGEST]
        );
        let tickets = random_tickets(None).unwrap();
        let ticket = tickets.encrypt(b"session").unwrap();
        assert_eq!(tickets.decrypt(&ticket).as_deref(), Some(&b"session"[..]));
        assert_eq!(random_tickets(None).unwrap().decrypt(&ticket), None);
    }

    #[test]
    fn a_ticket_is_read_by_who_has_its_key_and_trusts_alike() {
        let old = Ticketer::new(keys(&[1]), None, [0; 32]);
        let rotated = Ticketer::new(keys(&[2, 1]), None, [0; 32]);
        let stranger = Ticketer::new(keys(&[3]), None, [0; 32]);
        let other_trust = Ticketer::new(keys(&[1]), None, [9; 32]);
        let ticket = old.encrypt(b"session").unwrap();
        assert_eq!(rotated.decrypt(&ticket).as_deref(), Some(&b"session"[..]));
        assert_eq!(stranger.decrypt(&ticket), None);
        assert_eq!(other_trust.decrypt(&ticket), None);
        let mut forged = ticket.clone();
        *forged.last_mut().unwrap() ^= 1;
        assert_eq!(old.decrypt(&forged), None);
        assert_eq!(old.decrypt(&ticket[..20]), None);
    }

    #[test]
    fn keys_have_one_length() {
        let (index, error) = TicketKeys::new([&[0u8; 80][..], &[0; 79]]).unwrap_err();
        assert_eq!(index, 1);
        assert!(error.contains("79"), "{error}");
    }
}
