//! OCSP responses that are stapled to certificates: `ocsp_staple` of `TlsCertificate` (RFC 6960).
//!
//! Comes in: the bytes of a response, as Envoy takes them: successful, basic, for one certificate. Goes out: whom it is
//! for and until when it holds, and what is done with it in a handshake. Signatures are looked at by the client.

use std::time::{Duration, SystemTime};

use super::identity::Identity;

/// What becomes of certificates without a response that holds (`ocsp_staple_policy`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Policy {
    /// They are shown without one.
    #[default]
    Lenient,
    /// They are shown without one unless they have one that has expired.
    Strict,
    /// They are not shown.
    Must,
}

/// What is done in a handshake with a client that asks for a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It is shown.
    Staple,
    /// The certificate is shown alone.
    Omit,
    /// There is no handshake.
    Fail,
}

/// A response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Staple {
    /// As it is sent.
    pub der: Vec<u8>,
    serial: Vec<u8>,
    /// Until when it holds; without that it holds never.
    next_update: Option<SystemTime>,
}

/// Why bytes are no response to staple.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StapleError {
    /// They do not decode.
    #[error("is no OCSP response in DER form")]
    Malformed,
    /// The responder had none.
    #[error("OCSP response was unsuccessful")]
    Unsuccessful,
    /// Its type is another than `id-pkix-ocsp-basic`.
    #[error("is an OCSP response of a type that is not known")]
    Type,
    /// It is for none or for several.
    #[error("OCSP Response must be for one certificate only")]
    NotOne,
}

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const OCTETS: u8 = 0x04;
const OID: u8 = 0x06;
const ENUMERATED: u8 = 0x0a;
const TIME: u8 = 0x18;
/// Explicit tags.
const FIRST: u8 = 0xa0;
const SECOND: u8 = 0xa1;
const THIRD: u8 = 0xa2;
/// `id-pkix-ocsp-basic`, 1.3.6.1.5.5.7.48.1.1.
const BASIC: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 0x30, 1, 1];
/// `id-pe-tlsfeature`, 1.3.6.1.5.5.7.1.24.
const TLS_FEATURE: &[u64] = &[1, 3, 6, 1, 5, 5, 7, 1, 24];
/// `status_request` as a feature.
const STATUS_REQUEST: &[u8] = &[INTEGER, 1, 5];

/// Takes values off the front of DER.
struct Der<'d>(&'d [u8]);

impl<'d> Der<'d> {
    /// The next value, if there is one, and its tag.
    fn any(&mut self) -> Option<(u8, &'d [u8])> {
        let (&[tag, first], mut rest) = self.0.split_first_chunk()?;
        let mut length = usize::from(first);
        if first >= 0x80 {
            let (size, after) = rest.split_at_checked(usize::from(first & 0x7f))?;
            if !(1..=4).contains(&size.len()) {
                return None;
            }
            length = size.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
            rest = after;
        }
        let (value, after) = rest.split_at_checked(length)?;
        self.0 = after;
        Some((tag, value))
    }

    /// The next value, which must have this tag.
    fn get(&mut self, tag: u8) -> Result<&'d [u8], StapleError> {
        self.any().filter(|(own, _)| *own == tag).map(|(_, value)| value).ok_or(StapleError::Malformed)
    }

    /// The next value if it has this tag.
    fn maybe(&mut self, tag: u8) -> Option<&'d [u8]> {
        (self.0.first() == Some(&tag)).then(|| self.get(tag).ok()).flatten()
    }
}

