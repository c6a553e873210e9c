//! The public address: reached, with good TLS, leading to this very file through whatever is before us.

use std::time::Instant;

use super::{CERTIFICATE_SECS, PATIENCE, Report, Settings, Trial, clock};
use crate::client::CLIENT_HEADER;
use crate::error::Result;
use crate::host::Host;
use crate::http_client::{Base, Client, Reply};
use crate::log::utc;
use crate::wire::Certificate;

/// Where we are told that we are: the host's own address unless the setting `url` says otherwise.
struct Web<'a> {
    base: Base,
    host: &'a Host,
    deadline: Instant,
    /// Whether guests see none of our pages: then nothing here is worse than a warning.
    has_page_elsewhere: bool,
    /// The way is known to be safe, and must go on being so: invites are shown.
    is_safe: bool,
}

impl Web<'_> {
    fn bad(&self, report: &mut Report, check: &'static str, text: impl AsRef<str>, help: impl AsRef<str>) {
        match self.has_page_elsewhere {
            true => report.warning(check, text, help),
            false => report.error(check, text, help),
        }
    }

    fn request(&self, method: &str, target: &str) -> Result<Reply> {
        Client::connect(&self.base, self.deadline, self.is_safe)?.request(method, target)
    }
}

/// Asks for what guests and programs ask for.
pub fn check(report: &mut Report, host: &Host, settings: &Settings, trial: Option<&Trial>, now: i64) {
    let url = settings.url.clone().unwrap_or_else(|| format!("https://{}", host.ascii()));
    let deadline = Instant::now() + PATIENCE;
    let has_page_elsewhere = settings.page.is_some();
    if let (true, Some(trial)) = (has_page_elsewhere, trial) {
        check_page_elsewhere(report, host, trial, deadline);
    }
    let Some(base) = Base::parse(&url) else {
        return report.error(
            "url",
            format!("the setting `url` can't be read: {url}"),
            format!("`invited set {host} url URL`"),
        );
    };
    let mut web = Web { base, host, deadline, has_page_elsewhere, is_safe: false };
    let Some((reply, is_safe)) = check_way(report, &web, now) else { return };
    web.is_safe = is_safe;
    clock::check_date(report, reply.header("date"), now);
    if !check_api(report, &web, &reply) {
        return;
    }
    check_redirect(report, &web);
    let Some(trial) = trial else { return };
    match web.request("GET", &format!("/invite?{}", trial.made_up)) {
        Ok(reply) => check_unknown(report, &web, &reply),
        Err(error) => {
            web.bad(report, "unknown", format!("the page of a token that nobody has made: {error}"), LOG_HELP)
        }
    }
    if !web.is_safe {
        return report.warning("page", "no invite is shown over such a connection", "mend the TLS first");
    }
    let target = format!("/invite?{}", trial.token);
    match web.request("GET", &target).and_then(|get| Ok((get, web.request("HEAD", &target)?))) {
        Ok((get, head)) => {
            check_page(report, &web, trial, &get, &head);
            check_proxy(report, &web, get.header(&CLIENT_HEADER.to_ascii_lowercase()));
        }
        Err(error) => web.bad(report, "page", format!("the page of an invite: {error}"), LOG_HELP),
    }
    match web.request("GET", &format!("/register?t={}", trial.token)) {
        Ok(reply) => check_form(report, &web, settings.register, trial, &reply),
        Err(error) => web.bad(report, "form", format!("the form of /register: {error}"), LOG_HELP),
    }
}

const LOG_HELP: &str = "the logs of the web server and of `invited serve` say more";

const UPSTREAM_HELP: &str = "start `invited serve`, and see that the web server passes requests on to where it listens";

/// Whether somebody answers there, and whether a token is safe on the way; none where nobody does. The answer is that of the
/// API without a key.
fn check_way(report: &mut Report, web: &Web, now: i64) -> Option<(Reply, bool)> {
    let (base, host) = (&web.base, web.host);
    let client = match Client::connect(base, web.deadline, false) {
        Ok(client) => client,
        Err(error) => {
            let help = format!(
                "start the web server and `invited serve`, open its port, or `invited set {host} url URL`; where it is reached from \
                 outside and not from here, name it in /etc/hosts"
            );
            web.bad(report, "url", format!("{base} can't be reached from this machine: {error}"), help);
            return None;
        }
    };
    let (is_local, certificate) = (client.is_local(), client.certificate(now, now + CERTIFICATE_SECS));
    let reply = match client.request("GET", "/invites_api") {
        Ok(reply) => reply,
        Err(error) => {
            web.bad(report, "url", format!("{base} does not answer as a web server does: {error}"), LOG_HELP);
            return None;
        }
    };
    if base.tls || is_local {
        report.ok("url", format!("{base} is reached"));
    } else {
        let help = format!("let the web server speak TLS, and `invited set {host} url https://…`");
        report.warning(
            "url",
            format!("{base} is reached without TLS: who is in between reads tokens and passwords"),
            help,
        );
    }
    let is_safe = if base.tls { check_certificate(report, web, certificate) } else { is_local };
    Some((reply, is_safe))
}

