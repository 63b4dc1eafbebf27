//! What is captured and what is not, seen at a sidecar that counts: flags of `outrigger init`, one after the other, and
//! what is left when they are taken back.

use std::io::{Read, Write};
use std::net::SocketAddr;

use super::mesh::{Mesh, Pod};
use super::server::{Application, ECHO, OTHER};
use super::sidecar::{Plan, Sidecar};
use super::user::as_root;
use crate::tls::certs::Certs;

/// Whether an echo answers.
fn echoes(from: &Pod, to: SocketAddr) -> bool {
    let Ok(mut stream) = from.connect(to) else { return false };
    let mut got = [0; 5];
    stream.write_all(b"ping\n").is_ok() && stream.read_exact(&mut got).is_ok() && &got == b"ping\n"
}

fn connections(pod: &Pod) -> [u64; 2] {
    ["15001", "15006"].map(|port| pod.counter(&format!("listener.[__]_{port}.downstream_cx_total")))
}

#[test]
fn flags_say_what_is_captured() {
    as_root!();
    let mesh = Mesh::new(2);
    let certs = Certs::new();
    let [pod, peer] = mesh.pods.as_slice() else { panic!("two pods") };
    let _sidecar = Sidecar::start(pod, &Plan::PLAIN, &certs);
    let (_own, _theirs) = (Application::start(pod), Application::start(peer));
    let mut wrong = Vec::new();
    // Flags; whether these are captured: out to ECHO and OTHER by IPv4, out to ECHO by IPv6, in to ECHO and OTHER.
    for (flags, expected) in [
        ("", [true, true, true, true, true]),
        ("-o 7005", [true, false, true, true, true]),
        ("-x 10.77.0.2", [false, false, true, true, true]),
        ("-x 10.77.0.0/24,fd77::/64", [false, false, false, true, true]),
        ("-i 10.77.0.0/24", [true, true, false, true, true]),
        ("-i= -q 7005", [false, true, false, true, true]),
        ("-b 7005", [true, true, true, false, true]),
        ("-b= ", [true, true, true, false, false]),
        ("-d 7005,22", [true, true, true, true, false]),
        ("-c eth0", [false, false, false, false, false]),
        ("-c eth+", [false, false, false, false, false]),
        ("--outbound-uids-exclude 0", [false, false, false, true, true]),
        ("--istio-outbound-owner-groups-exclude 0", [false, false, false, true, true]),
        ("--istio-outbound-owner-groups 4,5", [false, false, false, true, true]),
        ("--istio-outbound-owner-groups 0,5", [true, true, true, true, true]),
        ("--drop-invalid", [true, true, true, true, true]),
        ("--cleanup", [false, false, false, false, false]),
    ] {
        pod.init(&flags.split_whitespace().collect::<Vec<_>>());
        let found = [
            (pod, peer.at(false, ECHO), 0),
            (pod, peer.at(false, OTHER), 0),
            (pod, peer.at(true, ECHO), 0),
            (peer, pod.at(false, ECHO), 1),
            (peer, pod.at(false, OTHER), 1),
        ]
        .map(|(from, to, which)| {
            let before = connections(pod)[which];
            let works = echoes(from, to);
            if !works {
                wrong.push(format!("{flags}: {to} does not answer"));
            }
            connections(pod)[which] > before
        });
        if found != expected {
            wrong.push(format!("{flags}: {found:?} and not {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What it prints is what is made, and it takes its environment.
#[test]
fn rules_can_be_read_before_they_are_made() {
    let run = |arguments: &[&str], environment: &[(&str, &str)]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_outrigger"));
        let output = command.arg("init").args(arguments).envs(environment.iter().copied()).output();
        let output = output.expect("to run outrigger init");
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    };
    let (fine, text) =
        run(&["--dry-run"], &[("ISTIO_SERVICE_EXCLUDE_CIDR", "10.9.0.0/16"), ("ENVOY_PORT", "1234")]);
    assert!(fine && text.starts_with("table ip outrigger {\n"), "{text}");
    assert!(text.contains("\t\tip daddr 10.9.0.0/16 return\n"), "{text}");
    assert!(text.contains("\t\tmeta l4proto tcp redirect to :1234\n"), "{text}");
    let (fine, text) = run(&["-x", "10.9.0.0/64"], &[]);
    assert!(!fine && text.contains("--istio-service-exclude-cidr: '10.9.0.0/64'"), "{text}");
}

#[test]
fn without_the_right_to_it_nothing_is_captured() {
    as_root!();
    let mesh = Mesh::new(1);
    let pod = &mesh.pods[0];
    let mut command = pod.program(false, "setpriv");
    command.args([
        "--bounding-set=-net_admin",
        "--inh-caps=-net_admin",
        env!("CARGO_BIN_EXE_outrigger"),
        "init",
    ]);
    let output = command.output().expect("to run outrigger init");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("needs CAP_NET_ADMIN"), "{said}");
}
