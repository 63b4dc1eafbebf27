//! Certificates to present: `TlsCertificate` in, a [`Secret`] out.
//!
//! Private keys are read here, and what they were read into is wiped: what is left is what signs.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use bytes::Bytes;
use outrigger_control_api::pb::envoy::config::core::v3 as core;
use outrigger_control_api::pb::envoy::extensions::transport_sockets::tls::v3 as pb;

use super::data_source;
use super::tls::{path_of, paths, watched};
use crate::config::discovery::Material;
use crate::config::problems::Problems;
use crate::tls::identity::{wipe, Identity};
use crate::tls::secret::Content;
use crate::tls::Secret;

/// The secret that `certificate` is. `None` when a problem was reported.
pub(super) fn certificate_secret(
    certificate: &pb::TlsCertificate,
    problems: &mut Problems,
) -> Option<Arc<Secret>> {
    let required = |source: &'_ Option<core::DataSource>, field: &str, problems: &mut Problems| {
        let Some(source) = source else {
            problems.report_at(field, "is required");
            return None;
        };
        let material = Material::of(source, field, problems)?;
        let bytes = problems.at(field, |problems| data_source(source, problems))?;
        Some((material, bytes))
    };
    let chain = required(&certificate.certificate_chain, "certificate_chain", problems);
    let key = required(&certificate.private_key, "private_key", problems);
    let ((chain, chain_pem), (key, key_pem)) = chain.zip(key)?;
    let staple = match &certificate.ocsp_staple {
        Some(source) => {
            if let Some(core::data_source::Specifier::InlineString(_)) = &source.specifier {
                problems.report_at("ocsp_staple", "OCSP staple cannot be provided via inline_string");
                return None;
            }
            let material = Material::of(source, "ocsp_staple", problems)?;
            let der = problems.at("ocsp_staple", |problems| data_source(source, problems))?;
            Some((material, der))
        }
        None => None,
    };
    let (staple, staple_der) = staple.unzip();
    warn_if_exposed(&key);
    let path = path_of(&chain);
    let stapled = |identity: Identity, der: Option<&Bytes>| {
        identity.with_staple(der.map_or(&[], |der| &der[..])).map_err(|error| ("ocsp_staple", error))
    };
    let identity = Identity::from_pem(&chain_pem, &key_pem);
    wipe(key_pem);
    let identity = match identity.and_then(|identity| stapled(identity, staple_der.as_ref())) {
        Ok(identity) => Arc::new(identity.at(&path)),
        Err((field, error)) => {
            problems.report_at(field, error);
            return None;
        }
    };
    let files: Vec<&Material> = [&chain, &key].into_iter().chain(&staple).collect();
    let directories = watched(certificate.watched_directory.as_ref(), &files);
    let paths = paths(&files);
    if paths.is_empty() {
        return Some(Secret::new(Content::Certificate(identity)));
    }
    let read = move || {
        let read = |material: &Material| material.read().map_err(|error| format!("{material:?}: {error}"));
        let der = staple.as_ref().map(read).transpose()?;
        warn_if_exposed(&key);
        let key_pem = read(&key)?;
        let identity = Identity::from_pem(&read(&chain)?, &key_pem);
        wipe(key_pem);
        let identity = identity
            .and_then(|identity| stapled(identity, der.as_ref()))
            .map_err(|(field, error)| format!("{field}: {error}"))?;
        Ok(Content::Certificate(Arc::new(identity.at(&path))))
    };
    Some(Secret::from_files(Content::Certificate(identity), paths, directories, Box::new(read)))
}

/// Says once of each file that others on this machine may read the private key in it.
fn warn_if_exposed(key: &Material) {
    static TOLD: LazyLock<Mutex<HashSet<PathBuf>>> = LazyLock::new(Mutex::default);
    let Material::File(path) = key else { return };
    let Some(whom) = std::fs::metadata(path).ok().and_then(|found| readable_by(found.mode())) else { return };
    if TOLD.lock().unwrap_or_else(PoisonError::into_inner).insert(path.clone()) {
        tracing::warn!("the private key {} can be read by {whom}", path.display());
    }
}

/// Who else may read a file of this mode.
fn readable_by(mode: u32) -> Option<&'static str> {
    match mode & 0o044 {
        0 => None,
        0o040 => Some("its group"),
        _ => Some("every user of this machine"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_its_owners_alone() {
        for (mode, whom) in [
            (0o100_600, None),
            (0o100_400, None),
            (0o100_640, Some("its group")),
            (0o100_440, Some("its group")),
            (0o100_644, Some("every user of this machine")),
            (0o100_604, Some("every user of this machine")),
        ] {
            assert_eq!(readable_by(mode), whom, "{mode:o}");
        }
    }
}
