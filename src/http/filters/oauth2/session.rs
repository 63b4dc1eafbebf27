//! The cookies that stand for a login: their names and attributes, what signs them, and how tokens are hidden in them.
//!
//! They are Envoy's byte for byte: those that it has set are taken, and the other way round.

use aws_lc_rs::cipher::{
    DecryptionContext, PaddedBlockDecryptingKey, PaddedBlockEncryptingKey, UnboundCipherKey, AES_256,
};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{digest, SHA256};
use aws_lc_rs::hmac;
use aws_lc_rs::iv::FixedLength;
use base64::prelude::{Engine as _, BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};

use crate::config::token::is_field_value;
use crate::config::Known;
use crate::http::cookies;
use crate::http::fields::Fields;
use crate::http::head::RequestHead;

/// A cookie's name and attributes.
#[derive(Debug)]
pub struct Cookie {
    /// Its name.
    pub name: Box<str>,
    /// Its path.
    pub path: Box<str>,
    /// `;SameSite=...`, and what follows that.
    pub tail: Box<str>,
}

/// All cookies of a filter.
#[derive(Debug)]
#[allow(missing_docs)] // Each is that of its name.
pub struct Cookies {
    pub access: Cookie,
    pub id: Cookie,
    pub refresh: Cookie,
    pub hmac: Cookie,
    pub expires: Cookie,
    pub nonce: Cookie,
    pub verifier: Cookie,
    /// The domain that they are for; empty = the host's.
    pub domain: Box<str>,
}

/// What a login's cookies hold.
#[derive(Default)]
pub struct Tokens {
    /// The access token.
    pub access: Vec<u8>,
    /// The id token.
    pub id: Vec<u8>,
    /// The refresh token.
    pub refresh: Vec<u8>,
    /// Until when it is good, in seconds since 1970.
    pub expires: Vec<u8>,
    /// What signs all of it.
    pub hmac: Vec<u8>,
}

const GONE: &str = "expires=Thu, 01 Jan 1970 00:00:00 GMT";
const IV: usize = 16;

impl Tokens {
    fn mac(&self, secret: &[u8], domain: &[u8]) -> Vec<u8> {
        let payload = [domain, &self.expires, &self.access, &self.id, &self.refresh].join(&b'\n');
        mac(secret, &payload)
    }

    /// Signs them for `domain`.
    pub fn sign(&mut self, secret: &[u8], domain: &[u8]) {
        self.hmac = BASE64_STANDARD.encode(self.mac(secret, domain)).into_bytes();
    }

    /// Whether they are signed for `domain`, and good at `now`.
    pub fn are_valid(&self, secret: &[u8], domain: &[u8], now: u64) -> bool {
        let mac = self.mac(secret, domain);
        let mut hex = Vec::with_capacity(mac.len() * 2);
        for byte in &mac {
            hex.extend(format!("{byte:02x}").bytes());
        }
        // As older ones had it.
        let known = [BASE64_STANDARD.encode(mac), BASE64_STANDARD.encode(hex)];
        let signed = known.iter().any(|known| same(known.as_bytes(), &self.hmac));
        let until = std::str::from_utf8(&self.expires).ok().and_then(|text| text.parse::<u64>().ok());
        signed && until.is_some_and(|until| until > now)
    }
}

fn mac(secret: &[u8], message: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message).as_ref().to_vec()
}

fn same(one: &[u8], other: &[u8]) -> bool {
    verify_slices_are_equal(one, other).is_ok()
}

/// A token that only who knows `secret` can have made of `random`.
pub fn csrf_token(secret: &[u8], random: &str) -> String {
    format!("{random}.{}", BASE64_STANDARD.encode(mac(secret, random.as_bytes())))
}

/// Whether it is such a token.
pub fn is_csrf_token(secret: &[u8], token: &[u8]) -> bool {
    let text = std::str::from_utf8(token).ok();
    let random = text.and_then(|text| text.split_once('.')).map(|(random, _)| random);
    random.is_some_and(|random| same(csrf_token(secret, random).as_bytes(), token))
}

