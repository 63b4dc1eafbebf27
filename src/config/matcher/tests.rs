use outrigger_control_api::load_value;
use serde_json::{json, Value};

use super::*;
use crate::config::Known;
use crate::telemetry::fixtures::Head;

fn header(config: Value) -> HeaderMatcher {
    let mut config = config;
    config["name"] = "X-H".into();
    let loaded = load_value(&config).unwrap();
    HeaderMatcher::compile(&loaded.message, &mut Problems::new()).unwrap()
}

/// What Envoy 1.40 answers, one digit for each value of `x-h`: absent, then `VALUES`, then the two
/// headers `a` and `b`.
fn answers(config: Value) -> String {
    const VALUES: [&str; 9] = ["a", "A", "", "5", "10", "-1", "a,b", "5x", "aaa"];
    let matcher = header(config);
    let mut heads = vec![Head::new(&[])];
    heads.extend(VALUES.map(|value| Head::new(&[("x-h", value)])));
    heads.push(Head::new(&[("x-h", "a"), ("x-h", "b")]));
    heads.iter().map(|head| if matcher.matches(head) { '1' } else { '0' }).collect()
}

#[test]
fn header_matchers_answer_as_envoy_does() {
    let exact = json!({"exact_match": "a"});
    let empty = json!({"exact_match": ""});
    let text = json!({"string_match": {"exact": ""}});
    let caseless = json!({"string_match": {"exact": "A", "ignore_case": true}});
    let range = json!({"range_match": {"start": "1", "end": "10"}});
    let present = json!({"present_match": true});
    let absent = json!({"present_match": false});
    let none = json!({});
    let regex = json!({"safe_regex_match": {"regex": "a*"}});
    let prefix = json!({"prefix_match": "a"});
    let suffix = json!({"suffix_match": "a"});
    let contains = json!({"contains_match": "a"});
    // Without and with invert_match, then the same with treat_missing_header_as_empty.
    for (config, wanted) in [
        (&exact, ["01000000001", "00111111110", "01000000001", "10111111110"]),
        (&empty, ["01111111111", "00000000000", "11111111111", "00000000000"]),
        (&text, ["00010000000", "01101111111", "10010000000", "01101111111"]),
        (&caseless, ["01100000001", "00011111110", "01100000001", "10011111110"]),
        (&range, ["00001000000", "01110111111", "00001000000", "11110111111"]),
        (&present, ["01111111111", "10000000000", "11111111111", "00000000000"]),
        (&absent, ["10000000000", "01111111111", "00000000000", "11111111111"]),
        (&none, ["01111111111", "10000000000", "11111111111", "00000000000"]),
        (&regex, ["01010000011", "00101111100", "11010000011", "00101111100"]),
        (&prefix, ["01000001011", "00111110100", "01000001011", "10111110100"]),
        (&suffix, ["01000000011", "00111111100", "01000000011", "10111111100"]),
        (&contains, ["01000001011", "00111110100", "01000001011", "10111110100"]),
    ] {
        for (variant, wanted) in wanted.iter().enumerate() {
            let mut config = config.clone();
            config["invert_match"] = (variant % 2 == 1).into();
            config["treat_missing_header_as_empty"] = (variant / 2 == 1).into();
            assert_eq!(answers(config.clone()), *wanted, "{config}");
        }
    }
}

#[test]
fn string_matchers_can_ignore_case() {
    let matcher = |config: Value| {
        let loaded = load_value(&config).unwrap();
        StringMatcher::compile(&loaded.message, &mut Problems::new()).unwrap()
    };
    for (kind, text, wanted) in [
        ("prefix", "ABCd", true),
        ("prefix", "xAbc", false),
        ("suffix", "xaBC", true),
        ("suffix", "bc", false),
        ("contains", "xxABCxx", true),
        ("contains", "xxabxx", false),
        ("exact", "ABC", true),
    ] {
        assert_eq!(
            matcher(json!({kind: "aBc", "ignore_case": true})).matches(text.as_bytes()),
            wanted,
            "{kind} {text}"
        );
        assert!(!matcher(json!({kind: "aBc"})).matches(b"abc"));
        assert!(matcher(json!({kind: "aBc"})).matches(b"aBc"));
    }
}

