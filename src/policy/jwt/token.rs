//! A token, read: its header and claims, nothing of it believed yet (RFC 7519, RFC 7515).

use std::collections::HashMap;

use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, Engine as _, GeneralPurpose, GeneralPurposeConfig};
use outrigger_control_api::pb::google::protobuf::{value::Kind, ListValue, Struct, Value};

use super::failure::Failure;

/// Base64url as Envoy reads it: padding or none.
pub(super) const BASE64: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// How a token is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Algorithm {
    Es256,
    Es384,
    Es512,
    Hs256,
    Hs384,
    Hs512,
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    EdDsa,
}

impl Algorithm {
    /// By its name.
    pub fn of(name: &str) -> Option<Self> {
        Some(match name {
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            "ES512" => Self::Es512,
            "HS256" => Self::Hs256,
            "HS384" => Self::Hs384,
            "HS512" => Self::Hs512,
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            "PS256" => Self::Ps256,
            "PS384" => Self::Ps384,
            "PS512" => Self::Ps512,
            "EdDSA" => Self::EdDsa,
            _ => return None,
        })
    }
}

/// A token.
pub struct Token {
    /// What was signed: header, dot, payload, as sent.
    pub(super) signed: Box<[u8]>,
    /// Where the payload begins in that.
    payload_at: usize,
    pub(super) signature: Vec<u8>,
    pub(super) algorithm: Algorithm,
    /// The name of the algorithm.
    pub(super) algorithm_name: Box<str>,
    /// The name of its key; empty if it has none.
    pub(super) key_id: Box<str>,
    /// Its header.
    pub header: Struct,
    /// Its claims.
    pub payload: Struct,
    pub(super) issuer: String,
    pub(super) subject: String,
    pub(super) not_before: u64,
    /// 0 where it never ends.
    pub(super) expiry: u64,
    pub(super) expires: bool,
    pub(super) audiences: Vec<String>,
}

impl std::fmt::Debug for Token {
    /// Of a token nothing is ever written.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

/// What a claim is.
enum Claim<T> {
    Missing,
    Is(T),
    WrongType,
}

fn text<'c>(claims: &'c Struct, name: &str) -> Claim<&'c str> {
    match claims.fields.get(name).map(|value| &value.kind) {
        None => Claim::Missing,
        Some(Some(Kind::StringValue(text))) => Claim::Is(text),
        Some(_) => Claim::WrongType,
    }
}

/// The claim as text, or none; `wrong` if it is anything else.
fn text_or(claims: &Struct, name: &str, wrong: Failure) -> Result<String, Failure> {
    match text(claims, name) {
        Claim::Missing => Ok(String::new()),
        Claim::Is(text) => Ok(text.to_owned()),
        Claim::WrongType => Err(wrong),
    }
}

/// A point in time; 0 where there is none.
fn seconds(claims: &Struct, name: &str, wrong: Failure, range: Failure) -> Result<u64, Failure> {
    match claims.fields.get(name).map(|value| &value.kind) {
        None => Ok(0),
        // 2^63 is the first double beyond.
        Some(Some(Kind::NumberValue(number))) if (0.0..9_223_372_036_854_775_808.0).contains(number) => {
            Ok(*number as u64)
        }
        Some(Some(Kind::NumberValue(_))) => Err(range),
        Some(_) => Err(wrong),
    }
}

fn audiences(claims: &Struct) -> Result<Vec<String>, Failure> {
    match claims.fields.get("aud").map(|value| &value.kind) {
        None => Ok(Vec::new()),
        Some(Some(Kind::StringValue(one))) => Ok(vec![one.clone()]),
        Some(Some(Kind::ListValue(list))) => list
            .values
            .iter()
            .map(|value| match &value.kind {
                Some(Kind::StringValue(one)) => Ok(one.clone()),
                _ => Err(Failure::Audience),
            })
            .collect(),
        Some(_) => Err(Failure::Audience),
    }
}

/// A JSON object; `None` if `text` is none.
pub(crate) fn object(text: &[u8]) -> Option<Struct> {
    match serde_json::from_slice(text).ok()? {
        serde_json::Value::Object(fields) => {
            let fields = fields.into_iter().map(|(name, field)| (name, value(field)));
            Some(Struct { fields: fields.collect::<HashMap<_, _>>().into_iter().collect() })
        }
        _ => None,
    }
}

