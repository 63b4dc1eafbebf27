//! Key sets (RFC 7517) and the check of signatures with them (RFC 7518).
//!
//! A key serves the algorithms of its own type and curve only: a token cannot choose another use for it. RSA keys of
//! less than 2048 bits verify nothing.

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{
    self, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm,
};
use base64::Engine as _;
use outrigger_control_api::pb::google::protobuf::{value::Kind, Struct};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::failure::Failure;
use super::token::{object, Algorithm, Token, BASE64};

/// A key set.
#[derive(Debug, Default)]
pub struct KeySet {
    keys: Vec<Key>,
}

struct Key {
    id: Box<str>,
    /// The one algorithm that it may be used for; empty for any of its type.
    algorithm: Box<str>,
    material: Material,
}

enum Material {
    Rsa { modulus: Vec<u8>, exponent: Vec<u8> },
    Ec(Curve, Vec<u8>),
    Secret(Vec<u8>),
    Ed25519(Vec<u8>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Curve {
    P256,
    P384,
    P521,
}

impl std::fmt::Debug for Key {
    /// Some are secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({:?})", self.id)
    }
}

/// Bytes of an Ed25519 signature.
const ED25519_SIGNATURE: usize = 64;
const ED25519_KEY: usize = 32;

impl KeySet {
    /// Reads a JWKS, or an object of certificates by the names of their keys. Keys that cannot be used are left out.
    /// `None` without any that can.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let set = object(text)?;
        let keys: Vec<Key> = match set.fields.get("keys").map(|keys| &keys.kind) {
            Some(Some(Kind::ListValue(list))) => list
                .values
                .iter()
                .filter_map(|key| match &key.kind {
                    Some(Kind::StructValue(key)) => Key::of(key),
                    _ => None,
                })
                .collect(),
            Some(_) => return None,
            None => {
                let certificates = set.fields.iter().map(|(id, value)| match &value.kind {
                    Some(Kind::StringValue(pem)) => Key::of_certificate(id, pem),
                    _ => None,
                });
                certificates.collect::<Option<_>>()?
            }
        };
        (!keys.is_empty()).then_some(Self { keys })
    }

    /// Checks the signature of a token.
    ///
    /// # Errors
    /// No key fits, or none verifies it.
    pub fn verify(&self, token: &Token) -> Result<(), Failure> {
        let mut fits = false;
        for key in &self.keys {
            if !token.key_id.is_empty() && !key.id.is_empty() && key.id != token.key_id {
                continue;
            }
            if !key.algorithm.is_empty() && key.algorithm != token.algorithm_name {
                continue;
            }
            fits = true;
            if matches!(key.material, Material::Ed25519(_)) && token.signature.len() != ED25519_SIGNATURE {
                return Err(Failure::Ed25519Length);
            }
            if key.material.verifies(token) {
                return Ok(());
            }
        }
        Err(if fits { Failure::Verification } else { Failure::NoKeyMatches })
    }
}

fn text<'k>(key: &'k Struct, name: &str) -> Option<&'k str> {
    match &key.fields.get(name)?.kind {
        Some(Kind::StringValue(text)) => Some(text),
        _ => None,
    }
}

fn bytes(key: &Struct, name: &str) -> Option<Vec<u8>> {
    BASE64.decode(text(key, name)?).ok().filter(|bytes| !bytes.is_empty())
}

/// A number's bytes without zeros before it.
fn number(key: &Struct, name: &str) -> Option<Vec<u8>> {
    let bytes = bytes(key, name)?;
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    bytes.get(zeros..).map(<[u8]>::to_vec).filter(|bytes| !bytes.is_empty())
}

