//! `envoy.filters.http.oauth2`: the same browser flows with both, and a small provider. What is random is told by its shape;
//! what one proxy has set the other takes.

mod browser;
mod provider;

use super::bootstrap::{endpoints, Bootstrap};
use super::filters::{filter, host, says};
use super::grpc_service::HTTP2;
use super::{run_side, Side};
use crate::harness::proxy::Kind;
use crate::peers;
use browser::{Browser, Seen};
use provider::Provider;

const PER_ROUTE: &str = "extensions.filters.http.oauth2.v3.OAuth2PerRoute";

fn config(more: &str) -> String {
    format!(
        "config: {{ token_endpoint: {{ uri: 'http://login.test/token', cluster: login, timeout: 3s }}, \
         authorization_endpoint: 'https://login.test/auth?hint=a%20b', \
         redirect_uri: '%REQ(:x-forwarded-proto)%://%REQ(:authority)%/callback', \
         redirect_path_matcher: {{ path: {{ exact: /callback }} }}, signout_path: {{ path: {{ exact: /signout }} }}, \
         credentials: {{ client_id: 'me:you', token_secret: {{ name: token }}, hmac_secret: {{ name: hmac }}{more} }}"
    )
    .replace("%REQ(:x-forwarded-proto)%", "%REQ(x-forwarded-proto)%")
}

fn template(provider: u16) -> String {
    let pass = "pass_through_matcher: [ { name: x-pass, present_match: true } ], deny_redirect_matcher: [ { name: x-deny, present_match: true } ], allow_failed_matcher: [ { name: x-allow, present_match: true } ]";
    let attributes = "cookie_configs: { bearer_token_cookie_config: { same_site: STRICT, path: /app }, oauth_hmac_cookie_config: { same_site: LAX }, oauth_nonce_cookie_config: { same_site: NONE, partitioned: true }, id_token_cookie_config: { path: /id } }";
    let names = "cookie_names: { bearer_token: Bb, oauth_hmac: Hh, oauth_expires: Ee, id_token: Ii, refresh_token: Rr, oauth_nonce: Nn, code_verifier: Vv }";
    let paths = "cookie_configs: { refresh_token_cookie_config: { path: /r, same_site: LAX }, oauth_expires_cookie_config: { path: /e, same_site: STRICT }, code_verifier_cookie_config: { path: /v, same_site: NONE }, oauth_nonce_cookie_config: { path: /n } }";
    let plain =
        config(", cookie_domain: shared.test, cookie_names: { bearer_token: Access, id_token: __Secure-Id }");
    let route = format!(
        "- {{ match: {{ prefix: /own }}, route: {{ cluster: a }}, typed_per_filter_config: {{ {} }} }}\n- {{ match: {{ prefix: / }}, route: {{ cluster: a }} }}\n",
        says("oauth", PER_ROUTE, &format!("{}, stat_prefix: mine, disable_token_encryption: true }}", config("")))
    );
    let all = "- { match: { prefix: / }, route: { cluster: a } }\n";
    let login = format!("{}\n{HTTP2}", endpoints(&[&provider.to_string()]));
    let mut bootstrap = Bootstrap::new().cluster("login", &login);
    for (name, routes, options) in [
        ("main", all, format!("{}, {pass} }}", config(""))),
        (
            "plain",
            all,
            format!(
                "{plain}, {attributes}, auth_type: BASIC_AUTH, disable_token_encryption: true, forward_bearer_token: true, auth_scopes: [ openid, 'a b' ], resources: [ 'https://api.test', two ], default_expires_in: 60s, end_session_endpoint: 'https://login.test/logout', stat_prefix: own }}"
            ),
        ),
        (
            "id",
            all,
            format!(
                "{}, forward_id_token: {{ header: x-id }}, preserve_authorization_header: true, disable_access_token_set_cookie: true, use_refresh_token: false, auth_scopes: [ openid ], end_session_endpoint: 'https://login.test/logout', post_logout_redirect_uri: {{ uri: 'https://%REQ(:authority)%/bye' }}, allowed_redirect_domains: [ '*.test' ], disable_token_encryption: true }}",
                config("")
            ),
        ),
        (
            "names",
            all,
            format!("{}, {paths}, csrf_token_expires_in: 77s, code_verifier_token_expires_in: 88s, default_refresh_token_expires_in: 99s, auth_scopes: [ openid ], use_access_token_expiry_for_id_token_cookie: true, disable_token_encryption: true }}", config(&format!(", {names}"))),
        ),
        (
            "unset",
            all,
            format!(
                "{}, original_request_uri: 'https://%REQ(:authority)%/other?%REQ(:path)%', disable_id_token_set_cookie: true, disable_refresh_token_set_cookie: true, auth_scopes: [ openid ], disable_token_encryption: true }}",
                config("")
            ),
        ),
        ("routes", &route, String::new()),
    ] {
        bootstrap = bootstrap
            .listener(name, "", &host("", routes))
            .filters(name, &filter("oauth", "oauth2.v3.OAuth2", &options));
    }
    let secret = |name: &str, text: &str| {
        format!("  - name: {name}\n    generic_secret: {{ secret: {{ inline_string: {text:?} }} }}\n")
    };
    let secrets =
        format!("  secrets:\n{}{}  clusters:\n", secret("token", "s&cret+1"), secret("hmac", "of cookies"));
    bootstrap.render().replacen("  clusters:\n", &secrets, 1)
}

