use std::sync::Arc;

use super::*;

const PAYLOAD: &str =
    "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
/// The claims of RFC 7515 appendix A, signed by another implementation.
const HS256: (&str, &str, &str) = (
    "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9",
    "STZt8OQSfAhNcqjGS3pEZG3UASyo3R9FckDK86dlZjM",
    r#"{"keys":[{"kty":"oct","k":"AyM1SysPpbyVfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow"}]}"#,
);
/// RFC 7515 appendix A.3.
const ES256: (&str, &str, &str) = (
    "eyJhbGciOiJFUzI1NiJ9",
    "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
    r#"{"keys":[{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}"#,
);

fn token((header, signature, _): (&str, &str, &str)) -> Token {
    Token::parse(format!("{header}.{PAYLOAD}.{signature}").as_bytes()).expect("a token")
}

fn keys((_, _, keys): (&str, &str, &str)) -> KeySet {
    KeySet::parse(keys.as_bytes()).expect("keys")
}

#[test]
fn examples_verify_with_their_keys_only() {
    for (own, other) in [(HS256, ES256), (ES256, HS256)] {
        assert_eq!(keys(own).verify(&token(own)), Ok(()));
        assert_eq!(keys(other).verify(&token(own)), Err(Failure::Verification), "a key of another type");
        let mut changed = token(own);
        changed.signed[50] ^= 1;
        assert_eq!(keys(own).verify(&changed), Err(Failure::Verification));
    }
}

#[test]
fn a_key_is_used_as_it_says_itself() {
    let fixed = HS256.2.replace(r#""kty":"oct""#, r#""kty":"oct","alg":"HS512""#);
    let fixed = KeySet::parse(fixed.as_bytes()).expect("keys");
    assert_eq!(fixed.verify(&token(HS256)), Err(Failure::NoKeyMatches));
}

#[test]
fn sets_without_a_key_that_can_be_used_are_none() {
    for text in [
        "",
        "[]",
        "{}",
        r#"{"keys":{}}"#,
        r#"{"keys":[]}"#,
        r#"{"keys":[{"kty":"oct"}]}"#,
        r#"{"keys":[{"kty":"EC","crv":"P-256","alg":"ES384","x":"AQ","y":"AQ"}]}"#,
        r#"{"keys":[{"kty":"OKP","crv":"X25519","x":"AQ"}]}"#,
        r#"{"kid":"no certificate"}"#,
    ] {
        assert!(KeySet::parse(text.as_bytes()).is_none(), "{text}");
    }
}

#[test]
fn a_token_tells_nothing_to_who_prints_it() {
    assert_eq!(format!("{:?}", token(HS256)), "Token");
    assert!(!format!("{:?}", keys(HS256)).contains("AyM1"));
}

#[test]
fn the_token_that_was_not_used_for_longest_makes_room() {
    let cache = TokenCache::new(2, 100);
    let read = Arc::new(token(HS256));
    let now = 1_300_000_000;
    cache.put(b"one", &read);
    cache.put(b"two", &read);
    assert!(cache.find(b"one", now).is_some());
    cache.put(b"three", &read);
    assert!(cache.find(b"two", now).is_none());
    assert!(cache.find(b"one", now).is_some() && cache.find(b"three", now).is_some());
    assert!(cache.find(b"one", 1_300_819_381).is_none(), "it is over");
    cache.put(&[b'x'; 101], &read);
    assert!(cache.find(&[b'x'; 101], now).is_none(), "too long");
}

#[test]
fn audiences_are_compared_without_scheme_and_last_slash() {
    let mut token = token(HS256);
    token.audiences = vec!["https://api.test/".to_owned()];
    assert!(Audiences::new(&["api.test".to_owned()]).allow(&token));
    assert!(Audiences::new(&["http://api.test".to_owned()]).allow(&token));
    assert!(!Audiences::new(&["api.test.evil".to_owned()]).allow(&token));
    assert!(Audiences::default().allow(&token));
}
