//! Subject alternative names: what a certificate says, and Envoy's rules of comparing it.

use std::net::IpAddr;

use tokio_rustls::rustls::pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;

use crate::config::discovery::SanKind;
use crate::config::matcher::StringMatcher;

/// A subject alternative name that will do (`match_typed_subject_alt_names`).
#[derive(Debug, Clone)]
pub struct NameMatcher {
    /// Its kind; `None` = any (`match_subject_alt_names`).
    pub kind: Option<SanKind>,
    /// The name, where it is to be the same. For DNS names wildcards of the certificate count.
    pub exact: Option<Box<str>>,
    /// How other names are compared.
    pub matcher: StringMatcher,
}

impl NameMatcher {
    /// Whether a name of a certificate will do.
    pub fn matches(&self, kind: SanKind, text: &str) -> bool {
        if self.kind.is_some_and(|wanted| wanted != kind) {
            return false;
        }
        match &self.exact {
            Some(name) if kind == SanKind::Dns => covers(text, name),
            _ => self.matcher.matches(text.as_bytes()),
        }
    }
}

/// Whether `presented`, a DNS name of a certificate and maybe a wildcard, stands for `name`.
pub fn covers(presented: &str, name: &str) -> bool {
    let covered = presented.strip_prefix("*.").zip(name.split_once('.'));
    presented.eq_ignore_ascii_case(name)
        || covered.is_some_and(|(domain, (label, rest))| {
            !label.is_empty() && domain.contains('.') && domain.eq_ignore_ascii_case(rest)
        })
}

/// Whether a name of a certificate is `wanted`, whatever its kind (`auto_san_validation`).
pub fn is_name(kind: SanKind, presented: &str, wanted: &str) -> bool {
    match kind {
        SanKind::Dns => covers(presented, wanted),
        _ => presented == wanted,
    }
}

/// The names of a certificate of the kinds that can be matched. None of what is no certificate.
pub fn names(certificate: &CertificateDer<'_>) -> Vec<(SanKind, String)> {
    match x509_parser::parse_x509_certificate(certificate) {
        Ok((_, parsed)) => names_of(&parsed),
        Err(_) => Vec::new(),
    }
}

/// As [`names`], of a certificate that was parsed.
pub fn names_of(certificate: &X509Certificate<'_>) -> Vec<(SanKind, String)> {
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    let named = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(text) => Some((SanKind::Dns, (*text).to_owned())),
        GeneralName::URI(text) => Some((SanKind::Uri, (*text).to_owned())),
        GeneralName::RFC822Name(text) => Some((SanKind::Email, (*text).to_owned())),
        GeneralName::IPAddress(bytes) => Some((SanKind::Ip, ip(bytes)?)),
        _ => None,
    });
    named.collect()
}

fn ip(bytes: &[u8]) -> Option<String> {
    let four = <[u8; 4]>::try_from(bytes).map(|bytes| IpAddr::from(bytes).to_string());
    let sixteen = <[u8; 16]>::try_from(bytes).map(|bytes| IpAddr::from(bytes).to_string());
    four.or(sixteen).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_dns_name_of_a_certificate_stands_for() {
        for covered in ["xds.mesh.test", "XDS.Mesh.test", "*.mesh.test"] {
            assert!(covers(covered, "xds.mesh.test"), "{covered}");
        }
        for other in ["*.test", "*", "mesh.test", "*.xds.mesh.test", "*.mesh.test.org", "x*.mesh.test", ""] {
            assert!(!covers(other, "xds.mesh.test"), "{other}");
        }
        assert!(!covers("*.test", "mesh.test"), "a wildcard for all of a suffix");
    }

    #[test]
    fn names_are_compared_within_their_kind() {
        let name = |kind, exact: &str| NameMatcher {
            kind,
            exact: Some(exact.into()),
            matcher: StringMatcher::exact(exact),
        };
        let uri = name(Some(SanKind::Uri), "spiffe://mesh/a");
        assert!(uri.matches(SanKind::Uri, "spiffe://mesh/a"));
        assert!(!uri.matches(SanKind::Uri, "spiffe://mesh/A"));
        assert!(!uri.matches(SanKind::Dns, "spiffe://mesh/a"));
        assert!(name(None, "10.0.0.1").matches(SanKind::Ip, "10.0.0.1"));
        assert!(name(None, "a.b.test").matches(SanKind::Dns, "*.b.test"));
    }
}
