//! What real control planes send: bundle by bundle over a real ADS stream, in both protocols, and a table of what was
//! taken. Reads the folder that `OUTRIGGER_CORPUS` names; without one there is nothing to do.

mod corpus;
mod live;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use outrigger::bootstrap::xds_dir;
use outrigger_control_api::server::{ResourceType, SnapshotCache};
use serde_json::{json, Value};

use self::corpus::{Bundle, Corpus};
use crate::discovery::mesh::{snapshot_of, ControlPlane, NODE};
use crate::harness::proxy::Proxy;
use crate::harness::DEADLINE;

/// The share of bundles that are accepted at least, in percent: who gets worse fails.
const FLOORS: &[(&str, usize)] = &[
    ("istio", 60),
    ("istiod-1.14", 99),
    ("istiod-1.30", 100),
    ("kuma-golden", 98),
    ("osm", 100),
    ("envoy-gateway", 90),
    ("kgateway", 90),
];

/// What became of the bundles of one source.
#[derive(Default)]
struct Row {
    bundles: usize,
    /// Envoy refuses them too.
    unfit: usize,
    accepted: [usize; 2],
    /// Of those accepted: some of their fields have no effect.
    observed: usize,
    refused: BTreeMap<String, usize>,
}

#[tokio::test]
async fn what_control_planes_send_is_taken() {
    let Some(corpus) = Corpus::open() else {
        eprintln!("skipped: OUTRIGGER_CORPUS is not set");
        return;
    };
    let mut rows: BTreeMap<(String, String), Row> = BTreeMap::new();
    for (source, bundles) in corpus.sources() {
        let planes =
            [Plane::start(&corpus, &bundles, true).await, Plane::start(&corpus, &bundles, false).await];
        for (number, bundle) in bundles.iter().enumerate() {
            let row = rows.entry((source.clone(), bundle.role.clone())).or_default();
            let mut reasons = BTreeSet::new();
            let mut accepted = [false; 2];
            for (place, plane) in planes.iter().enumerate() {
                let found = plane.take(&corpus, bundle, number).await;
                accepted[place] = found.is_empty();
                reasons.extend(found);
            }
            row.bundles += 1;
            if reasons.iter().any(|reason| corpus::is_of_envoy(reason)) {
                row.unfit += 1;
                continue;
            }
            for (count, accepted) in row.accepted.iter_mut().zip(accepted) {
                *count += usize::from(accepted);
            }
            if reasons.is_empty() {
                row.observed += usize::from(bundle.files.iter().any(|file| corpus.observes(file)));
            }
            if std::env::var_os("OUTRIGGER_CORPUS_VERBOSE").is_some() {
                reasons.iter().for_each(|reason| println!("{source} {}: {reason}", bundle.name));
            }
            let reasons: BTreeSet<String> =
                reasons.iter().map(|reason| corpus::without_place(reason)).collect();
            for reason in reasons {
                *row.refused.entry(reason).or_default() += 1;
            }
        }
        for plane in &planes {
            assert!(plane.proxy.admin("/ready").await.contains("LIVE"), "{source}: the proxy is not well");
        }
    }
    println!("{}", table(&rows));
    for (source, floor) in FLOORS {
        let of_source = || rows.iter().filter(|((name, _), _)| name == source).map(|(_, row)| row);
        let all: usize = of_source().map(|row| row.bundles - row.unfit).sum();
        for place in [0, 1] {
            let accepted: usize = of_source().map(|row| row.accepted[place]).sum();
            assert!(accepted * 100 >= all * floor, "{source}: {accepted} of {all}, less than {floor} %");
        }
    }
}

/// A control plane with a proxy that takes everything from it.
struct Plane {
    control: ControlPlane,
    proxy: Proxy,
    /// The last bundle was not taken: what is left of it would be refused again beside the next.
    refused: Cell<bool>,
}

impl Plane {
    async fn start(corpus: &Corpus, bundles: &[Bundle], delta: bool) -> Plane {
        let control = ControlPlane::on(0, snapshot_of(&[])).await;
        let mut names = BTreeSet::new();
        for file in bundles.iter().flat_map(|bundle| &bundle.files) {
            xds_dir::sources_in(corpus.value(file), false, &mut names);
        }
        // Clusters of the bootstrap cannot be sent.
        names.retain(|name| !corpus.sends_cluster(bundles, name));
        let mut bootstrap = xds_dir::stand_in_bootstrap(&names, "acceptance-ads", control.port);
        bootstrap["node"] = json!({"id": NODE, "cluster": "test"});
        bootstrap["admin"] = json!({
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": "@port:admin@"}}
        });
        if !delta {
            bootstrap["dynamic_resources"]["ads_config"]["api_type"] = "GRPC".into();
        }
        let proxy = Proxy::outrigger(&bootstrap.to_string(), &[]).await;
        Plane { control, proxy, refused: Cell::new(false) }
    }

