//! Support of `envoy.extensions.transport_sockets.tls.v3` on the data path.

use outrigger_control_api::support::MessageSupport;

use super::{refused, whole};

const PROVIDERS: &str = "certificate providers are not supported; use secrets";
const SELECTOR: &str = "certificates are chosen by server name and key type";
const SCT: &str = "certificate transparency is not supported";

pub(super) const MESSAGES: &[MessageSupport] = &[
    MessageSupport {
        message: "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        implemented: &[
            "common_tls_context",
            "sni",
            "auto_host_sni",
            "auto_sni_san_validation",
            "max_session_keys",
        ],
        observe: &[
            ("allow_renegotiation", "connections are never renegotiated"),
            ("enforce_rsa_key_usage", "it is always enforced"),
        ],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        implemented: &[
            "common_tls_context",
            "require_client_certificate",
            "require_sni",
            "session_ticket_keys",
            "session_ticket_keys_sds_secret_config",
            "disable_stateless_session_resumption",
            "disable_stateful_session_resumption",
            "session_timeout",
            "ocsp_staple_policy",
            "full_scan_certs_on_sni_mismatch",
            "prefer_client_ciphers",
        ],
        observe: &[],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.extensions.transport_sockets.tls.v3.CommonTlsContext",
        implemented: &[
            "tls_params",
            "tls_certificates",
            "tls_certificate_sds_secret_configs",
            "validation_context",
            "validation_context_sds_secret_config",
            "combined_validation_context",
            "alpn_protocols",
        ],
        observe: &[],
        rejected: &[
            ("tls_certificate_provider_instance", PROVIDERS),
            ("tls_certificate_certificate_provider", PROVIDERS),
            ("tls_certificate_certificate_provider_instance", PROVIDERS),
            ("validation_context_certificate_provider", PROVIDERS),
            ("validation_context_certificate_provider_instance", PROVIDERS),
            ("custom_tls_certificate_selector", SELECTOR),
            ("custom_handshaker", "there is one TLS library"),
            ("key_log", "keys are never logged"),
        ],
    },
    MessageSupport {
        message:
            "envoy.extensions.transport_sockets.tls.v3.CommonTlsContext.CombinedCertificateValidationContext",
        implemented: &["default_validation_context", "validation_context_sds_secret_config"],
        observe: &[],
        rejected: &[
            ("validation_context_certificate_provider", PROVIDERS),
            ("validation_context_certificate_provider_instance", PROVIDERS),
        ],
    },
    MessageSupport {
        message: "envoy.extensions.transport_sockets.tls.v3.TlsParameters",
        implemented: &[
            "tls_minimum_protocol_version",
            "tls_maximum_protocol_version",
            "cipher_suites",
            "ecdh_curves",
        ],
        observe: &[],
        rejected: &[
            ("signature_algorithms", "they are those of the TLS library"),
            ("compliance_policies", "set versions, suites and curves one by one"),
        ],
    },
    MessageSupport {
        message: "envoy.extensions.transport_sockets.tls.v3.TlsCertificate",
        implemented: &["certificate_chain", "private_key", "watched_directory", "ocsp_staple"],
        observe: &[],
        rejected: &[
            ("pkcs12", "use certificate_chain and private_key"),
            ("private_key_provider", "private keys are PEM text"),
            ("password", "private keys must not be encrypted"),
            ("signed_certificate_timestamp", SCT),
            ("tls_params", "all certificates of a context have the same parameters"),
        ],
    },
    MessageSupport {
        message: "envoy.extensions.transport_sockets.tls.v3.CertificateValidationContext",
        implemented: &[
            "trusted_ca",
            "system_root_certs",
            "watched_directory",
            "verify_certificate_spki",
            "verify_certificate_hash",
            "match_typed_subject_alt_names",
            "match_subject_alt_names",
            "crl",
            "allow_expired_certificate",
            "trust_chain_verification",
            "only_verify_leaf_cert_crl",
            "max_verify_depth",
            "suppress_client_ca_list",
            "custom_validator_config",
        ],
        observe: &[],
        rejected: &[
            ("ca_certificate_provider_instance", PROVIDERS),
            ("require_signed_certificate_timestamp", SCT),
        ],
    },
    whole("envoy.extensions.transport_sockets.tls.v3.CertificateValidationContext.SystemRootCerts"),
    MessageSupport {
        message: "envoy.extensions.transport_sockets.tls.v3.SubjectAltNameMatcher",
        implemented: &["san_type", "matcher"],
        observe: &[],
        rejected: &[("oid", "names of other kinds are not looked at")],
    },
    MessageSupport {
        message: "envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig",
        implemented: &["trust_domains", "trust_bundles"],
        observe: &[],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig.TrustDomain",
        implemented: &["name", "trust_bundle"],
        observe: &[],
        rejected: &[("workload_trust_domain", "a workload's trust domain is that of its name")],
    },
    whole("envoy.extensions.transport_sockets.tls.v3.TlsSessionTicketKeys"),
    whole("envoy.extensions.transport_sockets.tls.v3.SdsSecretConfig"),
    MessageSupport {
        message: "envoy.extensions.transport_sockets.tls.v3.Secret",
        implemented: &[
            "name",
            "tls_certificate",
            "session_ticket_keys",
            "validation_context",
            "generic_secret",
        ],
        observe: &[],
        rejected: &[],
    },
    MessageSupport {
        message: "envoy.extensions.transport_sockets.tls.v3.GenericSecret",
        implemented: &["secret"],
        observe: &[],
        rejected: &[("secrets", "nothing uses secrets with several values yet")],
    },
    refused(
        "envoy.extensions.transport_sockets.tls.v3.CertificateProviderPluginInstance",
        &[("*", PROVIDERS)],
    ),
    MessageSupport {
        message: "envoy.config.cluster.v3.Cluster.TransportSocketMatch",
        implemented: &["name", "match", "transport_socket"],
        observe: &[],
        rejected: &[],
    },
    whole("envoy.config.core.v3.UpstreamHttpProtocolOptions"),
];
