//! The certificates of a comparison: an authority of its own, and one identity each for servers and clients.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use super::Error;

/// Files of a comparison, all PEM.
pub struct Certs {
    /// The authority.
    pub ca: PathBuf,
    /// Certificate and key of servers: `localhost` and 127.0.0.1.
    pub server: (PathBuf, PathBuf),
    /// Certificate and key of clients.
    pub client: (PathBuf, PathBuf),
    /// Those of servers, certificate and key in one file.
    pub server_both: PathBuf,
    /// Those of clients, certificate and key in one file.
    pub client_both: PathBuf,
}

impl Certs {
    /// Makes them in this directory.
    ///
    /// # Errors
    /// They cannot be made or written.
    pub fn make(dir: &Path) -> Result<Self, Error> {
        let key = KeyPair::generate()?;
        let mut params = named("comparison authority", &[])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&key)?.pem();
        let issuer = Issuer::new(params, key);
        let file = |name: &str, text: String| {
            let path = dir.join(name);
            std::fs::write(&path, text).map_err(Error::io(&path))?;
            Ok::<_, Error>(path)
        };
        let identity = |name: &str| {
            let key = KeyPair::generate()?;
            let chain = named(name, &["localhost", "127.0.0.1"])?.signed_by(&key, &issuer)?.pem();
            let secret = key.serialize_pem();
            let both = file(&format!("{name}-both.pem"), format!("{chain}{secret}"))?;
            let files = (file(&format!("{name}.pem"), chain)?, file(&format!("{name}.key"), secret)?);
            Ok::<_, Error>((files, both))
        };
        let (server, server_both) = identity("server")?;
        let (client, client_both) = identity("client")?;
        Ok(Self { ca: file("ca.pem", ca)?, server, client, server_both, client_both })
    }
}

fn named(name: &str, hosts: &[&str]) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(hosts.iter().map(|&host| host.to_owned()).collect::<Vec<_>>())?;
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}
