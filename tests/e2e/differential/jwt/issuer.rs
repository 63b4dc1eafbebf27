//! An issuer of tokens like those of real OIDC providers: its keys, its key set, tokens made to measure.

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _};
use base64::prelude::{Engine as _, BASE64_URL_SAFE_NO_PAD as BASE64};
use serde_json::{json, Value};

pub struct Issuer {
    rsa: RsaKeyPair,
    p256: EcdsaKeyPair,
    p384: EcdsaKeyPair,
    p521: EcdsaKeyPair,
    ed25519: Ed25519KeyPair,
    secret: Vec<u8>,
}

pub fn encoded(bytes: impl AsRef<[u8]>) -> String {
    BASE64.encode(bytes)
}

/// The two numbers of an RSA key in DER (SEQUENCE of two INTEGERs).
fn rsa_numbers(der: &[u8]) -> (Vec<u8>, Vec<u8>) {
    fn element(bytes: &[u8]) -> (&[u8], &[u8]) {
        let (length, start) = match bytes[1] {
            short @ 0..=0x7f => (usize::from(short), 2),
            long => {
                let count = usize::from(long & 0x7f);
                let length = bytes[2..2 + count].iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
                (length, 2 + count)
            }
        };
        (&bytes[start..start + length], &bytes[start + length..])
    }
    let bare = |number: &[u8]| number.iter().copied().skip_while(|byte| *byte == 0).collect();
    let (sequence, _) = element(der);
    let (n, rest) = element(sequence);
    let (e, _) = element(rest);
    (bare(n), bare(e))
}

impl Issuer {
    pub fn new() -> Issuer {
        let ec = |algorithm| EcdsaKeyPair::generate(algorithm).expect("a key");
        Issuer {
            rsa: RsaKeyPair::generate(KeySize::Rsa2048).expect("a key"),
            p256: ec(&signature::ECDSA_P256_SHA256_FIXED_SIGNING),
            p384: ec(&signature::ECDSA_P384_SHA384_FIXED_SIGNING),
            p521: ec(&signature::ECDSA_P521_SHA512_FIXED_SIGNING),
            ed25519: Ed25519KeyPair::generate().expect("a key"),
            secret: b"a secret of thirty-two bytes ....".to_vec(),
        }
    }

    /// Its key set, with what real ones have besides (`use`, `x5t`).
    pub fn keys(&self) -> Value {
        let (n, e) = rsa_numbers(self.rsa.public_key().as_ref());
        let ec = |pair: &EcdsaKeyPair, crv: &str, kid: &str| {
            let point = &pair.public_key().as_ref()[1..];
            let (x, y) = point.split_at(point.len() / 2);
            json!({ "kty": "EC", "crv": crv, "kid": kid, "x": encoded(x), "y": encoded(y), "use": "sig" })
        };
        json!({ "keys": [
            { "kty": "RSA", "kid": "rsa", "use": "sig", "x5t": "abc", "n": encoded(n), "e": encoded(e) },
            ec(&self.p256, "P-256", "p256"),
            ec(&self.p384, "P-384", "p384"),
            ec(&self.p521, "P-521", "p521"),
            { "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "kid": "ed", "x": encoded(self.ed25519.public_key()) },
            { "kty": "oct", "kid": "secret", "k": encoded(&self.secret) },
        ] })
    }

    /// A token with this header and these claims, signed as `alg` says.
    pub fn signed(&self, alg: &str, header: &Value, claims: &Value) -> String {
        self.signed_text(alg, &header.to_string(), &claims.to_string())
    }

    pub fn signed_text(&self, alg: &str, header: &str, claims: &str) -> String {
        let text = format!("{}.{}", encoded(header), encoded(claims));
        let random = SystemRandom::new();
        let rsa = |padding: &'static dyn signature::RsaEncoding| {
            let mut out = vec![0; self.rsa.public_modulus_len()];
            self.rsa.sign(padding, &random, text.as_bytes(), &mut out).expect("a signature");
            out
        };
        let ec =
            |pair: &EcdsaKeyPair| pair.sign(&random, text.as_bytes()).expect("a signature").as_ref().to_vec();
        let mac = |algorithm| {
            hmac::sign(&hmac::Key::new(algorithm, &self.secret), text.as_bytes()).as_ref().to_vec()
        };
        let signature = match alg {
            "RS256" => rsa(&signature::RSA_PKCS1_SHA256),
            "RS384" => rsa(&signature::RSA_PKCS1_SHA384),
            "RS512" => rsa(&signature::RSA_PKCS1_SHA512),
            "PS256" => rsa(&signature::RSA_PSS_SHA256),
            "PS384" => rsa(&signature::RSA_PSS_SHA384),
            "PS512" => rsa(&signature::RSA_PSS_SHA512),
            "ES256" => ec(&self.p256),
            "ES384" => ec(&self.p384),
            "ES512" => ec(&self.p521),
            "EdDSA" => self.ed25519.sign(text.as_bytes()).as_ref().to_vec(),
            "HS256" => mac(hmac::HMAC_SHA256),
            "HS384" => mac(hmac::HMAC_SHA384),
            "HS512" => mac(hmac::HMAC_SHA512),
            // RS256's signature under another name.
            _ => rsa(&signature::RSA_PKCS1_SHA256),
        };
        format!("{text}.{}", encoded(signature))
    }

    /// A token signed with RS256.
    pub fn token(&self, claims: &Value) -> String {
        self.signed("RS256", &json!({ "alg": "RS256", "typ": "JWT", "kid": "rsa" }), claims)
    }
}