/// Whether browsers take the certificate.
fn check_certificate(report: &mut Report, web: &Web, certificate: Result<Option<Certificate>>) -> bool {
    let base = &web.base;
    match certificate {
        Ok(Some(Certificate::Good)) => report.ok("https", format!("its certificate is good for {}", base.host)),
        Ok(Some(Certificate::Ends(end))) => {
            let text = format!("the certificate of {base} is good until {} only", utc(end));
            report.warning("https", text, "renew it, and see that the web server takes the new one up");
        }
        Ok(Some(Certificate::Bad(why))) => {
            let help = format!(
                "give the web server one for {}, with all certificates between it and the authority's",
                base.host
            );
            web.bad(report, "https", format!("the certificate of {base} is not good for {}: {why}", base.host), help);
            return false;
        }
        Ok(None) => return false,
        Err(error) => {
            let help = "see to it that this machine has a list of authorities";
            report.warning("https", format!("the certificate of {base} can't be judged: {error}"), help);
            return false;
        }
    }
    true
}

/// Whether the API is ours: without a key it says 403, for any page to read. False where the rest makes no sense.
fn check_api(report: &mut Report, web: &Web, reply: &Reply) -> bool {
    let base = &web.base;
    match reply.status {
        403 if reply.headers("access-control-allow-origin").any(|value| value == "*") => {
            report.ok("api", "/invites_api answers 403 without a key");
        }
        300..=399 => {
            let help = format!("`invited set {} url` to where it leads, without the path /invites_api", web.host);
            web.bad(report, "redirect", format!("{base} leads on to {}", location(reply)), help);
            return false;
        }
        502..=504 => {
            let text = format!("the web server at {base} does not reach `invited serve`: it answers {}", reply.status);
            web.bad(report, "api", text, UPSTREAM_HELP);
            return false;
        }
        status => {
            let text =
                format!("/invites_api at {base} answers {status} without a key, which is not `invited`'s answer (403)");
            let help = "let the web server pass /invites_api and all below on to `invited serve`, see the README";
            web.bad(report, "api", text, help);
        }
    }
    true
}

/// Where an answer leads, without a query: it may hold a token.
fn location(reply: &Reply) -> &str {
    let location = reply.header("location").unwrap_or("nowhere");
    location.split(['?', '#']).next().unwrap_or_default()
}

/// Whether who types the address without `https` gets there.
fn check_redirect(report: &mut Report, web: &Web) {
    if !web.base.tls || !web.base.has_usual_port() {
        return;
    }
    let plain = web.base.without_tls();
    // Where nobody listens, nobody is led astray.
    let Ok(reply) = Client::connect(&plain, web.deadline, false).and_then(|client| client.request("HEAD", "/invite"))
    else {
        return;
    };
    match judge_redirect(&reply) {
        None => report.ok("redirect", format!("{plain} leads on to https")),
        Some(what) => report.warning(
            "redirect",
            format!("{plain} {what}, so that who leaves the s out sends a token that anybody on the way can read"),
            "let the web server answer it with 301 to https",
        ),
    }
}

fn judge_redirect(reply: &Reply) -> Option<String> {
    match reply.status {
        300..=399 if location(reply).starts_with("https://") => None,
        300..=399 => Some(format!("leads on to {}", location(reply))),
        status => Some(format!("answers {status}")),
    }
}

/// Whether an answer is a page of ours.
fn is_ours(reply: &Reply) -> bool {
    reply.headers("content-security-policy").any(|value| value.starts_with("default-src 'none'; style-src 'sha256-"))
}

fn check_page(report: &mut Report, web: &Web, trial: &Trial, get: &Reply, head: &Reply) {
    let at = format!("the page of an invite at {}/invite", web.base);
    let pass = "let the web server pass /invite and all below on to `invited serve`, see the README";
    match get.status {
        200 if is_ours(get) && get.text().contains(&trial.token) => {}
        200 => return web.bad(report, "page", format!("{at} is another program's"), pass),
        404 if is_ours(get) => {
            let help = "give all of them the same --db FILE, see the unit of `invited serve`";
            return web.bad(report, "page", format!("{at} is not found: that `invited serve` has another file"), help);
        }
        404 if get.text().contains("There is nothing at this address") => {
            let help = "the path of `url` must be taken off by the web server, or be left out of the setting";
            return web.bad(
                report,
                "page",
                format!("{at} is not found: `invited serve` is asked for another path"),
                help,
            );
        }
        300..=399 => {
            let help = format!("`invited set {} url` to where it leads", web.host);
            return web.bad(report, "redirect", format!("{at} leads on to {}", location(get)), help);
        }
        429 => {
            return report.warning("page", format!("{at}: too many unknown tokens came from here"), "wait ten minutes");
        }
        502..=504 => return web.bad(report, "page", format!("{at} answers {}", get.status), UPSTREAM_HELP),
        status => return web.bad(report, "page", format!("{at} answers {status}"), pass),
    }
    let mut lost = Vec::new();
    if head.status != 200 {
        lost.push(format!("HEAD answers {}", head.status));
    }
    let link = format!("<{}>; rel=\"alternate\"", trial.uri);
    if !head.headers("link").any(|value| value == link) {
        lost.push("the header Link is not there".to_owned());
    }
    let cors: Vec<&str> = head.headers("access-control-allow-origin").collect();
    if cors != ["*"] {
        lost.push(format!("the header Access-Control-Allow-Origin is not * alone ({})", cors.len()));
    }
    if !get.headers("cache-control").chain(head.headers("cache-control")).all(|value| value == "no-store")
        || head.header("cache-control").is_none()
    {
        lost.push("the header Cache-Control is not no-store".to_owned());
    }
    if lost.is_empty() {
        report.ok("page", format!("{at} is ours, and of this file"));
    } else {
        let help = "let the web server pass on methods and headers as they are, and add none of these";
        web.bad(report, "page", format!("{at} has changed on its way: {}", lost.join("; ")), help);
    }
}

