//! `envoy.filters.http.oauth2`: its messages in, what requests are judged by out.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use outrigger_control_api::pb::envoy::extensions::filters::http::oauth2::v3 as pb;
use outrigger_control_api::pb::envoy::r#type::matcher::v3 as matcher;

use super::{bool_or, duration_or};
use crate::config::matcher::{HeaderMatcher, StringMatcher};
use crate::config::problems::Problems;
use crate::config::query::{encode, is_unreserved, Query};
use crate::config::services::{HttpTarget, Retries, ANY_FAILURE};
use crate::config::{Cluster, Directory, HeaderKey};
use crate::http::filters::oauth2::session::{Cookie, Cookies};
use crate::http::filters::oauth2::{ClientAuth, Config, IdTokenHeader, OAuthStats, Secret, Settings};
use crate::telemetry::format::Format;
use crate::telemetry::metrics::Scope;

/// The filter's type.
pub(super) const TYPE: &str = "envoy.extensions.filters.http.oauth2.v3.OAuth2";
/// The type of what a route says to it.
pub(super) const PER_ROUTE: &str = "envoy.extensions.filters.http.oauth2.v3.OAuth2PerRoute";

const WEEK: Duration = Duration::from_secs(604_800);
const FLOW: Duration = Duration::from_secs(600);

/// The filter, which counts below `stats`. `None` when a problem was reported.
pub(super) fn compile(
    config: &pb::OAuth2,
    stats: &Scope,
    clusters: &Directory<Cluster>,
    problems: &mut Problems,
) -> Option<Config> {
    let Some(config) = &config.config else { return Some(Config { settings: None }) };
    let settings = problems.at("config", |problems| settings(config, stats, clusters, problems));
    settings.map(|settings| Config { settings: Some(settings) })
}

/// What a route says. `None` when a problem was reported.
pub(super) fn per_route(
    config: &pb::OAuth2PerRoute,
    clusters: &Directory<Cluster>,
    problems: &mut Problems,
) -> Option<Settings> {
    let Some(config) = &config.config else {
        problems.report_at("config", "is required");
        return None;
    };
    problems.at("config", |problems| settings(config, &Scope::raw(""), clusters, problems))
}