impl Staple {
    /// The response in `der`.
    ///
    /// # Errors
    /// It is none that can be stapled.
    pub fn parse(der: &[u8]) -> Result<Self, StapleError> {
        let mut response = Der(Der(der).get(SEQUENCE)?);
        if response.get(ENUMERATED)? != [0] {
            return Err(StapleError::Unsuccessful);
        }
        let mut bytes = Der(Der(response.get(FIRST)?).get(SEQUENCE)?);
        if bytes.get(OID)? != BASIC {
            return Err(StapleError::Type);
        }
        let mut basic = Der(Der(bytes.get(OCTETS)?).get(SEQUENCE)?);
        let mut data = Der(basic.get(SEQUENCE)?);
        data.maybe(FIRST);
        if data.maybe(SECOND).or_else(|| data.maybe(THIRD)).is_none() {
            return Err(StapleError::Malformed);
        }
        data.get(TIME)?;
        let mut all = Der(data.get(SEQUENCE)?);
        let mut single = Der(all.get(SEQUENCE).map_err(|_| StapleError::NotOne)?);
        if !all.0.is_empty() {
            return Err(StapleError::NotOne);
        }
        let mut id = Der(single.get(SEQUENCE)?);
        id.get(SEQUENCE)?;
        id.get(OCTETS)?;
        id.get(OCTETS)?;
        let serial = without_zeros(id.get(INTEGER)?).to_vec();
        // Good, revoked or unknown: the client sees.
        single.any().ok_or(StapleError::Malformed)?;
        single.get(TIME)?;
        let next_update = match single.maybe(FIRST) {
            Some(time) => Some(moment(Der(time).get(TIME)?).ok_or(StapleError::Malformed)?),
            None => None,
        };
        Ok(Self { der: der.to_vec(), serial, next_update })
    }

    /// Whether it is for the certificate with this serial number.
    pub fn is_for(&self, serial: &[u8]) -> bool {
        self.serial == without_zeros(serial)
    }

    /// Whether it holds no longer.
    pub fn has_expired(&self, now: SystemTime) -> bool {
        self.next_update.is_none_or(|end| end < now)
    }
}

impl Policy {
    /// Whether `identity` may be shown at all.
    ///
    /// # Errors
    /// It lacks a response.
    pub fn check(self, identity: &Identity) -> Result<(), String> {
        if identity.stapled.is_some() {
            return Ok(());
        }
        if identity.must_staple {
            return Err("OCSP response is required for must-staple certificate".to_owned());
        }
        if self == Policy::Must {
            return Err("Required OCSP response is missing from TLS context".to_owned());
        }
        Ok(())
    }

    /// What is done with a certificate that has this response; `must` says that it demands one itself.
    pub fn action(self, staple: Option<&Staple>, must: bool, now: SystemTime) -> Action {
        let holds = staple.is_some_and(|staple| !staple.has_expired(now));
        match self {
            _ if holds => Action::Staple,
            _ if must => Action::Fail,
            Policy::Strict if staple.is_some() => Action::Fail,
            Policy::Must => Action::Fail,
            Policy::Lenient | Policy::Strict => Action::Omit,
        }
    }
}

/// Whether a certificate demands that a response is shown with it (RFC 7633).
pub(super) fn is_demanded(certificate: &x509_parser::certificate::X509Certificate<'_>) -> bool {
    let feature = |extension: &&x509_parser::extensions::X509Extension<'_>| {
        extension.oid.iter().is_some_and(|oid| oid.eq(TLS_FEATURE.iter().copied()))
    };
    let found = certificate.extensions().iter().find(feature);
    found.is_some_and(|extension| {
        let list = Der(extension.value).get(SEQUENCE).unwrap_or_default();
        list.chunks(STATUS_REQUEST.len()).any(|number| number == STATUS_REQUEST)
    })
}

fn without_zeros(number: &[u8]) -> &[u8] {
    let start = number.iter().position(|byte| *byte != 0).unwrap_or(number.len());
    number.get(start..).unwrap_or_default()
}

