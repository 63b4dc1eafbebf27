use clap::Parser;

use super::options::{CaptureFlags, Inbound, List, Options};
use super::rules::{table, Cidr, Family};
use super::*;

#[derive(Parser)]
#[command(no_binary_name = true)]
struct Line {
    #[command(flatten)]
    capture: CaptureFlags,
}

fn options(line: &str) -> Result<Options, String> {
    let line = Line::try_parse_from(line.split_whitespace()).map_err(|error| error.to_string())?;
    Options::new(&line.capture, None)
}

/// The rules of a chain, as nft shows them.
fn rules_of(options: &Options, family: Family, chain: &str) -> Vec<String> {
    let table = table(options, family);
    let chain = table.chains.iter().find(|made| made.name == chain).expect("a chain");
    chain.rules.iter().map(|rule| rule.shown(family)).collect()
}

#[test]
fn everything_is_captured_but_what_the_proxy_sends() {
    let plain = options("").unwrap();
    assert_eq!(
        rules_of(&plain, Family::V4, "inbound"),
        ["meta l4proto tcp tcp dport 15008 return", "meta l4proto tcp redirect to :15006"]
    );
    assert_eq!(
        rules_of(&plain, Family::V4, "outbound"),
        [
            "oifname \"lo\" ip saddr 127.0.0.6 return",
            "meta skuid 1337 goto of_the_proxy",
            "meta skgid 1337 goto of_the_proxy",
            "oifname \"lo\" return",
            "ip daddr 127.0.0.1 return",
            "meta l4proto tcp redirect to :15001",
        ]
    );
    assert_eq!(
        rules_of(&plain, Family::V6, "of_the_proxy"),
        ["oifname \"lo\" ip6 daddr != ::1 meta l4proto tcp tcp dport != 15008 redirect to :15006"]
    );
}

#[test]
fn exceptions_come_before_what_they_except() {
    let line =
        "-u 7,8 -g 9 --proxy-mark 5 -b 80,81 -d 22 -i 10.0.0.0/8,fd00::/8 -x 10.1.0.0/16 -q 443 -o 25 \
                -c eth1,tap+ --istio-outbound-owner-groups-exclude 44 --outbound-uids-exclude 55";
    let some = options(line).unwrap();
    assert_eq!(
        rules_of(&some, Family::V4, "inbound"),
        [
            "iifname \"eth1\" return",
            "iifname \"tap*\" return",
            "meta l4proto tcp tcp dport 15008 return",
            "meta l4proto tcp tcp dport 22 return",
            "meta l4proto tcp tcp dport 80 redirect to :15006",
            "meta l4proto tcp tcp dport 81 redirect to :15006",
        ]
    );
    let outbound = rules_of(&some, Family::V4, "outbound");
    assert_eq!(
        outbound[3..7],
        [
            "meta mark 0x5 goto of_the_proxy",
            "meta skuid 7 goto of_the_proxy",
            "meta skuid 8 goto of_the_proxy",
            "meta skgid 9 goto of_the_proxy",
        ]
    );
    assert_eq!(
        outbound[9..],
        [
            "meta skuid 55 return",
            "meta skgid 44 return",
            "meta l4proto tcp tcp dport 25 return",
            "ip daddr 10.1.0.0/16 return",
            "meta l4proto tcp tcp dport 443 redirect to :15001",
            "meta l4proto tcp ip daddr 10.0.0.0/8 redirect to :15001",
        ]
    );
    let six = rules_of(&some, Family::V6, "outbound");
    assert_eq!(six.last().unwrap(), "meta l4proto tcp ip6 daddr fd00::/8 redirect to :15001");
    let groups = rules_of(&options("--istio-outbound-owner-groups 1,2").unwrap(), Family::V4, "outbound");
    assert!(groups.contains(&"meta skgid != 1 meta skgid != 2 return".to_owned()), "{groups:?}");
}

#[test]
fn tproxy_leaves_packets_as_they_are_and_finds_the_way_back() {
    let tproxy = options("-m tproxy -d 22 -t 7 -r 8").unwrap();
    assert_eq!(tproxy.mode, Inbound::Tproxy);
    assert_eq!(
        rules_of(&tproxy, Family::V4, "inbound"),
        [
            "meta l4proto tcp meta mark 0x7 ct mark set meta mark",
            "meta mark 0x7 return",
            "iifname \"lo\" return",
            "meta l4proto tcp tcp dport 15008 return",
            "meta l4proto tcp tcp dport 22 return",
            "meta l4proto tcp ct state new tproxy to :15006 accept",
            "meta l4proto tcp ct state new reject with tcp reset",
        ]
    );
    let older = rules::without_resets(table(&tproxy, Family::V4)).to_string();
    assert!(older.contains("ct state new drop\n") && !older.contains("reject"), "{older}");
    assert_eq!(
        rules_of(&tproxy, Family::V4, "replies"),
        ["meta l4proto tcp ct mark 0x7 meta mark set ct mark"]
    );
    assert_eq!(
        route::shown(Family::V6, 7, 8),
        "ip -6 rule add fwmark 7 lookup 8\nip -6 route add local ::/0 dev lo table 8\n"
    );
}

#[test]
fn questions_are_captured_where_that_is_wanted() {
    let mut asked = options("--redirect-dns").unwrap();
    asked.nameservers = vec!["10.96.0.10".parse().unwrap(), "fd00::a".parse().unwrap()];
    let found = rules_of(&asked, Family::V4, "outbound");
    let redirected: Vec<_> = found.iter().filter(|rule| rule.contains("15053")).collect();
    assert_eq!(
        redirected,
        [
            "meta l4proto udp udp dport 53 ip daddr 10.96.0.10 redirect to :15053",
            "meta l4proto tcp tcp dport 53 ip daddr 10.96.0.10 redirect to :15053",
        ]
    );
    let all = options("--capture-all-dns").unwrap();
    assert!(rules_of(&all, Family::V6, "outbound")
        .contains(&"meta l4proto udp udp dport 53 redirect to :15053".to_owned()));
}

#[test]
fn what_cannot_be_meant_is_refused() {
    for (line, complaint) in [
        ("-u root", "--proxy-uid: 'root'"),
        ("-d 70000", "--istio-local-exclude-ports: '70000'"),
        ("-i 10.0.0.0/33", "--istio-service-cidr: '10.0.0.0/33'"),
        ("-c a/b", "--istio-exclude-interfaces: 'a/b'"),
        ("-c an-interface-too-long", "--istio-exclude-interfaces"),
        ("-t 0", "must not be 0"),
        ("-p 0", "must not be 0"),
        ("--istio-outbound-owner-groups 1 --istio-outbound-owner-groups-exclude 2", "cannot both"),
        ("-m NAT", "invalid value"),
    ] {
        let error = options(line).unwrap_err();
        assert!(error.contains(complaint), "{line}: {error}");
    }
    let none = options("-b= -i=").unwrap();
    assert_eq!((none.inbound_include, none.outbound_include), (List::Some(vec![]), List::Some(vec![])));
    assert_eq!("10.0.0.1".parse::<Cidr>().unwrap().to_string(), "10.0.0.1");
}

#[test]
fn a_transaction_is_whole_messages_in_brackets() {
    let tables = [table(&options("-m TPROXY").unwrap(), Family::V4)];
    let chains = tables[0].chains.len();
    let rules: usize = tables[0].chains.iter().map(|chain| chain.rules.len()).sum();
    assert_eq!(nft::replace(&tables).len(), 2 + 3 + chains + rules);
    assert_eq!(nft::remove(&tables).len(), 2 + 2);
}