async fn start(kind: Kind, provider: &Provider) -> Side {
    run_side(kind, &template(provider.port())).await
}

/// A browser's way through a listener, to a login; what it has kept comes back too.
async fn login(browser: &mut Browser<'_>, code: &str, text: &mut String) {
    let first = browser.get("/page?x=1&y=a%20b", "").await;
    *text += &format!("--- begin\n{first}");
    let state = browser.state();
    let back = browser.get(&format!("/callback?code={code}&state={state}"), "").await;
    *text += &format!("--- back with {code}\n{back}");
}

async fn told(side: &Side, provider: &Provider) -> String {
    let _ = provider.take();
    let mut text = String::new();
    for listener in ["main", "plain", "id", "names", "unset", "routes"] {
        text += &format!("====== {listener}\n");
        let prefix = if listener == "routes" { "/own" } else { "" };
        for code in ["good", "few", "none", "text", "list", "kinds", "broken"] {
            let mut browser = Browser::new(side, provider, listener);
            login_at(&mut browser, prefix, code, &mut text).await;
            if code == "good" {
                let page = browser
                    .get(
                        &format!("{prefix}/page"),
                        "Authorization: Bearer forged\r\nx-id: forged\r\nx-envoy-oauth-status: forged\r\n",
                    )
                    .await;
                text += &format!("--- logged in\n{page}");
                let out = browser.get(&format!("{}/signout", ""), "").await;
                text += &format!("--- out\n{out}");
            }
        }
    }
    text += "====== once more\n";
    let mut browser = Browser::new(side, provider, "main");
    login(&mut browser, "good", &mut text).await;
    let again = browser.clone().get("/page", "").await;
    text += &format!("--- again, which makes a browser with two flows\n{again}");
    let kept = browser.kept();
    for (what, path, headers, forget) in [
        ("passes", "/page", "x-pass: 1\r\nAuthorization: mine\r\n", "all"),
        ("denied", "/page", "x-deny: 1\r\n", "all"),
        ("allowed", "/page?x", "x-allow: 1\r\nCookie: a=b\r\n", "all"),
        ("allowed, the callback", "/callback", "x-allow: 1\r\n", "all"),
        ("no code", "/callback?state=x", "", "all"),
        ("no state", "/callback?code=x", "", "all"),
        ("an error", "/callback?error=access_denied&z=1&a=2", "", "all"),
        ("bad state", "/callback?code=x&state=e30", "", "all"),
        ("no state at all", "/callback?code=x&state=!", "", "all"),
        ("signed by nobody", "/page", "", "OauthHMAC"),
        ("no expiry", "/page", "", "OauthExpires"),
        ("refresh", "/page?z", "", "BearerToken"),
        ("callback while logged in", "/callback?code=good&state=x", "", ""),
        ("elsewhere", "/page", "Host: other.test\r\n", ""),
    ] {
        let mut browser = Browser::with(side, provider, "main", &kept);
        browser.forget(forget);
        let seen = browser.get(path, headers).await;
        text += &format!("--- {what}\n{seen}");
    }
    for token in ["old", "keep", "lost", "broken"] {
        let mut browser = Browser::new(side, provider, "main");
        browser.set("RefreshToken", token);
        text += &format!("--- refresh with {token}\n{}", browser.get("/page", "").await);
        let mut browser = Browser::new(side, provider, "main");
        browser.set("RefreshToken", token);
        text += &format!("--- refresh with {token}, denied\n{}", browser.get("/page", "x-deny: 1\r\n").await);
        let mut browser = Browser::new(side, provider, "main");
        browser.set("RefreshToken", token);
        text +=
            &format!("--- refresh with {token}, allowed\n{}", browser.get("/page", "x-allow: 1\r\n").await);
    }
    let mut browser = Browser::new(side, provider, "main");
    browser.get("/page", "").await;
    let state = browser.state();
    for what in ["CodeVerifier", "OauthNonce"] {
        let mut other = browser.clone();
        other.forget(what);
        text += &format!(
            "--- without {what}\n{}",
            other.get(&format!("/callback?code=good&state={state}"), "").await
        );
    }
    let error = browser.get(&format!("/callback?error=no&state={state}"), "").await;
    text += &format!("--- an error of a flow\n{error}");
    for (name, value) in side.proxy.stats().await {
        // What hides tokens in another way, or in several cookies, is not there.
        let others = ["legacy", "token_cookie"].iter().any(|other| name.contains(other));
        if name.contains("oauth_") && !others {
            text += &format!("{name}: {value}\n");
        }
    }
    text
}

