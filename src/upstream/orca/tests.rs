//! Reports in every form, and the weights that follow from them in virtual time.

use std::sync::Arc;
use std::time::Duration;

use base64::prelude::{Engine as _, BASE64_STANDARD, BASE64_STANDARD_NO_PAD};
use prost::Message as _;

use super::report::{read, OrcaLoadReport, ReportError};
use super::weights::{Reckoning, WeightOptions};
use super::*;
use crate::config::balancing::{Balancing, LbPolicy};
use crate::config::cluster::{Address, HostTemplate};
use crate::config::{Host, HostSet};
use crate::upstream::pick::{Ground, PickContext, Picker};

fn example() -> OrcaLoadReport {
    OrcaLoadReport {
        cpu_utilization: 0.7,
        application_utilization: 0.8,
        mem_utilization: 0.9,
        eps: 2.0,
        rps_fractional: 1000.0,
        named_metrics: [("foo".to_owned(), 123.0), ("bar".to_owned(), 0.2)].into(),
        utilization: [("total".to_owned(), 0.5)].into(),
        ..Default::default()
    }
}

fn plain(text: impl AsRef<[u8]>) -> Result<Option<OrcaLoadReport>, ReportError> {
    read(Some(text.as_ref()), None)
}

#[test]
fn every_form_says_the_same() {
    assert_eq!(read(None, None), Ok(None));
    let text =
        "TEXT cpu_utilization=0.7, application_utilization:0.8,mem_utilization=0.9,rps_fractional=1e3,\
                eps=2,,named_metrics.foo=123,named_metrics.bar=0.2,utilization.total=0.5";
    assert_eq!(plain(text), Ok(Some(example())));
    let json = r#"JSON {"cpu_utilization": 0.7, "applicationUtilization": 0.8, "mem_utilization": "0.9",
        "rpsFractional": 1000, "eps": 2, "rps": "5", "named_metrics": {"foo": 123, "bar": 0.2},
        "utilization": {"total": 0.5}, "request_cost": null}"#;
    assert_eq!(plain(json), Ok(Some(example())));
    let bytes = example().encode_to_vec();
    for encoded in [BASE64_STANDARD.encode(&bytes), BASE64_STANDARD_NO_PAD.encode(&bytes)] {
        assert_eq!(plain(format!("BIN {encoded}")), Ok(Some(example())));
        assert_eq!(read(None, Some(encoded.as_bytes())), Ok(Some(example())));
        // gRPC's own field goes first.
        assert_eq!(read(Some(b"TEXT eps=1"), Some(encoded.as_bytes())), Ok(Some(example())));
    }
}

#[test]
fn half_a_report_is_none() {
    let refuses = |text: &str| plain(text).expect_err(text);
    for text in ["", "BAD x", "TEXT", "text eps=1", "JSON", "BIN"] {
        assert_eq!(refuses(text), ReportError::Form, "{text:?}");
    }
    assert_eq!(refuses("TEXT eps=1,eps=2"), ReportError::Twice("eps".into()));
    for bad in ["eps=\"1\"", "eps=nan", "eps=inf", "eps=", "eps"] {
        assert_eq!(
            refuses(&format!("TEXT mem_utilization=1,{bad}")),
            ReportError::Value("eps".into()),
            "{bad}"
        );
    }
    for unknown in ["named_metrics.", "utilization.", "rps", "request_cost.a", "a b"] {
        assert_eq!(refuses(&format!("TEXT {unknown}=1")), ReportError::Unknown(unknown.into()));
    }
    assert_eq!(refuses("JSON {\"eps\": 1, \"more\": 2}"), ReportError::Unknown("more".into()));
    assert_eq!(refuses("JSON {\"named_metrics\": [1]}"), ReportError::Value("named_metrics".into()));
    assert!(matches!(refuses("JSON {\"eps\": 1"), ReportError::Json(_)));
    assert_eq!(refuses("BIN *"), ReportError::Base64);
    assert_eq!(refuses("BIN CQAA"), ReportError::Message);
}

fn options(metrics: &[&str]) -> WeightOptions {
    WeightOptions {
        error_penalty: 0.0,
        blackout: Duration::from_secs(10),
        expiration: Duration::from_secs(180),
        update: Duration::from_secs(1),
        metrics: metrics.iter().filter_map(|name| Metric::new(name)).collect(),
        out_of_band: None,
    }
}

#[test]
fn a_weight_is_requests_by_utilization() {
    let report = example();
    // Named metrics, then the application's utilization, then the processor's.
    assert_eq!(options(&[]).weight_of(&report), Some(1250));
    assert_eq!(options(&["named_metrics.bar", "utilization.total"]).weight_of(&report), Some(2000));
    assert_eq!(options(&["named_metrics.*"]).weight_of(&report), Some(8));
    assert_eq!(options(&["named_metrics.absent"]).weight_of(&report), Some(1250));
    let cpu = OrcaLoadReport { application_utilization: 0.0, ..report.clone() };
    assert_eq!(options(&[]).weight_of(&cpu), Some(1428));
    // Two errors in a thousand requests, each as dear as 100 requests.
    let dear = WeightOptions { error_penalty: 100.0, ..options(&[]) };
    assert_eq!(dear.weight_of(&report), Some(1000));
    for silent in [
        OrcaLoadReport { rps_fractional: 0.0, ..report.clone() },
        OrcaLoadReport { rps_fractional: f64::NAN, ..report.clone() },
        OrcaLoadReport { application_utilization: f64::NAN, cpu_utilization: 0.0, ..report.clone() },
    ] {
        assert_eq!(options(&[]).weight_of(&silent), None, "{silent:?}");
    }
    let endless = OrcaLoadReport { application_utilization: 1e-300, ..report };
    assert_eq!(options(&[]).weight_of(&endless), Some(u32::MAX));
}