impl Key {
    fn of(key: &Struct) -> Option<Self> {
        let algorithm = text(key, "alg").unwrap_or_default();
        let material = match text(key, "kty")? {
            "RSA" if algorithm.is_empty() || algorithm.starts_with("RS") || algorithm.starts_with("PS") => {
                Material::Rsa { modulus: number(key, "n")?, exponent: number(key, "e")? }
            }
            "EC" => {
                let curve = match (text(key, "crv").unwrap_or_default(), algorithm) {
                    ("P-256", "" | "ES256") | ("", "" | "ES256") => Curve::P256,
                    ("P-384", "" | "ES384") | ("", "ES384") => Curve::P384,
                    ("P-521", "" | "ES512") | ("", "ES512") => Curve::P521,
                    _ => return None,
                };
                let (x, y) = (number(key, "x")?, number(key, "y")?);
                let mut point = vec![4];
                for number in [x, y] {
                    let zeros = curve.bytes().checked_sub(number.len())?;
                    point.extend(std::iter::repeat_n(0, zeros));
                    point.extend(number);
                }
                Material::Ec(curve, point)
            }
            "oct" if matches!(algorithm, "" | "HS256" | "HS384" | "HS512") => {
                Material::Secret(bytes(key, "k")?)
            }
            "OKP" if matches!(algorithm, "" | "EdDSA") && text(key, "crv") == Some("Ed25519") => {
                Material::Ed25519(bytes(key, "x").filter(|key| key.len() == ED25519_KEY)?)
            }
            _ => return None,
        };
        Some(Self { id: text(key, "kid").unwrap_or_default().into(), algorithm: algorithm.into(), material })
    }

    fn of_certificate(id: &str, pem: &str) -> Option<Self> {
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).ok()?;
        let (_, certificate) = X509Certificate::from_der(&pem.contents).ok()?;
        let x509_parser::public_key::PublicKey::RSA(key) = certificate.public_key().parsed().ok()? else {
            return None;
        };
        let bare = |number: &[u8]| number.iter().copied().skip_while(|byte| *byte == 0).collect::<Vec<u8>>();
        let material = Material::Rsa { modulus: bare(key.modulus), exponent: bare(key.exponent) };
        (!id.is_empty()).then(|| Self { id: id.into(), algorithm: "".into(), material })
    }
}

impl Curve {
    /// Bytes of a coordinate.
    fn bytes(self) -> usize {
        match self {
            Curve::P256 => 32,
            Curve::P384 => 48,
            Curve::P521 => 66,
        }
    }
}

impl Material {
    fn verifies(&self, token: &Token) -> bool {
        let (signed, sign) = (&token.signed, &token.signature);
        match self {
            Material::Rsa { modulus, exponent } => {
                let parameters: &'static RsaParameters = match token.algorithm {
                    Algorithm::Rs256 => &signature::RSA_PKCS1_2048_8192_SHA256,
                    Algorithm::Rs384 => &signature::RSA_PKCS1_2048_8192_SHA384,
                    Algorithm::Rs512 => &signature::RSA_PKCS1_2048_8192_SHA512,
                    Algorithm::Ps256 => &signature::RSA_PSS_2048_8192_SHA256,
                    Algorithm::Ps384 => &signature::RSA_PSS_2048_8192_SHA384,
                    Algorithm::Ps512 => &signature::RSA_PSS_2048_8192_SHA512,
                    _ => return false,
                };
                let key = RsaPublicKeyComponents { n: modulus, e: exponent };
                key.verify(parameters, signed, sign).is_ok()
            }
            Material::Ec(curve, point) => {
                let algorithm: &'static dyn VerificationAlgorithm = match (curve, token.algorithm) {
                    (Curve::P256, Algorithm::Es256) => &signature::ECDSA_P256_SHA256_FIXED,
                    (Curve::P384, Algorithm::Es384) => &signature::ECDSA_P384_SHA384_FIXED,
                    (Curve::P521, Algorithm::Es512) => &signature::ECDSA_P521_SHA512_FIXED,
                    _ => return false,
                };
                UnparsedPublicKey::new(algorithm, point).verify(signed, sign).is_ok()
            }
            Material::Secret(secret) => {
                let algorithm = match token.algorithm {
                    Algorithm::Hs256 => hmac::HMAC_SHA256,
                    Algorithm::Hs384 => hmac::HMAC_SHA384,
                    Algorithm::Hs512 => hmac::HMAC_SHA512,
                    _ => return false,
                };
                hmac::verify(&hmac::Key::new(algorithm, secret), signed, sign).is_ok()
            }
            Material::Ed25519(key) => {
                token.algorithm == Algorithm::EdDsa
                    && UnparsedPublicKey::new(&signature::ED25519, key).verify(signed, sign).is_ok()
            }
        }
    }
}
