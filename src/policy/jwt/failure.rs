//! Why a token is not accepted, in Envoy's words and with Envoy's numbers.

macro_rules! failures {
    ($($number:literal $name:ident $text:literal),* $(,)?) => {
        /// Why a token is not accepted.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[allow(missing_docs)] // Their texts say it.
        pub enum Failure { $($name),* }

        impl Failure {
            /// What the client is told.
            pub fn text(self) -> &'static str {
                match self { $(Failure::$name => $text),* }
            }

            /// Its number in metadata.
            pub fn number(self) -> u32 {
                match self { $(Failure::$name => $number),* }
            }

            /// `RESPONSE_CODE_DETAILS`.
            pub fn details(self) -> String {
                details(self.text())
            }
        }
    };
}

failures! {
    1 Missing "Jwt is missing",
    2 NotYetValid "Jwt not yet valid",
    3 Expired "Jwt is expired",
    4 Format "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections",
    5 HeaderBase64 "Jwt header is an invalid Base64url encoded",
    6 HeaderJson "Jwt header is an invalid JSON",
    7 Algorithm "Jwt header [alg] field is required and must be a string",
    8 UnknownAlgorithm "Jwt header [alg] is not supported",
    9 KeyId "Jwt header [kid] field is not a string",
    10 PayloadBase64 "Jwt payload is an invalid Base64url encoded",
    11 PayloadJson "Jwt payload is an invalid JSON",
    12 Issuer "Jwt payload [iss] field is not a string",
    13 Subject "Jwt payload [sub] field is not a string",
    14 IssuedAt "Jwt payload [iat] field is not an integer",
    15 IssuedAtRange "Jwt payload [iat] field is not a positive 64 bit integer",
    16 NotBefore "Jwt payload [nbf] field is not an integer",
    17 NotBeforeRange "Jwt payload [nbf] field is not a positive 64 bit integer",
    18 Expiry "Jwt payload [exp] field is not an integer",
    19 ExpiryRange "Jwt payload [exp] field is not a positive 64 bit integer",
    20 TokenId "Jwt payload [jti] field is not a string",
    21 Audience "Jwt payload [aud] field is not a string or string list",
    22 SignatureBase64 "Jwt signature is an invalid Base64url encoded",
    23 Ed25519Length "Jwt ED25519 signature is wrong length",
    24 UnknownIssuer "Jwt issuer is not configured",
    25 AudienceNotAllowed "Audiences in Jwt are not allowed",
    26 Verification "Jwt verification fails",
    32 NoKeyMatches "Jwks doesn't have key to match kid or alg from Jwt",
    40 FetchFailed "Jwks remote fetch is failed",
}

/// What access logs say of a denial: white space would break their fields.
pub fn details(text: &str) -> String {
    format!("jwt_authn_access_denied{{{}}}", text.replace(|one: char| one.is_ascii_whitespace(), "_"))
}