fn value(json: serde_json::Value) -> Value {
    use serde_json::Value as Json;
    let kind = match json {
        Json::Null => Kind::NullValue(0),
        Json::Bool(value) => Kind::BoolValue(value),
        Json::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Json::String(text) => Kind::StringValue(text),
        Json::Array(list) => Kind::ListValue(ListValue { values: list.into_iter().map(value).collect() }),
        Json::Object(fields) => Kind::StructValue(Struct {
            fields: fields.into_iter().map(|(name, field)| (name, value(field))).collect(),
        }),
    };
    Value { kind: Some(kind) }
}

/// A value as JSON; whole numbers without a fraction.
pub(crate) fn json(kind: &Kind) -> serde_json::Value {
    use serde_json::Value as Json;
    let inner = |value: &Value| value.kind.as_ref().map_or(Json::Null, json);
    match kind {
        Kind::NullValue(_) => Json::Null,
        Kind::BoolValue(value) => Json::Bool(*value),
        // Below 2^53 every whole number is exact.
        Kind::NumberValue(number) if number.fract() == 0.0 && number.abs() < 9_007_199_254_740_992.0 => {
            Json::from(*number as i64)
        }
        Kind::NumberValue(number) => Json::from(*number),
        Kind::StringValue(text) => Json::String(text.clone()),
        Kind::ListValue(list) => Json::Array(list.values.iter().map(inner).collect()),
        Kind::StructValue(fields) => {
            let fields: std::collections::BTreeMap<_, _> = fields.fields.iter().collect();
            Json::Object(fields.into_iter().map(|(name, value)| (name.clone(), inner(value))).collect())
        }
    }
}

impl Token {
    /// Reads a token.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(token: &[u8]) -> Result<Self, Failure> {
        let mut parts = token.split(|byte| *byte == b'.');
        let (Some(header), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Failure::Format);
        };
        if header.is_empty() || payload.is_empty() || signature.is_empty() {
            return Err(Failure::Format);
        }
        let decoded = BASE64.decode(header).map_err(|_| Failure::HeaderBase64)?;
        let claims = object(&decoded).ok_or(Failure::HeaderJson)?;
        let Claim::Is(name) = text(&claims, "alg") else { return Err(Failure::Algorithm) };
        let algorithm_name: Box<str> = name.into();
        let algorithm = Algorithm::of(name).ok_or(Failure::UnknownAlgorithm)?;
        let key_id = text_or(&claims, "kid", Failure::KeyId)?;
        let decoded = BASE64.decode(payload).map_err(|_| Failure::PayloadBase64)?;
        let said = object(&decoded).ok_or(Failure::PayloadJson)?;
        let issuer = text_or(&said, "iss", Failure::Issuer)?;
        let subject = text_or(&said, "sub", Failure::Subject)?;
        seconds(&said, "iat", Failure::IssuedAt, Failure::IssuedAtRange)?;
        let not_before = seconds(&said, "nbf", Failure::NotBefore, Failure::NotBeforeRange)?;
        let expiry = seconds(&said, "exp", Failure::Expiry, Failure::ExpiryRange)?;
        text_or(&said, "jti", Failure::TokenId)?;
        let audiences = audiences(&said)?;
        let signature = BASE64.decode(signature).map_err(|_| Failure::SignatureBase64)?;
        let signed = header.len() + 1 + payload.len();
        Ok(Self {
            signed: token.get(..signed).unwrap_or_default().into(),
            payload_at: header.len() + 1,
            signature,
            algorithm,
            algorithm_name,
            key_id: key_id.into(),
            header: claims,
            expires: said.fields.contains_key("exp"),
            payload: said,
            issuer,
            subject,
            not_before,
            expiry,
            audiences,
        })
    }

    /// The claims as they were sent.
    pub fn payload_text(&self) -> &[u8] {
        self.signed.get(self.payload_at..).unwrap_or_default()
    }

    /// Whether it is valid at `now`, in seconds since 1970, give or take `skew`.
    pub(super) fn check_time(&self, now: u64, skew: u64) -> Result<(), Failure> {
        if now.saturating_add(skew) < self.not_before {
            return Err(Failure::NotYetValid);
        }
        if self.expiry != 0 && now > self.expiry.saturating_add(skew) {
            return Err(Failure::Expired);
        }
        Ok(())
    }
}
