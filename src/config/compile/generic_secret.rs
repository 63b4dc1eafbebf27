//! Secrets that are only bytes, and secrets that parts of a resource want: who compiles such a part notes that, who compiles
//! the whole resource finds them.

use std::sync::Arc;

use outrigger_control_api::pb::envoy::extensions::transport_sockets::tls::v3 as pb;
use zeroize::Zeroizing;

use super::tls::{paths, secret, watched};
use super::{data_source, Environment};
use crate::config::discovery::Material;
use crate::config::problems::Problems;
use crate::tls::secret::Content;
use crate::tls::Secret;

/// Finds the secrets that parts of the resource want, or has a control plane asked for them.
pub(super) fn meet_wants(environment: &Environment<'_>, problems: &mut Problems) {
    for want in problems.take_wants() {
        let slot = problems.elsewhere(want.path, |problems| secret(&want.config, environment, problems));
        if let Some(slot) = slot {
            // Nobody else fills it.
            let _ = want.place.set(slot);
        }
    }
}

/// Compiles a secret that is only bytes. `None` when a problem was reported.
pub(super) fn compile(config: &pb::GenericSecret, problems: &mut Problems) -> Option<Arc<Secret>> {
    let Some(source) = &config.secret else {
        problems.report_at("secret", "is required");
        return None;
    };
    let content = |bytes: &[u8]| Content::Generic(Arc::new(Zeroizing::new(bytes.to_vec())));
    let bytes = problems.at("secret", |problems| data_source(source, problems))?;
    let material = Material::of(source, "secret", problems)?;
    let directories = watched(source.watched_directory.as_ref(), &[&material]);
    if directories.is_empty() {
        return Some(Secret::new(content(&bytes)));
    }
    let paths = paths(&[&material]);
    let read = move || match material.read() {
        Ok(bytes) => Ok(Content::Generic(Arc::new(Zeroizing::new(bytes.to_vec())))),
        Err(error) => Err(format!("{material:?}: {error}")),
    };
    Some(Secret::from_files(content(&bytes), paths, directories, Box::new(read)))
}