/// `YYYYMMDDhhmmssZ`.
fn moment(text: &[u8]) -> Option<SystemTime> {
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let time = jiff::civil::DateTime::strptime("%Y%m%d%H%M%S", text).ok()?;
    let seconds = time.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_second();
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
        let content = parts.concat();
        let mut out = vec![tag];
        match u8::try_from(content.len()) {
            Ok(length) if length < 0x80 => out.push(length),
            _ => {
                out.push(0x82);
                out.extend_from_slice(&(content.len() as u16).to_be_bytes());
            }
        }
        out.extend_from_slice(&content);
        out
    }

    fn single(serial: &[u8], next_update: Option<&[u8]>) -> Vec<u8> {
        let id = der(
            SEQUENCE,
            &[
                &der(SEQUENCE, &[]),
                &der(OCTETS, &[b"name"]),
                &der(OCTETS, &[b"key"]),
                &der(INTEGER, &[serial]),
            ],
        );
        let until = next_update.map(|time| der(FIRST, &[&der(TIME, &[time])])).unwrap_or_default();
        der(SEQUENCE, &[&id, &[0x80, 0], &der(TIME, &[b"20260101000000Z"]), &until])
    }

    fn response(status: u8, kind: &[u8], singles: &[Vec<u8>]) -> Vec<u8> {
        let list: Vec<&[u8]> = singles.iter().map(Vec::as_slice).collect();
        let data = der(
            SEQUENCE,
            &[
                &der(THIRD, &[&der(OCTETS, &[b"me"])]),
                &der(TIME, &[b"20260101000000Z"]),
                &der(SEQUENCE, &list),
            ],
        );
        let basic = der(SEQUENCE, &[&data, &der(SEQUENCE, &[]), &der(3, &[b"\0signature"])]);
        let bytes = der(SEQUENCE, &[&der(OID, &[kind]), &der(OCTETS, &[&basic])]);
        der(SEQUENCE, &[&der(ENUMERATED, &[&[status]]), &der(FIRST, &[&bytes])])
    }

    #[test]
    fn responses_are_read_as_far_as_they_matter() {
        let until = SystemTime::UNIX_EPOCH + Duration::from_secs(1_798_761_599);
        let good = response(0, BASIC, &[single(&[0, 0x9a, 1], Some(b"20261231235959Z"))]);
        let staple = Staple::parse(&good).unwrap();
        assert!(staple.is_for(&[0x9a, 1]) && staple.is_for(&[0, 0x9a, 1]) && !staple.is_for(&[0x9a]));
        assert!(!staple.has_expired(until) && staple.has_expired(until + Duration::from_secs(1)));
        let endless = Staple::parse(&response(0, BASIC, &[single(&[1], None)])).unwrap();
        assert!(endless.has_expired(SystemTime::UNIX_EPOCH), "as in Envoy");
        let two = [single(&[1], None), single(&[2], None)];
        for (bytes, error) in [
            (response(3, BASIC, &[single(&[1], None)]), StapleError::Unsuccessful),
            (response(0, &[1, 2], &[single(&[1], None)]), StapleError::Type),
            (response(0, BASIC, &two), StapleError::NotOne),
            (response(0, BASIC, &[]), StapleError::NotOne),
            (response(0, BASIC, &[single(&[1], Some(b"yesterday"))]), StapleError::Malformed),
            (b"nothing".to_vec(), StapleError::Malformed),
        ] {
            assert_eq!(Staple::parse(&bytes), Err(error));
        }
        for end in 0..good.len() {
            assert!(Staple::parse(&good[..end]).is_err(), "cut off at {end}");
        }
    }

    #[test]
    fn policies_do_as_envoys() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let staple = Staple { der: Vec::new(), serial: vec![1], next_update: Some(at(10)) };
        use Action::{Fail, Omit, Staple as Shown};
        for (policy, none, expired) in
            [(Policy::Lenient, Omit, Omit), (Policy::Strict, Omit, Fail), (Policy::Must, Fail, Fail)]
        {
            assert_eq!(policy.action(Some(&staple), false, at(9)), Shown);
            assert_eq!(policy.action(Some(&staple), true, at(9)), Shown);
            assert_eq!(policy.action(None, false, at(9)), none, "{policy:?}");
            assert_eq!(policy.action(Some(&staple), false, at(11)), expired, "{policy:?}");
            assert_eq!(policy.action(Some(&staple), true, at(11)), Fail, "{policy:?}");
            assert_eq!(policy.action(None, true, at(9)), Fail, "{policy:?}");
        }
    }
}
