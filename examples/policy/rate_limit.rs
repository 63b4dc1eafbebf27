//! A rate-limit server for `envoy.filters.http.ratelimit`: every descriptor may be seen so many times a minute.
//!
//! ```sh
//! cargo run --example rate-limit-server -- 127.0.0.1:9192 10
//! ```

mod unary;

use std::collections::HashMap;
use std::error::Error;
use std::sync::{Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use outrigger_control_api::pb::envoy::service::ratelimit::v3::rate_limit_response::rate_limit::Unit;
use outrigger_control_api::pb::envoy::service::ratelimit::v3::rate_limit_response::{
    Code, DescriptorStatus, RateLimit,
};
use outrigger_control_api::pb::envoy::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse};
use outrigger_control_api::pb::google::protobuf::Duration;

/// Seconds in which the limit counts.
const WINDOW: u64 = 60;
/// Most descriptors that are remembered.
const MAX_KEYS: usize = 100_000;

/// How often each descriptor was seen in this minute.
struct Counts {
    limit: u32,
    seen: Mutex<(u64, HashMap<String, u32>)>,
    start: (Instant, u64),
}

impl Counts {
    fn new(limit: u32) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Self { limit, seen: Mutex::default(), start: (Instant::now(), since) }
    }

    fn answer(&self, question: RateLimitRequest) -> RateLimitResponse {
        let now = self.start.1 + self.start.0.elapsed().as_secs();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.0 != now / WINDOW || seen.1.len() > MAX_KEYS {
            *seen = (now / WINDOW, HashMap::new());
        }
        let mut response = RateLimitResponse::default();
        response.set_overall_code(Code::Ok);
        for descriptor in question.descriptors {
            let key = format!("{} {:?}", question.domain, descriptor.entries);
            let count = seen.1.entry(key).or_default();
            *count = count.saturating_add(question.hits_addend.max(1));
            let over = *count > self.limit;
            let code = if over { Code::OverLimit } else { Code::Ok };
            if over {
                response.set_overall_code(Code::OverLimit);
            }
            let limit = RateLimit {
                requests_per_unit: self.limit,
                unit: Unit::Minute.into(),
                ..RateLimit::default()
            };
            response.statuses.push(DescriptorStatus {
                code: code.into(),
                current_limit: Some(limit),
                limit_remaining: self.limit.saturating_sub(*count),
                duration_until_reset: i64::try_from(WINDOW - now % WINDOW)
                    .ok()
                    .map(|seconds| Duration { seconds, nanos: 0 }),
                ..DescriptorStatus::default()
            });
        }
        response
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:9192".to_owned());
    let limit = arguments.next().map_or(Ok(10), |limit| limit.parse())?;
    let counts = Counts::new(limit);
    unary::serve(&address, move |question| counts.answer(question)).await
}