fn hosts(count: u16) -> HostSet {
    let host = |index| {
        let template = HostTemplate { weight: 3, ..HostTemplate::default() };
        Host::new(Address::Ip(([127, 0, 0, 1], 1000 + index).into()), template)
    };
    HostSet::new((0..count).map(host).collect(), Default::default())
}

fn weights(set: &HostSet) -> Vec<u32> {
    set.all.iter().map(|host| host.weight_by_load()).collect()
}

fn reports(set: &HostSet, host: usize, weight: u32, now: u64) {
    let wanted = Wanted { metrics: None, weights: Some(options(&[])) };
    let report = OrcaLoadReport {
        rps_fractional: f64::from(weight),
        cpu_utilization: 1.0,
        ..OrcaLoadReport::default()
    };
    heed(&report, None, Some(&wanted), &set.all[host].shared, now);
}

#[test]
fn weights_come_after_the_blackout_and_go_when_reports_stop() {
    let (set, options, reckoning) = (hosts(4), options(&[]), Reckoning::default());
    let second = 1000;
    let mut now = 5 * second;
    // Nothing is reckoned at the first pick: hosts weigh what config says.
    assert_eq!((reckoning.follow(&set, &options, now), weights(&set)), (0, vec![3; 4]));
    reports(&set, 0, 100, now);
    reports(&set, 1, 400, now);
    now += second;
    assert_eq!((reckoning.follow(&set, &options, now), weights(&set)), (1, vec![1; 4]), "nobody's is valid");
    assert_eq!(reckoning.follow(&set, &options, now), 1, "once a period");
    now += 8 * second;
    assert_eq!((reckoning.follow(&set, &options, now), weights(&set)), (1, vec![1; 4]), "blackout");
    now += second;
    let expected = vec![100, 400, 250, 250];
    assert_eq!((reckoning.follow(&set, &options, now), weights(&set)), (2, expected.clone()), "the median");
    reports(&set, 2, 1000, now);
    reports(&set, 0, 80, now);
    now += second;
    let expected = vec![80, 400, 240, 240];
    assert_eq!((reckoning.follow(&set, &options, now), weights(&set)), (3, expected));
    now += 10 * second;
    assert_eq!((reckoning.follow(&set, &options, now), weights(&set)), (4, vec![80, 400, 1000, 400]));
    // The second was last heard at 5 s.
    now = 186 * second;
    reports(&set, 2, 1000, now);
    assert_eq!((reckoning.follow(&set, &options, now), weights(&set)), (5, vec![80, 540, 1000, 540]));
    reports(&set, 1, 7, now);
    now += 9 * second;
    reckoning.follow(&set, &options, now);
    assert_eq!(weights(&set)[1], 540, "the blackout has begun anew");
    now += second;
    reckoning.follow(&set, &options, now);
    assert_eq!(weights(&set)[1], 7);
}

#[test]
fn picks_follow_the_weights() {
    let (set, reckoning) = (hosts(3), Reckoning::default());
    let options = WeightOptions { blackout: Duration::ZERO, ..options(&[]) };
    let balancing = Arc::new(Balancing::new(LbPolicy::ClientSideWeighted(Box::new(options.clone()))));
    let mut rng = fastrand::Rng::with_seed(7);
    let mut picker = Picker::new(&balancing, &set, 140, &mut rng);
    let mut shares = |picker: &mut Picker| {
        let mut seen = [0i32; 3];
        for _ in 0..700 {
            let ground = Ground { all: &set.all, split: &set, now: 0 };
            seen[picker.pick(ground, &PickContext::default(), &mut rng).expect("a host")] += 1;
        }
        seen
    };
    reckoning.follow(&set, &options, 1000);
    assert!(shares(&mut picker).iter().all(|share| (233..=234).contains(share)));
    for (host, weight) in [100, 200, 400].into_iter().enumerate() {
        reports(&set, host, weight, 1000);
    }
    assert_eq!(reckoning.follow(&set, &options, 2000), 1);
    picker.reweigh();
    let seen = shares(&mut picker);
    assert!(seen.iter().zip([100, 200, 400]).all(|(seen, wanted)| (seen - wanted).abs() <= 1), "{seen:?}");
}

#[test]
fn metrics_are_summed_until_they_are_taken() {
    let names = ["cpu_utilization", "named_metrics.*", "utilization.total", "utilization.absent"];
    let metrics: Box<[Metric]> = names.iter().filter_map(|name| Metric::new(name)).collect();
    assert_eq!((metrics.len(), Metric::new("memory")), (4, None));
    let wanted = Wanted { metrics: Some(metrics), weights: None };
    let host = HostShared::default();
    heed(&example(), Some(&wanted), None, &host, 1);
    let second = OrcaLoadReport { utilization: [("total".to_owned(), 0.25)].into(), ..Default::default() };
    heed(&second, Some(&wanted), None, &host, 2);
    let load = host.load.get().expect("made by the first report");
    let taken: Vec<_> = load.latch().into_iter().map(|(name, sum)| (name, sum.reports, sum.total)).collect();
    let line = |name: &str, reports: u64, total: f64| (Box::from(name), reports, total);
    let expected = [
        line("cpu_utilization", 2, 0.7),
        line("named_metrics.bar", 1, 0.2),
        line("named_metrics.foo", 1, 123.0),
        line("utilization.total", 2, 0.75),
    ];
    assert_eq!(taken, expected);
    assert!(load.latch().is_empty() && load.share().is_none());
}
