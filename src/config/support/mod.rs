//! What is supported of each message: the one table that refuses unsupported fields, warns about those
//! without effect, and generates `docs/support.md`.

pub mod accesslog;
mod bootstrap;
mod cluster;
mod compression;
mod discovery;
mod extra_rules;
mod filter_rules;
mod filters;
mod hcm;
mod istio;
mod listener;
mod rbac;
pub mod route;
pub mod rules;
mod scan;
pub mod tcp;
mod tls;
mod tracing;
mod udp;
mod udp_rules;

use std::sync::LazyLock;

use outrigger_control_api::reflect::MessageDescriptor;
use outrigger_control_api::support::{MessageSupport, SupportTable};
use outrigger_control_api::Problem;

/// The support table.
pub fn table() -> &'static SupportTable {
    static TABLE: LazyLock<SupportTable> = LazyLock::new(|| SupportTable::new(PARTS));
    &TABLE
}

/// The support table of a cluster that serves discovery: a gRPC service of the bootstrap names it, and no
/// request uses it.
pub fn control_table() -> &'static SupportTable {
    static TABLE: LazyLock<SupportTable> = LazyLock::new(|| {
        let parts: Vec<_> = PARTS.iter().chain(&[discovery::CONTROL]).copied().collect();
        SupportTable::new(&parts)
    });
    &TABLE
}

const PARTS: &[&[MessageSupport]] = &[
    bootstrap::MESSAGES,
    discovery::MESSAGES,
    cluster::MESSAGES,
    listener::MESSAGES,
    hcm::MESSAGES,
    filters::MESSAGES,
    compression::MESSAGES,
    accesslog::ACCESS_LOG,
    tcp::TCP,
    route::ROUTE,
    tls::MESSAGES,
    rbac::MESSAGES,
    istio::MESSAGES,
    udp::MESSAGES,
    tracing::MESSAGES,
];

/// Checks encoded bytes against the support table and the field rules, building no values: what is
/// accepted without effect, or `None` if there may be a problem and only the full checks can tell.
pub fn scan(descriptor: &MessageDescriptor, bytes: &[u8]) -> Option<Vec<Problem>> {
    scan::scan(descriptor, bytes)
}

/// A message all of whose fields take effect.
const fn whole(message: &'static str) -> MessageSupport {
    MessageSupport { message, implemented: &["*"], observe: &[], rejected: &[] }
}

/// A message that is refused wherever it stands.
const fn refused(message: &'static str, why: &'static [(&'static str, &'static str)]) -> MessageSupport {
    MessageSupport { message, implemented: &[], observe: &[], rejected: why }
}

/// A message that is accepted without effect wherever it stands.
const fn observed(message: &'static str, why: &'static [(&'static str, &'static str)]) -> MessageSupport {
    MessageSupport { message, implemented: &[], observe: why, rejected: &[] }
}

/// The text of `docs/support.md`.
pub fn markdown() -> String {
    format!(
        "# Supported configuration\n\n\
         Generated from the table that the configuration compiler uses; do not edit. To regenerate:\n\n\
         ```sh\n\
         cargo run -- support --markdown > docs/support.md\n\
         ```\n\n\
         A field that is *implemented* takes effect as in Envoy. One that is *accepted without effect* is \
         warned about once when it is set. One that is *refused* makes the configuration invalid, and the \
         error names its path. A message that is not listed is refused.\n\n{}\n\
         ## Clusters of control planes\n\n\
         A cluster of the bootstrap that a gRPC service names, and that needs TLS, serves \
         discovery only; a route of the bootstrap to it is refused. For such a cluster these entries \
         stand instead.\n\n{}",
        table().to_markdown(),
        SupportTable::new(&[discovery::CONTROL]).to_markdown()
    )
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_table_names_only_known_messages_and_fields() {
        assert_eq!(super::table().mistakes(), Vec::<String>::new());
        assert_eq!(super::control_table().mistakes(), Vec::<String>::new());
    }

    #[test]
    fn the_document_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/support.md");
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            committed == super::markdown(),
            "docs/support.md differs from the table; run: cargo run -- support --markdown > docs/support.md"
        );
    }
}
