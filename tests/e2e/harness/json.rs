//! Bootstraps as JSON values, for suites that make their clusters and routes by program.

use serde_json::{json, Value};

/// An HTTP connection manager `main` with these routes, which writes `access.log` in `format`.
pub fn manager(format: &str, routes: &[Value]) -> Value {
    json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "main",
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
        "access_log": [{"name": "envoy.access_loggers.file", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": "@dir@/access.log",
            "log_format": {"text_format_source": {"inline_string": format}}}}],
        "route_config": {"name": "main", "validate_clusters": false, "virtual_hosts": [
            {"name": "all", "domains": ["*"], "routes": routes}]}})
}

/// A bootstrap of the node `id` with the listener `main` in front of `manager`.
pub fn bootstrap(id: &str, manager: &Value, clusters: &[Value]) -> Value {
    json!({
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": "@port:admin@"}}},
        "node": {"id": id, "cluster": "tests"},
        "static_resources": {
            "listeners": [{"name": "main",
                "address": {"socket_address": {"address": "127.0.0.1", "port_value": "@port:main@"}},
                "filter_chains": [{"filters": [{
                    "name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}]}],
            "clusters": clusters}})
}

/// The text of a template. Ports are numbers once they are filled in.
pub fn template(bootstrap: &Value) -> String {
    bootstrap.to_string().replace("\"@port:", "@port:").replace("@\"}", "@}")
}