/// Whether `invited serve` knows the addresses of its clients: it says what it knows of ours. Where it does not, tries are not
/// counted and fail2ban bans nobody; where it takes the address of the web server for that of all, it counts all as one.
fn check_proxy(report: &mut Report, web: &Web, client: Option<&str>) {
    let base = &web.base;
    let says = "let the web server set X-Forwarded-For to the client's address, as `invited setup` writes it, and start \
                `invited serve` with --trust-proxy";
    let (text, help) = match client {
        Some("forwarded") => return report.ok("proxy", format!("the web server at {base} tells the client's address")),
        // It speaks no TLS itself, so that another program does.
        Some("direct") if base.tls => ("`invited serve` takes the web server's address for that of all clients", says),
        Some("local") if base.tls => ("the web server does not tell the client's address", says),
        Some("direct" | "local") => return report.ok("proxy", format!("no web server is seen before {base}")),
        Some("untrusted") => (
            "`invited serve` does not believe the web server, which tells the client's address",
            "start `invited serve` with --trust-proxy, where nobody but the web server can reach it",
        ),
        Some("far") => (
            "`invited serve` does not believe the web server, whose address is outside of all private networks",
            "let it reach `invited serve` over a private network, such as a VPN: --trust-proxy believes no others",
        ),
        Some("untold") => ("the web server tells no address of the client that can be read", says),
        // An older `invited serve`, or a web server that takes the header out.
        _ => return,
    };
    report.warning("proxy", format!("{base}: {text}"), help);
}

fn check_unknown(report: &mut Report, web: &Web, reply: &Reply) {
    match reply.status {
        404 => report.ok("unknown", "the page of a token that nobody has made is not found"),
        429 => report.warning("unknown", "too many unknown tokens came from here", "wait ten minutes"),
        status => web.bad(
            report,
            "unknown",
            format!("the page of a token that nobody has made answers {status} in place of 404"),
            "let the web server pass /invite on to `invited serve`, and its answers back as they are",
        ),
    }
}

fn check_form(report: &mut Report, web: &Web, is_open: bool, trial: &Trial, reply: &Reply) {
    let is_form = is_ours(reply) && reply.text().contains(&trial.token);
    match (is_open, reply.status) {
        (true, 200) if is_form => report.ok("form", "the form of /register is ours"),
        (false, 303) => report.ok("form", "/register leads back to the invite, as the setting `register` is off"),
        (_, status) => web.bad(
            report,
            "form",
            format!("/register at {} is not ours: it answers {status}", web.base),
            "let the web server pass /register on to `invited serve`, see the README",
        ),
    }
}

/// A page elsewhere, which the setting `page` names: somebody must answer there.
fn check_page_elsewhere(report: &mut Report, host: &Host, trial: &Trial, deadline: Instant) {
    // The server of the page hears of the invite as it would of any other; what comes after `#` stays in the browser.
    let address = trial.url.split('#').next().unwrap_or_default();
    let (start, query) = address.split_once('?').map_or((address, None), |(start, query)| (start, Some(query)));
    let at = start
        .split("://")
        .nth(1)
        .and_then(|rest| Some(start.len() - rest.len() + rest.find('/')?))
        .unwrap_or(start.len());
    let (base, path) = start.split_at(at);
    let target = format!(
        "{}{}",
        if path.is_empty() { "/" } else { path },
        query.map_or_else(String::new, |query| format!("?{query}"))
    );
    let reply = match Base::parse(base) {
        Some(base) => Client::connect(&base, deadline, true).and_then(|client| client.request("GET", &target)),
        None => return,
    };
    let help = format!("`invited set {host} page ADDRESS`, or `invited unset {host} page` for our own");
    match reply {
        Ok(reply) if reply.status < 400 => {
            report.ok("elsewhere", format!("the page at {base}, which the setting `page` names, is there"))
        }
        Ok(reply) => report.error(
            "elsewhere",
            format!("the page at {base}, which the setting `page` names, answers {}", reply.status),
            help,
        ),
        Err(error) => {
            report.error("elsewhere", format!("the page at {base}, which the setting `page` names: {error}"), help)
        }
    }
}
