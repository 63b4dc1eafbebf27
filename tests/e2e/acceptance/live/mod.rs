//! Bundles of real control planes at work: the same one is served to Outrigger and to the real Envoy, each in a pod of
//! its own with capture as the bundle wants it, and both are asked the same. `OUTRIGGER_E2E_BUNDLES` takes so many of each
//! source.

mod asks;
mod bundle;
mod side;
mod world;

use std::collections::BTreeMap;

use self::asks::Ask;
use self::bundle::Prepared;
use self::side::{capture, client, Side};
use super::corpus::{Bundle, Corpus};
use crate::differential::beside::Beside;
use crate::harness::proxy::Kind;
use crate::peers;
use crate::pods::user::as_root;
use crate::tls::certs::{issue_all, put, Certs};

/// Bundles of each source, requests for each bundle, and what both are chosen by.
const BUNDLES: [(&str, usize); 2] = [("istiod-1.30", 12), ("kuma-golden", 8)];
const ASKS: usize = 50;
const SEED: u64 = 20;

/// Picks bundles of sidecars that send something somewhere.
fn picked(bundles: Vec<Bundle>, random: &mut fastrand::Rng) -> Vec<Bundle> {
    let of = |bundle: &Bundle, kind: &str| bundle.files.iter().any(|file| file.contains(kind));
    let mut all: Vec<Bundle> = bundles
        .into_iter()
        .filter(|one| one.role == "sidecar" && of(one, "/listeners/") && of(one, "/clusters/"))
        .collect();
    random.shuffle(&mut all);
    all
}

/// Certificates for those that the bundle speaks of.
fn certificates(prepared: &Prepared) -> (Certs, Vec<String>) {
    let certs = Certs::new();
    let servers: Vec<String> = prepared.servers.clone();
    put(certs.path(), "world", &issue_all(&certs.ca, "world", &servers));
    let own = ["spiffe://cluster.local/ns/foo/sa/httpbin".to_owned()];
    put(certs.path(), "pod", &issue_all(&certs.ca, "pod", &own));
    let mut names = vec!["spiffe://cluster.local/ns/other/sa/other".to_owned()];
    names.extend(prepared.principals.iter().take(4).cloned());
    let files = names.iter().enumerate().map(|(number, uri)| {
        let name = format!("client-{number}");
        put(certs.path(), &name, &issue_all(&certs.ca, &name, std::slice::from_ref(uri)));
        name
    });
    let files = files.collect();
    (certs, files)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bundles_work_as_with_envoy() {
    let Some(corpus) = Corpus::open() else {
        eprintln!("skipped: OUTRIGGER_CORPUS is not set");
        return;
    };
    if !peers::have(&["envoy"]) {
        return;
    }
    as_root!();
    let only = crate::differential::set("OUTRIGGER_E2E_CASE").unwrap_or_default();
    let sides = [Side::new(Kind::Envoy), Side::new(Kind::Outrigger)];
    let mut sources = corpus.sources();
    let mut beside = Beside::default();
    let mut statuses: BTreeMap<String, usize> = BTreeMap::new();
    let mut random = fastrand::Rng::with_seed(SEED);
    // Below those that the system gives away.
    let mut ports = 20_000..30_000;
    let more = crate::differential::set("OUTRIGGER_E2E_BUNDLES").map(|all| all.parse().expect("a number"));
    for (source, wanted) in BUNDLES {
        let wanted = more.unwrap_or(wanted);
        let mut taken = 0;
        for bundle in picked(sources.remove(source).unwrap_or_default(), &mut random) {
            if taken == wanted {
                break;
            }
            if !bundle.name.contains(&only) {
                continue;
            }
            let logs: Vec<String> = sides.iter().map(Side::log).collect();
            let prepared: Vec<Prepared> =
                logs.iter().map(|log| Prepared::of(&corpus, &bundle, log)).collect();
            let captured = prepared[0].of_kind(".Listener").any(|one| one["useOriginalDst"] == true);
            let (certs, names) = certificates(&prepared[0]);
            let clients: Vec<_> = names.iter().map(|name| client(&certs, name)).collect();
            let envoy = match sides[0].take(&prepared[0], &certs).await {
                Ok(live) => live,
                Err(refused) => {
                    println!("{source} {}: Envoy refuses it: {refused:?}", bundle.name);
                    continue;
                }
            };
            let ours = sides[1].take(&prepared[1], &certs).await;
            let ours = ours.map_err(|refused| format!("{}: {refused:?}", bundle.name)).expect("it is taken");
            sides.iter().for_each(|side| capture(side, captured));
            taken += 1;
            let mut asked = Vec::new();
            for ask in asks::of(&prepared[0], ASKS, SEED + taken as u64, &mut ports) {
                let (theirs, mine) = tokio::join!(sides[0].ask(&ask, &clients), sides[1].ask(&ask, &clients));
                asked.push((ask, theirs, mine));
            }
            sides.iter().for_each(|side| capture(side, false));
            let (their_log, our_log) = (envoy.end().await, ours.end().await);
            for (ask, theirs, mine) in asked {
                let kind = theirs.1.lines().next().unwrap_or_default().to_owned();
                *statuses.entry(kind).or_default() += 1;
                let what = format!("{source} {}: {}", bundle.name, ask.name);
                // The lengths of handshakes that pass through depend on signatures.
                let opaque = ask.secure.is_some();
                let theirs = format!("{}\n{}", theirs.1, logged(&their_log, (&theirs.0, &ask), opaque));
                let mine = format!("{}\n{}", mine.1, logged(&our_log, (&mine.0, &ask), opaque));
                beside.texts(&what, &theirs, &mine);
            }
        }
        assert!(
            taken == wanted || !only.is_empty() || more.is_some(),
            "{source}: only {taken} can be served"
        );
    }
    println!("{statuses:#?}");
    beside.end();
    if only.is_empty() {
        // They were routed, denied, not found, retried; and spoken to in bytes.
        for (kind, least) in [("200 OK", 100), ("404 Not", 20), ("503", 50), ("got \\x01echo", 100)] {
            let of_kind: usize =
                statuses.iter().filter(|(name, _)| name.contains(kind)).map(|(_, count)| count).sum();
            assert!(of_kind >= least, "{kind}: {of_kind}");
        }
    }
}

/// What was logged of this client's connection.
fn logged(log: &[String], (client, ask): (&str, &Ask), opaque: bool) -> String {
    let peer = format!("peer={client} to={}\t", ask.to);
    let counts = |field: &&str| field.starts_with("received=") || field.starts_with("sent=");
    let shown = |line: &String| {
        let fields = line.split('\t').skip(1).filter(|field| !opaque || !counts(field));
        fields.collect::<Vec<_>>().join("\n  ")
    };
    log.iter().filter(|line| line.starts_with(&peer)).map(shown).collect::<Vec<_>>().join("\n")
}