fn settings(
    config: &pb::OAuth2Config,
    stats: &Scope,
    clusters: &Directory<Cluster>,
    problems: &mut Problems,
) -> Option<Settings> {
    use pb::o_auth2_config::AuthType;
    let before = problems.count();
    let auth = match config.auth_type() {
        AuthType::UrlEncodedBody => ClientAuth::Body,
        AuthType::BasicAuth => ClientAuth::Basic,
        AuthType::TlsClientAuth => ClientAuth::Certificate,
        // Refused by the support table.
        AuthType::PrivateKeyJwt => return None,
    };
    if config.token_endpoint.is_none() {
        problems.report_at("token_endpoint", "is required");
    }
    let endpoint = config.token_endpoint.as_ref().and_then(|config| {
        problems.at("token_endpoint", |problems| HttpTarget::compile(config, clusters, problems))
    });
    let retries = problems
        .at("retry_policy", |problems| Retries::compile(config.retry_policy.as_ref(), ANY_FAILURE, problems));
    let authorization = authorization(config, problems);
    let openid = config.auth_scopes.iter().any(|scope| scope == "openid");
    if !config.end_session_endpoint.is_empty() && !openid {
        problems.report_at("end_session_endpoint", "is for OpenID Connect only: auth_scopes lacks openid");
    }
    let forward_id = config.forward_id_token.as_ref().map(|config| IdTokenHeader {
        header: HeaderKey::new(&config.header),
        bearer: config.header.eq_ignore_ascii_case("authorization"),
    });
    let takes_header = [
        config.forward_bearer_token,
        config.preserve_authorization_header,
        forward_id.as_ref().is_some_and(|forward| forward.bearer),
    ];
    if takes_header.iter().filter(|takes| **takes).count() > 1 {
        let why = "at most one of forward_bearer_token, preserve_authorization_header and forward_id_token may be about the authorization header";
        problems.report_at("forward_bearer_token", why);
    }
    let format = |text: &str, field: &str, problems: &mut Problems| match Format::parse(text) {
        Ok(format) => Some(format),
        Err(error) => {
            problems.report_at(field, error);
            None
        }
    };
    let redirect_uri = format(&config.redirect_uri, "redirect_uri", problems);
    let original = match config.original_request_uri.as_str() {
        "" => None,
        text => format(text, "original_request_uri", problems),
    };
    use pb::post_logout_redirect_uri::Config as AfterLogout;
    let after = config.post_logout_redirect_uri.as_ref().and_then(|config| config.config.as_ref());
    let after_logout = match after {
        Some(AfterLogout::Uri(uri)) => format(uri, "post_logout_redirect_uri.uri", problems),
        _ => None,
    };
    let callback = path(config.redirect_path_matcher.as_ref(), "redirect_path_matcher", problems);
    let signout = path(config.signout_path.as_ref(), "signout_path", problems);
    let mut headers = |list: &[_], field: &str| HeaderMatcher::compile_all(list, field, problems);
    let (pass, deny, allow_failed) = (
        headers(&config.pass_through_matcher, "pass_through_matcher"),
        headers(&config.deny_redirect_matcher, "deny_redirect_matcher"),
        headers(&config.allow_failed_matcher, "allow_failed_matcher"),
    );
    let mut time = |value, field, default| duration_or(value, default, field, problems);
    let expires = time(&config.default_expires_in, "default_expires_in", Duration::ZERO);
    let refresh_expires =
        time(&config.default_refresh_token_expires_in, "default_refresh_token_expires_in", WEEK);
    let csrf_expires = time(&config.csrf_token_expires_in, "csrf_token_expires_in", FLOW);
    let verifier_expires =
        time(&config.code_verifier_token_expires_in, "code_verifier_token_expires_in", FLOW);
    let credentials = config.credentials.as_ref();
    let (client_secret, hmac_secret) = secrets(credentials, auth, problems);
    let mut resources = Vec::new();
    for resource in &config.resources {
        resources.extend_from_slice(b"&resource=");
        encode(&mut resources, resource.as_bytes(), is_unreserved);
    }
    (problems.count() == before).then_some(())?;
    let scope = match config.stat_prefix.trim_end_matches('.') {
        "" => stats.clone(),
        prefix => stats.sub(prefix),
    };
    Some(Settings {
        endpoint: endpoint?,
        retries,
        authorization: authorization.into(),
        resources: resources.into(),
        end_session: (!config.end_session_endpoint.is_empty())
            .then(|| config.end_session_endpoint.as_str().into()),
        after_logout,
        untold_logout: matches!(after, Some(AfterLogout::Disabled(true))),
        client_id: credentials?.client_id.as_str().into(),
        client_secret,
        hmac_secret: hmac_secret?,
        auth,
        redirect_uri: redirect_uri?,
        callback: callback?,
        signout: signout?,
        original,
        domains: config.allowed_redirect_domains.iter().map(|domain| domain.as_str().into()).collect(),
        pass: pass?.into(),
        deny: deny?.into(),
        allow_failed: allow_failed?.into(),
        forward_bearer: config.forward_bearer_token,
        forward_id,
        preserve: config.preserve_authorization_header,
        refresh: bool_or(config.use_refresh_token, true),
        expires,
        refresh_expires,
        csrf_expires,
        verifier_expires,
        id_expires_with_access: config.use_access_token_expiry_for_id_token_cookie,
        unset: [
            config.disable_access_token_set_cookie,
            config.disable_id_token_set_cookie,
            config.disable_refresh_token_set_cookie,
        ],
        plain: config.disable_token_encryption,
        cookies: cookies(config),
        stats: OAuthStats::new(&scope),
    })
}

/// The client's secret, unless a certificate stands for it, and that of cookies.
fn secrets(
    credentials: Option<&pb::OAuth2Credentials>,
    auth: ClientAuth,
    problems: &mut Problems,
) -> (Option<Secret>, Option<Secret>) {
    use pb::o_auth2_credentials::TokenFormation;
    problems.at("credentials", |problems| {
        let Some(credentials) = credentials else {
            problems.report("is required");
            return (None, None);
        };
        let mut want = |config, field: &str| {
            let place: Secret = Arc::new(OnceLock::new());
            problems.at(field, |problems| problems.want_secret(config, &place));
            place
        };
        let client = match &credentials.token_secret {
            Some(config) if auth != ClientAuth::Certificate => Some(want(config, "token_secret")),
            _ => None,
        };
        let formation = credentials.token_formation.as_ref();
        let hmac = formation.map(|TokenFormation::HmacSecret(config)| want(config, "hmac_secret"));
        if client.is_none() && auth != ClientAuth::Certificate {
            problems.report_at("token_secret", "is required");
        }
        (client, hmac)
    })
}