    /// Serves a bundle; why it is not taken, if it is not.
    async fn take(&self, corpus: &Corpus, bundle: &Bundle, number: usize) -> BTreeSet<String> {
        let reasons = self.serve(corpus, bundle, number).await;
        // Neither proxy lets an update change that, and this bundle is no update of the one before.
        match reasons.iter().any(|reason| reason.contains("enable_reuse_port cannot be changed")) {
            true => self.serve(corpus, bundle, number).await,
            false => reasons,
        }
    }

    async fn serve(&self, corpus: &Corpus, bundle: &Bundle, number: usize) -> BTreeSet<String> {
        let mut reasons: BTreeSet<String> =
            bundle.files.iter().flat_map(|file| corpus.refusals(file)).cloned().collect();
        if bundle.files.iter().any(|file| !corpus.is_loaded(file)) {
            return reasons;
        }
        let mut resources: Vec<Value> =
            bundle.files.iter().enumerate().map(|(place, file)| corpus.sent(file, place, number)).collect();
        resources.extend(corpus.missing_clusters(bundle));
        resources.push(marker(number, 0));
        if self.refused.get() {
            for half in [0, 1] {
                self.control.cache.set(NODE, snapshot_of(&[marker(number + 1, half)]));
                self.settled(&format!("nothing before bundle {}", bundle.name)).await;
            }
        }
        self.control.refusals.lock().expect("not poisoned").clear();
        self.control.cache.set(NODE, snapshot_of(&resources));
        self.settled(&format!("bundle {}", bundle.name)).await;
        // The stream keeps its order: who has heard of a second marker has asked for all that the first answer named.
        resources.push(marker(number, 1));
        self.control.cache.set(NODE, snapshot_of(&resources));
        self.settled(&format!("marker of bundle {}", bundle.name)).await;
        let refused = self.control.refused();
        self.refused.set(!refused.is_empty());
        reasons.extend(refused.into_iter().map(|(kind, text)| format!("{kind}: {text}")));
        reasons
    }

    /// Waits until everything that is served was accepted or refused.
    async fn settled(&self, what: &str) {
        let cache = &self.control.cache;
        let asked = tokio::time::Instant::now();
        // There are thousands of these steps, each of which takes a millisecond or two.
        while !is_settled(cache) {
            assert!(asked.elapsed() < DEADLINE, "{what}: {:?}", cache.streams());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

fn is_settled(cache: &SnapshotCache) -> bool {
    let Some(served) = cache.get(NODE) else { return false };
    cache.streams().iter().any(|stream| {
        let wildcard = |kind: &ResourceType| {
            stream
                .types
                .iter()
                .any(|status| status.kind == *kind && status.version_sent == served.version(kind))
        };
        [ResourceType::CLUSTER, ResourceType::LISTENER].iter().all(wildcard)
            && stream.types.iter().all(|status| {
                let refused =
                    status.last_nack.as_ref().is_some_and(|(nack, _)| nack.version == status.version_sent);
                status.pending == 0 && (refused || status.version_acked == status.version_sent)
            })
    })
}

/// A listener that is of no bundle.
fn marker(number: usize, half: u16) -> Value {
    json!({
        "@type": "type.googleapis.com/envoy.config.listener.v3.Listener",
        "name": format!("acceptance-marker-{half}"),
        "stat_prefix": format!("marker_{number}"),
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 9 + half}},
        "bind_to_port": false,
        "filter_chains": [{"filters": [{
            "name": "end",
            "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.network.direct_response.v3.Config"}
        }]}]
    })
}

/// The table, as docs/acceptance.md has it, and below it the reasons of refusals.
fn table(rows: &BTreeMap<(String, String), Row>) -> String {
    let mut out = String::from(
        "| source | role | bundles | refused by Envoy too | accepted (delta) | accepted (state of the world) | of these with fields without effect |\n\
         |---|---|---|---|---|---|---|\n",
    );
    for ((source, role), row) in rows {
        let Row { bundles, unfit, accepted: [delta, sotw], observed, .. } = row;
        out += &format!("| {source} | {role} | {bundles} | {unfit} | {delta} | {sotw} | {observed} |\n");
    }
    for ((source, role), row) in rows {
        let mut reasons: Vec<_> = row.refused.iter().collect();
        reasons.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        for (reason, count) in reasons.into_iter().take(40) {
            out += &format!("\n{source} {role}: {count:5} {reason}");
        }
    }
    out
}