/// Hides `text` behind `secret`.
pub fn encrypt(text: &[u8], secret: &[u8]) -> Option<String> {
    let key = UnboundCipherKey::new(&AES_256, digest(&SHA256, secret).as_ref()).ok()?;
    let key = PaddedBlockEncryptingKey::cbc_pkcs7(key).ok()?;
    let mut hidden = text.to_vec();
    let context = key.encrypt(&mut hidden).ok()?;
    let DecryptionContext::Iv128(iv) = context else { return None };
    Some(BASE64_URL_SAFE_NO_PAD.encode([&iv.as_ref()[..], &hidden].concat()))
}

/// What [`encrypt`] has hidden.
///
/// # Errors
/// Why it cannot be found.
pub fn decrypt(hidden: &[u8], secret: &[u8]) -> Result<Vec<u8>, &'static str> {
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(hidden).unwrap_or_default();
    let Some((iv, text)) = bytes.split_first_chunk::<IV>().filter(|(_, text)| !text.is_empty()) else {
        return Err("Invalid encrypted data");
    };
    let opened = || {
        let key = UnboundCipherKey::new(&AES_256, digest(&SHA256, secret).as_ref()).ok()?;
        let key = PaddedBlockDecryptingKey::cbc_pkcs7(key).ok()?;
        let mut text = text.to_vec();
        let context = DecryptionContext::Iv128(FixedLength::from(*iv));
        let length = key.decrypt(&mut text, context).ok()?.len();
        text.truncate(length);
        Some(text)
    };
    opened().ok_or("failed to finalize decryption")
}

/// How long a token that says it lives from `now`, in seconds; `None` if it does not say.
pub fn lifetime(token: &[u8], now: u64) -> Option<u64> {
    let mut parts = token.split(|byte| *byte == b'.');
    let (Some(head), Some(claims), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return None;
    };
    let json = |part: &[u8]| -> Option<serde_json::Value> {
        serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(part).ok()?).ok()
    };
    json(head)?.is_object().then_some(())?;
    let expires = json(claims)?.get("exp")?.as_u64().filter(|expires| *expires != 0)?;
    Some(expires.saturating_sub(now))
}

/// The value of a flow's cookie: that of the flow `flow`, or of the last one.
pub fn of_flow(request: &RequestHead, name: &str, flow: &str) -> Option<Vec<u8>> {
    let value = |wanted: &[u8]| {
        let found = cookies::of(request).find(|(name, _)| *name == wanted);
        found.map(|(_, value)| value.to_vec()).filter(|value| !value.is_empty())
    };
    value(format!("{name}.{flow}").as_bytes()).or_else(|| value(name.as_bytes()))
}

/// Whether `name` is that of a cookie of any flow.
fn is_of_flow(name: &[u8], base: &str) -> bool {
    let rest = name.strip_prefix(base.as_bytes());
    rest.is_some_and(|rest| rest.is_empty() || rest.first() == Some(&b'.'))
}

/// The request's cookies; of several with one name the first.
fn each(request: &RequestHead) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut all: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    for (name, value) in cookies::of(request) {
        if !all.iter().any(|(known, _)| known == name) {
            all.push((name.to_vec(), value.to_vec()));
        }
    }
    all
}

impl Cookies {
    /// What the request's cookies say.
    pub fn tokens(&self, request: &RequestHead) -> Tokens {
        let value = |cookie: &Cookie| {
            let found = cookies::of(request).find(|(name, _)| *name == cookie.name.as_bytes());
            found.map(|(_, value)| value.to_vec()).unwrap_or_default()
        };
        Tokens {
            access: value(&self.access),
            id: value(&self.id),
            refresh: value(&self.refresh),
            expires: value(&self.expires),
            hmac: value(&self.hmac),
        }
    }

