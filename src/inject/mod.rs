//! Injection: pods get their sidecar, from the command line (`outrigger inject`) or as they are admitted (`outrigger
//! webhook`).
//!
//! Comes in: Kubernetes objects with a pod template, as YAML or JSON, and [`Settings`], which annotations of a pod
//! override. Goes out: the same objects with what a sidecar needs: containers, volumes, probes that reach the application
//! past it. What has a sidecar already stays as it is, so that injecting twice is injecting once.

pub mod command;
mod container;
mod documents;
mod overrides;
pub mod pod;
pub mod probes;
pub mod settings;
pub mod webhook;

#[cfg(test)]
mod tests;

pub use settings::Settings;

/// Why an object is not injected.
#[derive(Debug, thiserror::Error)]
pub enum InjectError {
    /// A file cannot be read, or written.
    #[error("{0}: {1}")]
    File(String, std::io::Error),
    /// Neither YAML nor JSON.
    #[error("{0}: {1}")]
    Syntax(String, String),
    /// A field is not what Kubernetes has there.
    #[error("{0}: {1} is not {2}")]
    Shape(String, String, &'static str),
    /// An annotation says what cannot be.
    #[error("metadata.annotations[{0:?}]: {1:?}: {2}")]
    Annotation(String, String, String),
    /// A container of the pod has the name of one of ours, and is not.
    #[error("{0}: the name {1:?} is that of the sidecar")]
    Name(String, String),
    /// The webhook cannot serve.
    #[error("webhook: {0}")]
    Webhook(String),
}
