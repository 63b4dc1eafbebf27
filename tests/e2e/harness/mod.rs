//! What every end-to-end test stands on: a proxy process (Outrigger or the real Envoy) started from a bootstrap
//! template, scripted origin servers in this process, and a client that sees raw bytes. Nothing here sleeps for a
//! fixed time; every wait is for a condition and has a deadline.

pub mod client;
pub mod collector;
pub mod dns;
pub mod http1;
pub mod http2;
pub mod json;
pub mod origin;
pub mod ports;
pub mod proxy;
pub mod tcp_origin;
pub mod tunnel_origin;

use std::future::Future;
use std::time::Duration;

/// How long a test waits for something that ought to happen at once, on a machine that is busy building.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// Asks `condition` until it is true; false when the deadline passes first.
pub async fn eventually<F, Fut>(deadline: Duration, mut condition: F) -> bool
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    let end = tokio::time::Instant::now() + deadline;
    loop {
        if condition().await {
            return true;
        }
        if tokio::time::Instant::now() >= end {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Tests that measure or load the machine run one at a time within one test process.
pub async fn alone() -> tokio::sync::MutexGuard<'static, ()> {
    static ONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    ONE.lock().await
}

/// Waits until `value` has not changed for a hundred looks in a row, and returns it.
pub async fn settled(mut value: impl FnMut() -> usize) -> usize {
    let (mut last, mut same) = (value(), 0);
    eventually(DEADLINE * 3, || {
        let now = value();
        same = if now == last { same + 1 } else { 0 };
        last = now;
        std::future::ready(same >= 100)
    })
    .await;
    last
}