async fn login_at(browser: &mut Browser<'_>, prefix: &str, code: &str, text: &mut String) {
    if prefix.is_empty() {
        return login(browser, code, text).await;
    }
    let first = browser.get(&format!("{prefix}/page"), "").await;
    *text += &format!("--- begin\n{first}");
}

#[tokio::test]
async fn browsers_log_in() {
    if !peers::have(&["envoy"]) {
        return;
    }
    let provider = Provider::start().await;
    let (theirs, ours) = (start(Kind::Envoy, &provider).await, start(Kind::Outrigger, &provider).await);
    let (with_envoy, with_us) = (told(&theirs, &provider).await, told(&ours, &provider).await);
    if let Some(shown) = super::set("OUTRIGGER_E2E_SHOW") {
        let _ = std::fs::write(format!("{shown}.envoy"), &with_envoy);
        let _ = std::fs::write(format!("{shown}.outrigger"), &with_us);
    }
    assert!(with_envoy.contains("oauth.logged_in"), "nobody logs in: {with_envoy}");
    assert!(with_envoy == with_us, "\n--- Envoy\n{with_envoy}\n--- Outrigger\n{with_us}");
    // Cookies of one are good for the other.
    for (from, to) in [(&theirs, &ours), (&ours, &theirs)] {
        for listener in ["main", "plain"] {
            let mut browser = Browser::new(from, &provider, listener);
            login(&mut browser, "good", &mut String::new()).await;
            let mut moved = Browser::with(to, &provider, listener, &browser.kept());
            let Seen { status, .. } = moved.look("/page", "").await;
            assert_eq!(status, 200, "{listener}");
            let mut begun = Browser::new(from, &provider, listener);
            begun.get("/page", "").await;
            let state = begun.state();
            let mut ended = Browser::with(to, &provider, listener, &begun.kept());
            let Seen { status, location, .. } =
                ended.look(&format!("/callback?code=good&state={state}"), "").await;
            assert_eq!((status, location.as_str()), (302, "http://t.test/page"), "{listener}");
        }
    }
}
