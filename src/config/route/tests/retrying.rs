//! Retry policies.

use std::time::Duration;

use super::*;

fn policy(config: Value) -> Arc<RetryPolicy> {
    let table =
        table_with(json!({"prefix": "/"}), ("route", json!({"cluster": "c", "retry_policy": config})));
    the_forward(&table, &Request::get("h", "/")).retry.clone().unwrap()
}

fn request() -> Request {
    Request::get("h", "/")
}

#[test]
fn defaults() {
    let policy = policy(json!({"retry_on": "5xx"}));
    assert_eq!(policy.on, RetryOn::FIVE_XX);
    assert_eq!(policy.num_retries, 1);
    assert_eq!((policy.per_try_timeout, policy.per_try_idle_timeout), (None, None));
    let wanted = BackOff { base: Duration::from_millis(25), max: Duration::from_millis(250) };
    assert_eq!(policy.back_off, wanted);
    assert!(policy.rate_limited_back_off.is_none());
    assert_eq!(policy.host_selection_max_attempts, 1);
}

#[test]
fn everything_set() {
    let policy = policy(json!({
        "retry_on": "connect-failure, refused-stream,unavailable,cancelled,retriable-status-codes",
        "num_retries": 0,
        "per_try_timeout": "0.5s",
        "per_try_idle_timeout": "0s",
        "retry_back_off": {"base_interval": "0.0001s"},
        "rate_limited_retry_back_off": {"reset_headers": [
            {"name": "Retry-After"}, {"name": "x-reset", "format": "UNIX_TIMESTAMP"}]},
        "retriable_status_codes": [503, 418],
        "retry_host_predicate": [{"name": "p", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"}}],
        "host_selection_retry_max_attempts": "5",
    }));
    for condition in [
        RetryOn::CONNECT_FAILURE,
        RetryOn::REFUSED_STREAM,
        RetryOn::GRPC_UNAVAILABLE,
        RetryOn::GRPC_CANCELLED,
        RetryOn::RETRIABLE_STATUS_CODES,
    ] {
        assert!(policy.on.contains(condition));
    }
    assert!(!policy.on.intersects(RetryOn::FIVE_XX));
    assert_eq!(policy.num_retries, 0);
    assert_eq!(policy.per_try_timeout, Some(Duration::from_millis(500)));
    assert_eq!(policy.per_try_idle_timeout, None);
    let wanted = BackOff { base: Duration::from_millis(1), max: Duration::from_millis(10) };
    assert_eq!(policy.back_off, wanted);
    let limited = policy.rate_limited_back_off.as_ref().unwrap();
    assert_eq!(limited.max, Duration::from_secs(300));
    assert_eq!(limited.reset_headers[0].key.name(), "retry-after");
    assert_eq!(limited.reset_headers[1].format, ResetFormat::UnixTimestamp);
    assert_eq!(*policy.host_predicates, [HostPredicate::PreviousHosts]);
    assert_eq!(policy.host_selection_max_attempts, 5);
}

#[test]
fn virtual_hosts_have_policies_for_routes_without() {
    let table = table(json!({"virtual_hosts": [{
        "name": "all", "domains": ["*"],
        "retry_policy": {"retry_on": "reset", "num_retries": 7},
        "routes": [
            {"match": {"prefix": "/own"}, "route": {"cluster": "c", "retry_policy": {"retry_on": "5xx"}}},
            {"match": {"prefix": "/"}, "route": {"cluster": "c"}},
        ],
    }]}));
    let retries =
        |path: &str| the_forward(&table, &Request::get("h", path)).retry.as_ref().unwrap().num_retries;
    assert_eq!((retries("/own"), retries("/")), (1, 7));
}

#[test]
fn tokens() {
    assert_eq!(RetryOn::parse(b" 5xx ,reset"), (RetryOn::FIVE_XX.with(RetryOn::RESET), true));
    assert_eq!(RetryOn::parse(b"5xx,unavailable"), (RetryOn::FIVE_XX, false));
    assert_eq!(RetryOn::parse_grpc(b"internal,5xx"), (RetryOn::GRPC_INTERNAL, false));
    assert_eq!(RetryOn::parse(b""), (RetryOn::NONE, true));
    let (_, problems, notes) = try_table(json!({"virtual_hosts": [{"name": "v", "domains": ["*"],
        "retry_policy": {"retry_on": "5xx,503"}}]}));
    assert!(problems.is_empty());
    assert_eq!(notes, [r#"virtual_hosts[0].retry_policy.retry_on: there is no retry condition "503""#]);
}

#[test]
fn headers_add_to_the_policy() {
    let policy = policy(json!({"retry_on": "reset", "num_retries": 3, "retriable_status_codes": [418],
        "retriable_headers": [{"name": "x-retry", "string_match": {"exact": "yes"}}]}));
    let request = request()
        .with("x-envoy-retry-on", "retriable-status-codes")
        .with("x-envoy-retry-grpc-on", "unavailable")
        .with("x-envoy-max-retries", "9")
        .with("x-envoy-retriable-status-codes", "404, x,70000,500")
        .with("x-envoy-retriable-header-names", "X-Again, x-other");
    let retries = RequestRetries::of(Some(&policy), &request).unwrap();
    let wanted = RetryOn::RESET.with(RetryOn::RETRIABLE_STATUS_CODES).with(RetryOn::GRPC_UNAVAILABLE);
    assert_eq!((retries.on, retries.num_retries), (wanted, 9));
    let retriable: Vec<_> = [404, 418, 500, 503].map(|status| retries.is_retriable_status(status)).into();
    assert_eq!(retriable, [true, true, true, false]);
    let response = |name: &str, value: &str| Request::default().with(name, value);
    assert!(retries.has_retriable_header(&response("x-again", "")));
    assert!(retries.has_retriable_header(&response("x-retry", "yes")));
    assert!(!retries.has_retriable_header(&response("x-retry", "no")));
}

#[test]
fn without_conditions_nothing_is_retried() {
    assert!(RequestRetries::of(None, &request()).is_none());
    assert!(RequestRetries::of(None, &request().with("x-envoy-max-retries", "3")).is_none());
    let alone = RequestRetries::of(None, &request().with("x-envoy-retry-on", "5xx")).unwrap();
    assert_eq!((alone.on, alone.num_retries), (RetryOn::FIVE_XX, 1));
    let gated = policy(json!({"retry_on": "5xx", "retriable_request_headers": [
        {"name": ":method", "string_match": {"exact": "GET"}}, {"name": "x-safe"}]}));
    assert!(RequestRetries::of(Some(&gated), &request()).is_some());
    let put = request().replace(":method", "PUT");
    assert!(RequestRetries::of(Some(&gated), &put).is_none());
    assert!(RequestRetries::of(Some(&gated), &put.with("x-safe", "1")).is_some());
}
