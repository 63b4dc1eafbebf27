//! A mesh's certificates: one CA, one that nobody trusts, and a certificate for each way to go wrong.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    date_time_ymd, BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer,
    DistinguishedName, DnType, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType,
    SerialNumber,
};
use tempfile::TempDir;

/// Who signs.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub fn new(name: &str) -> Authority {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        Authority(CertifiedIssuer::self_signed(params, key).expect("a certificate"))
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    pub fn key_pem(&self) -> String {
        self.0.key().serialize_pem()
    }

    /// A certificate for these names that began to be valid so many seconds ago, and ends in so many.
    pub fn issue_for(&self, uri: &str, dns: &[&str], (ago, left): (u64, u64)) -> (String, String) {
        let mut params = params("soon over", uri, dns);
        let now = std::time::SystemTime::now();
        params.not_before = (now - std::time::Duration::from_secs(ago)).into();
        params.not_after = (now + std::time::Duration::from_secs(left)).into();
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().expect("a key");
        (params.signed_by(&key, &self.0).expect("a certificate").pem(), key.serialize_pem())
    }

    /// A certificate (PEM) and its key for these names.
    pub fn issue(
        &self,
        common: &str,
        uri: &str,
        dns: &[&str],
        years: (i32, i32),
        serial: u64,
    ) -> (String, String) {
        let mut params = params(common, uri, dns);
        params.not_before = date_time_ymd(years.0, 1, 1);
        params.not_after = date_time_ymd(years.1, 1, 1);
        params.serial_number = Some(SerialNumber::from(serial));
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().expect("a key");
        (params.signed_by(&key, &self.0).expect("a certificate").pem(), key.serialize_pem())
    }

    /// A list that revokes `serial`.
    pub fn revoke(&self, serial: u64) -> String {
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: date_time_ymd(2020, 1, 2),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 2),
            next_update: date_time_ymd(2200, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.0).expect("a list").pem().expect("PEM")
    }
}

/// A certificate and its key for all of these names.
pub fn issue_all(ca: &Authority, common: &str, uris: &[String]) -> (String, String) {
    let mut params = params(common, uris.first().map_or("spiffe://mesh.test/nobody", String::as_str), &[]);
    let more = uris.iter().skip(1).map(|uri| SanType::URI(uri.as_str().try_into().expect("ASCII")));
    params.subject_alt_names.extend(more);
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate().expect("a key");
    (params.signed_by(&key, &ca.0).expect("a certificate").pem(), key.serialize_pem())
}

/// A map of SPIFFE bundles.
fn bundles(domains: &[(&str, &Authority)]) -> String {
    let bundle = |(name, ca): &(&str, &Authority)| {
        let pem = ca.pem();
        let der: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
        format!(r#""{name}": {{"keys": [{{"kty": "EC", "use": "x509-svid", "x5c": ["{der}"]}}]}}"#)
    };
    format!("{{\"trust_domains\": {{{}}}}}", domains.iter().map(bundle).collect::<Vec<_>>().join(", "))
}

fn params(common: &str, uri: &str, dns: &[&str]) -> CertificateParams {
    let dns: Vec<String> = dns.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(uri.try_into().expect("ASCII"))];
    params
        .subject_alt_names
        .extend(dns.iter().map(|name| SanType::DnsName(name.as_str().try_into().expect("ASCII"))));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Mesh, Inc");
    params.distinguished_name.push(DnType::CommonName, common);
    params
}

/// Years in which a certificate is valid now, not any more, and not yet.
pub const NOW: (i32, i32) = (2020, 2200);
const PAST: (i32, i32) = (2010, 2011);
const FUTURE: (i32, i32) = (2190, 2200);

/// Writes a certificate and its key into place, each whole, as Kubernetes does.
pub fn put(directory: &Path, name: &str, (certificate, key): &(String, String)) {
    for (kind, text) in [("key", key), ("pem", certificate)] {
        let aside = directory.join("aside");
        fs::write(&aside, text).expect("written");
        fs::set_permissions(&aside, fs::Permissions::from_mode(0o600)).expect("permissions");
        fs::rename(aside, directory.join(format!("{name}.{kind}"))).expect("moved");
    }
}

/// A directory of certificates: `NAME.pem` and `NAME.key`.
pub struct Certs {
    pub ca: Authority,
    directory: TempDir,
}

impl Certs {
    pub fn new() -> Certs {
        let directory = tempfile::Builder::new().prefix("outrigger-certs").tempdir().expect("a directory");
        let (ca, other) = (Authority::new("mesh"), Authority::new("other"));
        let at = directory.path();
        fs::write(at.join("ca.pem"), ca.pem()).expect("written");
        fs::write(at.join("crl.pem"), ca.revoke(66)).expect("written");
        let (server, client) = ("spiffe://mesh.test/server", "spiffe://mesh.test/client");
        let dns = ["server.mesh.test", "*.wild.test"];
        put(at, "server", &ca.issue("server", server, &dns, NOW, 10));
        put(at, "client", &ca.issue("client", client, &["client.mesh.test"], NOW, 11));
        put(at, "wrong", &ca.issue("wrong", "spiffe://evil.test/client", &["server.mesh.test"], NOW, 12));
        put(at, "expired", &ca.issue("expired", client, &["server.mesh.test"], PAST, 13));
        put(at, "future", &ca.issue("future", client, &["server.mesh.test"], FUTURE, 14));
        put(at, "revoked", &ca.issue("revoked", client, &["server.mesh.test"], NOW, 66));
        put(at, "stranger", &other.issue("stranger", client, &["server.mesh.test"], NOW, 10));
        fs::write(at.join("other.pem"), other.pem()).expect("written");
        fs::write(at.join("bundles.json"), bundles(&[("mesh.test", &ca), ("evil.test", &other)]))
            .expect("written");
        let key = KeyPair::generate().expect("a key");
        let mut signer = params("signer", client, &["server.mesh.test"]);
        signer.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign];
        let signer = signer.signed_by(&key, &ca.0).expect("a certificate");
        put(at, "signer", &(signer.pem(), key.serialize_pem()));
        let mut useless = params("useless", client, &["server.mesh.test"]);
        useless.key_usages.clear();
        let useless = useless.signed_by(&key, &ca.0).expect("a certificate");
        put(at, "useless", &(useless.pem(), key.serialize_pem()));
        let key = KeyPair::generate().expect("a key");
        let own = params("self", client, &["server.mesh.test"]).self_signed(&key).expect("a certificate");
        put(at, "self", &(own.pem(), key.serialize_pem()));
        Certs { ca, directory }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }
}