#[test]
fn query_parameters_are_compared_as_sent() {
    let matching = |config: Value| {
        let mut config = config;
        config["name"] = "q".into();
        let loaded = load_value(&config).unwrap();
        let matcher = QueryParameterMatcher::compile(&loaded.message, &mut Problems::new()).unwrap();
        ["/", "/?q", "/?q=", "/?q=a", "/?q=a%20b", "/?q=&q=a", "/?x=1&q", "/?qq=1", "/?Q=a"]
            .into_iter()
            .filter(|path| matcher.matches(path.as_bytes()))
            .collect::<Vec<_>>()
    };
    let all = ["/?q", "/?q=", "/?q=a", "/?q=a%20b", "/?q=&q=a", "/?x=1&q"];
    assert_eq!(matching(json!({})), all);
    assert_eq!(matching(json!({"present_match": true})), all);
    assert_eq!(matching(json!({"present_match": false})), ["/", "/?qq=1", "/?Q=a"]);
    assert_eq!(matching(json!({"string_match": {"exact": "a b"}})), Vec::<&str>::new());
    assert_eq!(matching(json!({"string_match": {"exact": "a%20b"}})), ["/?q=a%20b"]);
    assert_eq!(matching(json!({"string_match": {"exact": ""}})), ["/?q", "/?q=", "/?q=&q=a", "/?x=1&q"]);
}

#[test]
fn of_a_cookie_the_first_value_counts() {
    let matching = |config: Value| {
        let mut config = config;
        config["name"] = "c".into();
        let loaded = load_value(&config).unwrap();
        let matcher = CookieMatcher::compile(&loaded.message, &mut Problems::new()).unwrap();
        let key = Known::Cookie.into();
        [
            "", "c=v", "b=1;c=v", "c=w; c=v", "c=w|c=v", "b=1|c=v", "c=\"v\"", "C=v", "c =v", "c= v",
            "c=v ; d", "c=v=x", " ; ;c=v", "c;c=v", "c", "c=", "c=\"\"", "c=\"",
        ]
        .into_iter()
        .filter(|cookies| {
            let lines = cookies.split('|').filter(|line| !line.is_empty());
            let head: Vec<_> = lines.map(|line| ("cookie", line)).collect();
            matcher.matches(&Head::new(&head), &key)
        })
        .collect::<Vec<_>>()
    };
    let v = ["c=v", "b=1;c=v", "b=1|c=v", "c=\"v\"", "c=v ; d", " ; ;c=v", "c;c=v"];
    assert_eq!(matching(json!({"string_match": {"exact": "v"}})), v);
    assert_eq!(matching(json!({"string_match": {"exact": ""}})), ["c=", "c=\"\""]);
    let inverted = matching(json!({"string_match": {"safe_regex": {"regex": ".*"}}, "invert_match": true}));
    assert_eq!(inverted, ["", "C=v", "c =v", "c"]);
}

#[test]
fn bad_patterns_are_reported_where_they_stand() {
    let config = json!({"name": "x", "string_match": {"safe_regex": {"regex": "["}}});
    let loaded = load_value(&config).unwrap();
    let mut problems = Problems::new();
    assert!(HeaderMatcher::compile(&loaded.message, &mut problems).is_none());
    assert_eq!(problems.list()[0].path, "string_match.safe_regex.regex");
}

#[test]
fn fractions() {
    let fraction = |numerator, denominator: DenominatorType| {
        let config = FractionalPercent { numerator, denominator: denominator.into() };
        Fraction::of(Some(&config))
    };
    let share = |fraction: Fraction| (0..1_000_000).filter(|random| fraction.holds(*random)).count();
    assert_eq!(share(fraction(25, DenominatorType::Hundred)), 250_000);
    assert_eq!(share(fraction(25, DenominatorType::TenThousand)), 2_500);
    assert_eq!(share(fraction(25, DenominatorType::Million)), 25);
    assert_eq!(share(Fraction::ALL), 1_000_000);
    assert_eq!(share(Fraction::of(None)), 0);
}