/// The endpoint where users log in, with what is the same in all flows.
fn authorization(config: &pb::OAuth2Config, problems: &mut Problems) -> Vec<u8> {
    let endpoint = config.authorization_endpoint.as_str();
    let rest = endpoint.strip_prefix("http://").or_else(|| endpoint.strip_prefix("https://"));
    let Some(rest) = rest.filter(|rest| !rest.is_empty() && !rest.starts_with(['/', '?', '#'])) else {
        problems.report_at("authorization_endpoint", format_args!("{endpoint:?} is no absolute URL"));
        return Vec::new();
    };
    // A URL has a path.
    let url = match rest.find(['/', '?']) {
        Some(at) if rest.get(at..).is_some_and(|rest| rest.starts_with('/')) => endpoint.to_owned(),
        Some(_) => endpoint.replacen('?', "/?", 1),
        None => format!("{endpoint}/"),
    };
    let scopes = match &*config.auth_scopes {
        [] => "user".to_owned(),
        scopes => scopes.join(" "),
    };
    let mut scope = Vec::new();
    encode(&mut scope, scopes.as_bytes(), is_unreserved);
    let client = config.credentials.as_ref().map_or("", |credentials| &credentials.client_id);
    let mut query = Query::raw(url.as_bytes());
    query.set(b"client_id", client.as_bytes());
    query.set(b"response_type", b"code");
    query.set(b"scope", &scope);
    query.written()
}

fn path(
    config: Option<&matcher::PathMatcher>,
    field: &str,
    problems: &mut Problems,
) -> Option<StringMatcher> {
    // What is missing breaks a field rule.
    let matcher::path_matcher::Rule::Path(config) = config?.rule.as_ref()?;
    problems.at(format_args!("{field}.path"), |problems| StringMatcher::compile(config, problems))
}

fn cookies(config: &pb::OAuth2Config) -> Cookies {
    use pb::cookie_config::SameSite;
    let names = config.credentials.as_ref().and_then(|credentials| credentials.cookie_names.as_ref());
    let empty = pb::CookieConfigs::default();
    let configs = config.cookie_configs.as_ref().unwrap_or(&empty);
    let cookie = |name: Option<&String>, default: &str, config: &Option<pb::CookieConfig>| {
        let same_site = config.as_ref().map_or(SameSite::Disabled, pb::CookieConfig::same_site);
        let same_site = match same_site {
            SameSite::Disabled => "",
            SameSite::Strict => ";SameSite=Strict",
            SameSite::Lax => ";SameSite=Lax",
            SameSite::None => ";SameSite=None",
        };
        let partitioned = config.as_ref().is_some_and(|config| config.partitioned);
        let path = config.as_ref().map_or("", |config| &config.path);
        Cookie {
            name: name.filter(|name| !name.is_empty()).map_or(default, |name| name).into(),
            path: if path.is_empty() { "/" } else { path }.into(),
            tail: [same_site, if partitioned { ";Partitioned" } else { "" }].concat().into(),
        }
    };
    let domain = config.credentials.as_ref().map_or("", |credentials| &credentials.cookie_domain);
    Cookies {
        access: cookie(
            names.map(|all| &all.bearer_token),
            "BearerToken",
            &configs.bearer_token_cookie_config,
        ),
        id: cookie(names.map(|all| &all.id_token), "IdToken", &configs.id_token_cookie_config),
        refresh: cookie(
            names.map(|all| &all.refresh_token),
            "RefreshToken",
            &configs.refresh_token_cookie_config,
        ),
        hmac: cookie(names.map(|all| &all.oauth_hmac), "OauthHMAC", &configs.oauth_hmac_cookie_config),
        expires: cookie(
            names.map(|all| &all.oauth_expires),
            "OauthExpires",
            &configs.oauth_expires_cookie_config,
        ),
        nonce: cookie(names.map(|all| &all.oauth_nonce), "OauthNonce", &configs.oauth_nonce_cookie_config),
        verifier: cookie(
            names.map(|all| &all.code_verifier),
            "CodeVerifier",
            &configs.code_verifier_cookie_config,
        ),
        domain: domain.into(),
    }
}
