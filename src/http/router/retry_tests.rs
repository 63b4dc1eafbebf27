use std::sync::Arc;

use super::*;
use crate::config::route::{ResetHeader, RetryPolicy};
use crate::config::HeaderKey;
use crate::http::h1::{parse_request, parse_response, RequestLimits, ResponseLimits};

fn policy(on: RetryOn) -> RetryPolicy {
    RetryPolicy {
        previous_priorities: None,
        on,
        num_retries: 3,
        per_try_timeout: None,
        per_try_idle_timeout: None,
        back_off: BackOff::default(),
        rate_limited_back_off: None,
        retriable_status_codes: Box::new([418]),
        retriable_headers: Box::new([]),
        retriable_request_headers: Box::new([]),
        host_predicates: Box::new([]),
        host_selection_max_attempts: 1,
    }
}

fn retries(policy: RetryPolicy) -> Retries {
    let request =
        parse_request(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", &RequestLimits::default()).unwrap().unwrap().head;
    Retries::new(RequestRetries::of(Some(&Arc::new(policy)), &request).unwrap())
}

fn response(status: u16, fields: &str) -> ResponseHead {
    let limits = ResponseLimits { max_head: 1000, max_fields: 10, ..ResponseLimits::UNSET };
    let text = format!("HTTP/1.1 {status} X\r\n{fields}\r\n");
    parse_response(text.as_bytes(), &limits, false, false).unwrap().unwrap().head
}

#[test]
fn responses_that_are_tried_again() {
    for (on, status, fields, wanted) in [
        (RetryOn::FIVE_XX, 500, "", true),
        (RetryOn::FIVE_XX, 499, "", false),
        (RetryOn::GATEWAY_ERROR, 502, "", true),
        (RetryOn::GATEWAY_ERROR, 504, "", true),
        (RetryOn::GATEWAY_ERROR, 500, "", false),
        (RetryOn::RETRIABLE_4XX, 409, "", true),
        (RetryOn::RETRIABLE_4XX, 400, "", false),
        (RetryOn::RETRIABLE_STATUS_CODES, 418, "", true),
        (RetryOn::RETRIABLE_STATUS_CODES, 503, "", false),
        (RetryOn::CONNECT_FAILURE, 503, "", false),
        (RetryOn::FIVE_XX, 503, "x-envoy-ratelimited: true\r\n", false),
        (RetryOn::ENVOY_RATELIMITED, 429, "x-envoy-ratelimited: true\r\n", true),
        (RetryOn::ENVOY_RATELIMITED, 429, "", false),
        (RetryOn::GRPC_UNAVAILABLE, 200, "grpc-status: 14\r\n", true),
        (RetryOn::GRPC_UNAVAILABLE, 200, "grpc-status: 13\r\n", false),
        (RetryOn::GRPC_INTERNAL, 200, "grpc-status: 13\r\n", true),
    ] {
        let retries = retries(policy(on));
        assert_eq!(
            retries.wants_after_response(&response(status, fields)),
            wanted,
            "{on:?} {status} {fields}"
        );
    }
}

#[test]
fn failures_that_are_tried_again() {
    let refused = || {
        Failure::Upstream(UpstreamError::Connect { host: "a".into(), reason: "refused".into(), local: false })
    };
    let overflow = || Failure::Upstream(UpstreamError::Overflow("max_requests"));
    for (on, failure, started, wanted) in [
        (RetryOn::CONNECT_FAILURE, refused(), false, true),
        (RetryOn::RESET, refused(), false, true),
        (RetryOn::RESET_BEFORE_REQUEST, refused(), false, true),
        (RetryOn::RETRIABLE_4XX, refused(), false, false),
        (RetryOn::FIVE_XX, overflow(), false, false),
        (RetryOn::FIVE_XX, Failure::Upstream(UpstreamError::NoHealthyHost), false, false),
        (RetryOn::FIVE_XX, Failure::Closed, true, true),
        (RetryOn::GATEWAY_ERROR, Failure::Protocol, true, true),
        (RetryOn::CONNECT_FAILURE, Failure::Closed, true, false),
        (RetryOn::RESET_BEFORE_REQUEST, Failure::Closed, true, false),
        (RetryOn::FIVE_XX, Failure::Timeout(Expired::PerTry), true, true),
        (RetryOn::FIVE_XX, Failure::Timeout(Expired::PerTryIdle), true, true),
        (RetryOn::FIVE_XX, Failure::Timeout(Expired::Route), true, false),
        (RetryOn::FIVE_XX, Failure::Timeout(Expired::Idle), true, false),
        (RetryOn::FIVE_XX, Failure::Gone, true, false),
    ] {
        let retries = retries(policy(on));
        assert_eq!(retries.wants_after_failure(&failure, started), wanted, "{on:?} {failure:?}");
    }
}

/// Many requests with many retries each, from one seed: every pause is within its interval, the
/// intervals double up to the largest, and chance uses the whole of each.
#[test]
fn back_off_is_a_random_part_of_an_interval_that_doubles() {
    let mut rng = fastrand::Rng::with_seed(7);
    let intervals = [10u64, 20, 40, 80, 100, 100, 100];
    let mut sums = [0u64; 7];
    let mut largest = [0u64; 7];
    for _ in 0..4000 {
        let mut policy = policy(RetryOn::FIVE_XX);
        policy.back_off = BackOff { base: Duration::from_millis(10), max: Duration::from_millis(100) };
        let mut retries = retries(policy);
        for (at, interval) in intervals.iter().enumerate() {
            let Pause::Exponential(pause) = retries.pause(rng.u64(..)) else { panic!("nobody asked") };
            let micros = u64::try_from(pause.as_micros()).unwrap();
            assert!(micros < interval * 1000, "{pause:?} of {interval} ms");
            sums[at] += micros;
            largest[at] = largest[at].max(micros);
        }
    }
    for (at, interval) in intervals.iter().enumerate() {
        let mean = sums[at] / 4000;
        assert!((interval * 460..interval * 540).contains(&mean), "mean {mean} us of {interval} ms");
        assert!(largest[at] > interval * 990, "{} us of {interval} ms", largest[at]);
    }
}

#[test]
fn a_pause_asked_for_counts_once_and_is_stretched_by_half_at_most() {
    let mut rng = fastrand::Rng::with_seed(11);
    let mut retries = retries(policy(RetryOn::FIVE_XX));
    let mut longest = Duration::ZERO;
    for _ in 0..1000 {
        retries.asked = Some(Duration::from_secs(2));
        let Pause::RateLimited(pause) = retries.pause(rng.u64(..)) else { panic!("it was asked for") };
        assert!((Duration::from_secs(2)..Duration::from_secs(3)).contains(&pause), "{pause:?}");
        longest = longest.max(pause);
    }
    assert!(longest > Duration::from_millis(2950), "{longest:?}");
    let after = retries.pause(rng.u64(..));
    assert!(matches!(after, Pause::Exponential(pause) if pause < Duration::from_millis(25)), "{after:?}");
}

#[test]
fn pauses_that_responses_ask_for() {
    let header = |name: &str, format| ResetHeader { key: HeaderKey::new(name), format };
    let policy = RateLimitedBackOff {
        reset_headers: Box::new([
            header("retry-after", ResetFormat::Seconds),
            header("x-reset", ResetFormat::UnixTimestamp),
        ]),
        max: Duration::from_secs(300),
    };
    let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
    for (fields, seconds) in [
        ("", None),
        ("retry-after: 5\r\n", Some(5)),
        ("retry-after: 300\r\n", Some(300)),
        ("retry-after: 301\r\n", None),
        ("retry-after: 0\r\n", None),
        ("retry-after: Fri, 31 Dec 1999 23:59:59 GMT\r\n", None),
        ("x-reset: 1000007\r\n", Some(7)),
        ("x-reset: 999999\r\n", None),
        ("retry-after: 400\r\nx-reset: 1000007\r\n", Some(7)),
        ("retry-after: 3\r\nx-reset: 1000007\r\n", Some(3)),
    ] {
        let asked = pause_asked(&policy, &response(503, fields), now);
        assert_eq!(asked, seconds.map(Duration::from_secs), "{fields:?}");
    }
}