    /// Writes tokens in place of what hides them. One that cannot be found stays as it is: it may never have been hidden.
    pub fn decrypt(&self, request: &mut RequestHead, secret: &[u8]) {
        let names = [&self.access, &self.id, &self.refresh].map(|cookie| cookie.name.as_bytes());
        if !cookies::of(request).any(|(name, value)| names.contains(&name) && !value.is_empty()) {
            return;
        }
        let mut all = each(request);
        for (_, value) in all.iter_mut().filter(|(name, _)| names.contains(&&**name)) {
            if let Some(text) = decrypt(value, secret).ok().filter(|text| is_field_value(text)) {
                *value = text;
            }
        }
        cookies::write(request, all.iter().map(|(name, value)| (&**name, &**value)));
    }

    /// The request shows new tokens to the upstream.
    pub fn renew(&self, request: &mut RequestHead, tokens: &Tokens) {
        let mut all = each(request);
        for (cookie, value) in [(&self.access, &tokens.access), (&self.id, &tokens.id)] {
            let known = all.iter_mut().find(|(name, _)| **name == *cookie.name.as_bytes());
            match known {
                _ if value.is_empty() => {}
                Some((_, old)) => old.clone_from(value),
                None => all.push((cookie.name.as_bytes().to_vec(), value.clone())),
            }
        }
        cookies::write(request, all.iter().map(|(name, value)| (&**name, &**value)));
    }

    /// Takes what only this filter needs out of the request.
    pub fn hide_flow(&self, request: &mut RequestHead) {
        let own = [&self.hmac, &self.expires, &self.refresh].map(|cookie| cookie.name.as_bytes());
        self.hide(request, |name| {
            own.contains(&name) || is_of_flow(name, &self.nonce.name) || is_of_flow(name, &self.verifier.name)
        });
    }

    /// Takes everything about a login out of the request.
    pub fn hide_all(&self, request: &mut RequestHead) {
        let tokens = [&self.access, &self.id].map(|cookie| cookie.name.as_bytes());
        self.hide(request, |name| tokens.contains(&name));
        self.hide_flow(request);
    }

    fn hide(&self, request: &mut RequestHead, hides: impl Fn(&[u8]) -> bool) {
        if !request.fields.has(Known::Cookie) {
            return;
        }
        cookies::retain(request, |name| !hides(name));
        if !request.fields.has(Known::Cookie) {
            // As in Envoy an empty header is left.
            request.fields.push_known(Known::Cookie, b"");
        }
    }

    fn domain(&self) -> String {
        if self.domain.is_empty() {
            String::new()
        } else {
            format!(";domain={}", self.domain)
        }
    }

    /// Sets `cookie`, called `name`, for `age` seconds.
    pub fn set(&self, fields: &mut Fields, cookie: &Cookie, name: &str, value: &[u8], age: u64) {
        let (domain, path, tail) = (self.domain(), &cookie.path, &cookie.tail);
        let tail = format!("{domain};path={path};Max-Age={age};secure;HttpOnly{tail}");
        fields.push(b"set-cookie", &[name.as_bytes(), b"=", value, tail.as_bytes()].concat());
    }

    fn delete(&self, fields: &mut Fields, cookie: &Cookie, name: &str, secure: bool) {
        let special = name.starts_with("__Secure-") || name.starts_with("__Host-");
        let secure = if secure && special { "; Secure" } else { "" };
        let (domain, path) = (self.domain(), &cookie.path);
        fields.push(b"set-cookie", format!("{name}=deleted; path={path}; {GONE}{domain}{secure}").as_bytes());
    }

    /// The cookies of the flow `flow` are gone.
    pub fn end_flow(&self, fields: &mut Fields, flow: &str) {
        for cookie in [&self.nonce, &self.verifier] {
            if !flow.is_empty() {
                self.delete(fields, cookie, &format!("{}.{flow}", cookie.name), true);
            }
            self.delete(fields, cookie, &cookie.name, true);
        }
    }

