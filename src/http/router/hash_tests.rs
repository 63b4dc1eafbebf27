use super::*;
use crate::http::fields::Fields;
use crate::http::head::RequestHead;
use crate::telemetry::stream_info::Protocol;

fn request(path: &str, fields: &[(&str, &str)]) -> RequestHead {
    let nothing = Default::default;
    let mut head = RequestHead::new(Fields::recycled(), Protocol::Http11, nothing(), nothing(), nothing());
    head.set_path(path.as_bytes());
    for (name, value) in fields {
        head.fields.push(name.as_bytes(), value.as_bytes());
    }
    head
}

fn client() -> Client {
    let remote = Some(([10, 0, 0, 9], 1234).into());
    Client { address: remote, remote, local: Some(([127, 0, 0, 1], 80).into()) }
}

fn policy(input: HashInput) -> HashPolicy {
    HashPolicy { input, terminal: false }
}

fn of(policies: &[HashPolicy], request: &RequestHead) -> Hashed {
    Hashed::of_request(policies, request, &client(), None)
}

fn by_header(name: &str) -> HashPolicy {
    policy(HashInput::Header(HeaderKey::new(name), None))
}

#[test]
fn policies_are_combined_by_turning() {
    let request = request("/?a=1&b", &[("x-user", "u")]);
    let user = xxh64(b"u", 0);
    let query = |name: &str| policy(HashInput::QueryParameter(name.into()));
    assert_eq!(of(&[by_header("x-user")], &request).hash, Some(user));
    assert_eq!(of(&[by_header("x-none")], &request).hash, None);
    let both = user.rotate_left(1) ^ xxh64(b"1", 0);
    assert_eq!(of(&[by_header("x-user"), by_header("x-none"), query("a")], &request).hash, Some(both));
    assert_eq!(of(&[query("b")], &request).hash, Some(xxh64(b"", 0)));
    assert_eq!(of(&[query("c")], &request).hash, None);
    let ip = xxh64(b"10.0.0.9", 0);
    let terminal = HashPolicy { terminal: true, ..by_header("x-none") };
    assert_eq!(of(&[terminal, policy(HashInput::SourceIp)], &request).hash, Some(ip), "nothing to stop at");
    let terminal = HashPolicy { terminal: true, ..by_header("x-user") };
    assert_eq!(of(&[terminal, policy(HashInput::SourceIp)], &request).hash, Some(user));
}

#[test]
fn the_order_of_a_headers_values_does_not_matter() {
    let one = request("/", &[("x-user", "a"), ("x-user", "b")]);
    let other = request("/", &[("x-user", "b"), ("x-user", "a")]);
    let expected = Some(xxh64(b"b", xxh64(b"a", 0)));
    assert_eq!(of(&[by_header("x-user")], &one).hash, expected);
    assert_eq!(of(&[by_header("x-user")], &other).hash, expected);
}

#[test]
fn a_cookie_is_made_once_for_a_connection() {
    let cookie = |ttl: Option<u64>, path: Option<&str>| {
        policy(HashInput::Cookie(Box::new(HashCookie {
            name: "session".into(),
            ttl: ttl.map(std::time::Duration::from_secs),
            path: path.map(Into::into),
            attributes: [("SameSite".into(), "Lax".into()), ("Secure".into(), "".into())].into(),
        })))
    };
    let with = request("/", &[("cookie", "a=b; session=\"s\"")]);
    let hashed = of(&[cookie(Some(9), None)], &with);
    assert_eq!((hashed.hash, hashed.cookies.len()), (Some(xxh64(b"s", 0)), 0));
    let without = request("/", &[]);
    assert_eq!(of(&[cookie(None, None)], &without).hash, None);
    let hashed = of(&[cookie(Some(9), Some("/p"))], &without);
    let value = format!("{:016x}", xxh64(b"10.0.0.9:1234127.0.0.1:80", 0));
    assert_eq!(hashed.hash, Some(xxh64(value.as_bytes(), 0)));
    let expected = format!("session=\"{value}\"; Max-Age=9; Path=/p; SameSite=Lax; Secure; HttpOnly");
    assert_eq!(String::from_utf8(hashed.cookies[0].clone()).unwrap(), expected);
    let hashed = of(&[cookie(Some(0), None)], &without);
    assert!(!String::from_utf8(hashed.cookies[0].clone()).unwrap().contains("Max-Age"));
}
