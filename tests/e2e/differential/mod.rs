//! The same bootstrap and the same bytes to Outrigger and to the real Envoy, in front of equal origins in this
//! process. Compared are the answers, what the origins received, whether the connection was kept, and the
//! access-log line. A case that may differ names an entry of `docs/differences.md`.
//!
//! For working on it: `OUTRIGGER_E2E_SHOW=1` prints what each side did, `OUTRIGGER_E2E_CASE=text` runs only the cases
//! whose name contains the text, `OUTRIGGER_E2E_ENVOY_ONLY=1` leaves Outrigger out.

mod api_key_auth;
mod bandwidth;
mod basic_auth;
pub mod beside;
pub mod bootstrap;
mod case;
mod cel;
mod clusters;
mod compression;
pub mod counters;
mod credentials;
mod custom_redirect;
mod custom_response;
mod descriptors;
mod dns;
mod ext_authz;
pub mod ext_proc;
mod ext_proc_beside;
pub mod ext_proc_duplex;
mod ext_proc_http;
mod ext_proc_streams;
mod ext_proc_watch;
mod fields;
mod filters;
mod filters_policy;
mod first_look;
mod forwarded;
pub mod grpc_service;
mod hedging;
mod internal_redirects;
pub mod jwt;
mod limits;
mod local_replies;
mod logs;
mod lua;
mod matching;
mod messages;
mod mutation;
mod network_authz;
mod oauth2;
pub mod observe;
mod overload;
mod path_templates;
mod per_route;
mod proxy_protocol;
mod ratelimit;
mod rbac;
mod rbac_seeded;
mod retries;
mod routing;
mod service_logs;
mod sinks;
mod smuggling;
mod stateful_session;
mod tcp;
mod tracing;
mod tunnels;
mod udp;
mod upgrades;
mod upstream_filters;

use crate::harness::origin::{Answer, Origin};
use crate::harness::proxy::{Kind, Plan, Proxy};
use crate::peers;
use bootstrap::Bootstrap;
use case::{Case, Difference};
use observe::observe;
pub use observe::Side;
use std::collections::BTreeSet;

/// A bootstrap and the cases that run against it.
pub struct Group {
    pub bootstrap: Bootstrap,
    pub cases: Vec<Case>,
}

/// The value of a variable for working on the suites.
pub fn set(variable: &str) -> Option<String> {
    std::env::var(variable).ok().filter(|v| !v.is_empty())
}

async fn run_side(kind: Kind, template: &str) -> Side {
    let a = Origin::start().await;
    let b = Origin::start().await;
    let values = bootstrap::origins(a.port(), b.port());
    let proxy = Proxy::start(Plan::new(kind, template, &values)).await;
    Side { proxy, origins: vec![("a", a), ("b", b)] }
}

/// What `look` finds on Envoy's side and then on ours, each with a proxy of its own; `None` without an Envoy, or when only
/// what it shows was asked for.
async fn both_sides<T: std::fmt::Debug>(template: &str, look: impl AsyncFn(&Side) -> T) -> Option<(T, T)> {
    if !peers::have(&["envoy"]) {
        return None;
    }
    let theirs = look(&run_side(Kind::Envoy, template).await).await;
    if set("OUTRIGGER_E2E_ENVOY_ONLY").is_some() {
        println!("{theirs:#?}");
        return None;
    }
    Some((theirs, look(&run_side(Kind::Outrigger, template).await).await))
}

/// Runs a group; panics at the end with every case that differs.
async fn run(group: Group) {
    if !peers::have(&["envoy"]) {
        return;
    }
    let template = group.bootstrap.render();
    let envoy = run_side(Kind::Envoy, &template).await;
    let ours = match set("OUTRIGGER_E2E_ENVOY_ONLY") {
        Some(_) => None,
        None => Some(run_side(Kind::Outrigger, &template).await),
    };
    let failures = differing(&group.cases, &envoy, ours.as_ref()).await;
    assert!(failures.is_empty(), "{} cases differ\n{}", failures.len(), failures.join("\n"));
}

/// Runs cases against both and says which differ, and how.
pub async fn differing(cases: &[Case], envoy: &Side, ours: Option<&Side>) -> Vec<String> {
    let show = set("OUTRIGGER_E2E_SHOW").is_some();
    let only = set("OUTRIGGER_E2E_CASE").unwrap_or_default();
    let mut failures = Vec::new();
    for case in cases.iter().filter(|c| c.name.contains(&only)) {
        let Some(ours) = ours else {
            println!("=== {} [{}]\n{}\n{}", case.name, case.listener, case, observe(envoy, case).await);
            continue;
        };
        let (theirs, mine) = tokio::join!(observe(envoy, case), observe(ours, case));
        if show {
            println!(
                "=== {} [{}]\n{case}\n--- Envoy\n{theirs}\n--- Outrigger\n{mine}",
                case.name, case.listener
            );
        }
        let complaint = match case.difference {
            None => theirs.compare(&mine, &[]),
            Some((_, Difference::In(keys))) => theirs.compare(&mine, keys),
            Some((_, Difference::Refused)) => mine.refused(),
            Some((_, Difference::Status(status))) => mine.answered(status),
        };
        let same = theirs.compare(&mine, &[]).is_none();
        let complaint = complaint.or_else(|| match case.difference {
            Some((id, _)) if same => Some(format!("both are equal: the difference {id} is not needed here")),
            _ => None,
        });
        if let Some(complaint) = complaint {
            failures.push(format!(
                "=== {}\n{case}\n{complaint}--- Envoy\n{theirs}--- Outrigger\n{mine}",
                case.name
            ));
        }
    }
    failures
}

pub fn groups() -> Vec<(&'static str, Group)> {
    vec![
        ("messages", messages::group()),
        ("routing", routing::group()),
        ("mutation", mutation::group()),
        ("clusters", clusters::group()),
        ("forwarded", forwarded::group()),
        ("smuggling", smuggling::group()),
        ("upgrades", upgrades::group()),
        ("retries", retries::group()),
    ]
}

macro_rules! groups {
    ($($name:ident),*) => {$(
        #[tokio::test]
        async fn $name() {
            run(self::$name::group()).await;
        }
    )*};
}

groups!(messages, routing, mutation, clusters, forwarded, smuggling, upgrades, retries);

/// Every accepted difference is explained, and every explanation is in use.
#[test]
fn differences_are_documented() {
    let page = include_str!("../../../docs/differences.md");
    let documented: BTreeSet<&str> =
        page.lines().filter_map(|l| l.strip_prefix("### `")?.strip_suffix('`')).collect();
    let elsewhere = logs::DIFFERENCES
        .iter()
        .chain(compression::DIFFERENCES)
        .chain(per_route::DIFFERENCES)
        .chain(crate::inputs::DIFFERENCES.iter().map(|(_, id)| id));
    let mut used: BTreeSet<&str> = elsewhere.copied().chain(crate::http2::matrix::differences()).collect();
    let mut names = BTreeSet::new();
    for (group, cases) in groups().into_iter().map(|(n, g)| (n, g.cases)) {
        for case in cases {
            assert!(names.insert((group, case.name)), "two cases of {group} are named {}", case.name);
            used.extend(case.difference.map(|(id, _)| id));
        }
    }
    assert!(names.len() >= 100, "only {} cases", names.len());
    assert_eq!(used, documented, "left: used by cases, right: headings in docs/differences.md");
}

/// An answer for both origins that depends on nothing.
fn always(
    answer: Answer,
) -> impl Fn(&crate::harness::http1::Message) -> Answer + Clone + Send + Sync + 'static {
    move |_| answer.clone()
}