    /// All cookies are gone.
    pub fn sign_out(&self, fields: &mut Fields, request: &RequestHead) {
        for cookie in [&self.hmac, &self.access, &self.id, &self.refresh, &self.expires] {
            self.delete(fields, cookie, &cookie.name, true);
        }
        for (name, _) in cookies::of(request) {
            for cookie in [&self.nonce, &self.verifier] {
                if is_of_flow(name, &cookie.name) {
                    self.delete(fields, cookie, &String::from_utf8_lossy(name), true);
                }
            }
        }
    }

    /// Somebody is logged in: these cookies say so, for so many seconds (access, id and refresh token). `secret` hides
    /// tokens.
    pub fn login(
        &self,
        request: &RequestHead,
        tokens: &Tokens,
        [access, id, refresh]: [u64; 3],
        secret: Option<&[u8]>,
    ) -> Fields {
        let mut fields = Fields::default();
        self.set(&mut fields, &self.hmac, &self.hmac.name, &tokens.hmac, access);
        self.set(&mut fields, &self.expires, &self.expires.name, &tokens.expires, access);
        for (cookie, token, age) in [
            (&self.access, &tokens.access, access),
            (&self.id, &tokens.id, id),
            (&self.refresh, &tokens.refresh, refresh),
        ] {
            if !token.is_empty() {
                let hidden = secret.and_then(|secret| encrypt(token, secret)).map(String::into_bytes);
                self.set(&mut fields, cookie, &cookie.name, hidden.as_ref().unwrap_or(token), age);
            } else if cookies::of(request).any(|(name, _)| name == cookie.name.as_bytes()) {
                self.delete(&mut fields, cookie, &cookie.name, false);
            }
        }
        fields
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_hidden_is_found_with_the_same_secret_only() {
        let hidden = encrypt(b"a token", b"secret").unwrap();
        assert_eq!(decrypt(hidden.as_bytes(), b"secret").unwrap(), b"a token");
        assert_ne!(decrypt(hidden.as_bytes(), b"another").unwrap_or_default(), b"a token");
        assert!(decrypt(b"short", b"secret").is_err());
        assert_ne!(hidden, encrypt(b"a token", b"secret").unwrap(), "each time by another vector");
    }

    #[test]
    fn a_signature_covers_everything() {
        let new = || Tokens {
            access: b"a".to_vec(),
            id: b"i".to_vec(),
            refresh: b"r".to_vec(),
            expires: b"100".to_vec(),
            hmac: Vec::new(),
        };
        let mut tokens = new();
        tokens.sign(b"secret", b"a.test");
        assert!(tokens.are_valid(b"secret", b"a.test", 99));
        assert!(!tokens.are_valid(b"secret", b"a.test", 100), "too old");
        assert!(!tokens.are_valid(b"secret", b"b.test", 99), "another host");
        assert!(!tokens.are_valid(b"other", b"a.test", 99), "another secret");
        for change in [|it: &mut Tokens| it.access.push(b'x'), |it: &mut Tokens| it.refresh.clear()] {
            let mut changed = new();
            changed.sign(b"secret", b"a.test");
            change(&mut changed);
            assert!(!changed.are_valid(b"secret", b"a.test", 99));
        }
    }

    #[test]
    fn tokens_against_forgery_are_signed() {
        let token = csrf_token(b"secret", "00ff");
        assert!(is_csrf_token(b"secret", token.as_bytes()));
        assert!(!is_csrf_token(b"other", token.as_bytes()));
        assert!(!is_csrf_token(b"secret", b"00ff"));
    }

    #[test]
    fn tokens_tell_how_long_they_live() {
        let part = |text: &str| BASE64_URL_SAFE_NO_PAD.encode(text);
        let token = format!("{}.{}.x", part(r#"{"alg":"RS256"}"#), part(r#"{"exp":120}"#));
        assert_eq!(lifetime(token.as_bytes(), 100), Some(20));
        assert_eq!(lifetime(token.as_bytes(), 200), Some(0));
        assert_eq!(lifetime(b"opaque", 100), None);
    }
}
