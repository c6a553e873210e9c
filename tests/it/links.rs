//! Links as they arrive: what mailers, messengers, people, proxies and earlier programs do to them.

use rusqlite::Connection;

use crate::harness::{Folder, Server, create_key, done, fails};

const HOST: &str = "example.com";

struct Site {
    folder: Folder,
    key: String,
    server: Server,
}

impl Site {
    fn start() -> Site {
        let folder = Folder::new();
        let key = create_key(&folder.db(), HOST);
        let server = Server::start(&folder.db());
        Site { folder, key, server }
    }

    fn invite(&self) -> String {
        done(&self.folder.db(), &["invite", HOST]).trim_end().split_once('?').unwrap().1.to_owned()
    }

    /// The page that a target leads to in the end.
    fn follow(&self, target: &str) -> (u16, String) {
        let reply = self.server.get(target);
        let Some(location) = reply.header("location") else { return (reply.status, reply.body) };
        let mut folders: Vec<&str> = target.split('?').next().unwrap().split('/').collect();
        folders.pop();
        let mut rest = location;
        while let Some(after) = rest.strip_prefix("../") {
            folders.pop();
            rest = after;
        }
        let reply = self.server.get(&format!("{}/{rest}", folders.join("/")));
        (reply.status, reply.body)
    }
}

#[test]
fn a_link_that_was_changed_on_its_way_leads_to_its_invite() {
    let site = Site::start();
    let token = site.invite();
    for target in [
        format!("/invite?{token}"),
        format!("/invite?utm_source=newsletter&utm_medium=email&{token}"),
        format!("/invite?{token}&fbclid=IwAR2abcdefghijk"),
        format!("/invite?{token}%20"),
        format!("/invite?%20{token}"),
        format!("/invite?{token}*"),
        format!("/invite?{token})."),
        format!("/invite?%E2%80%8B{token}%C2%A0"),
        format!("/invite?{token}="),
        format!("/invite?t={token}"),
        format!("/invite/?{token}"),
        format!("/invite/{token}"),
        format!("/invite/{token}/"),
        format!("/invite/{token}/register"),
        format!("/invites_page?{token}"),
        format!("/invites_page/?{token}"),
        format!("/invites_page/setup/conversations?{token}"),
        format!("/invites/{token}"),
        format!("/invites/{token}/Siskin-IM"),
        format!("/register?t={token}%20"),
        format!("/register?t={token}*&c=gajim"),
    ] {
        let (status, body) = site.follow(&target);
        assert!(status == 200 && body.contains(&token), "{target}: {status}");
    }
    for target in ["/invite/x", "/invites_page", "/invites/", "/invite/?", "/invite?utm_source=x"] {
        assert_eq!(site.follow(target).0, 404, "{target}");
    }
    let log = site.server.log();
    assert!(!log.contains(&token), "{log}");
}

/// Links are recognised in texts without the marks at their ends, and older tokens may end in one.
#[test]
fn a_token_that_lost_its_last_mark_is_found_where_only_one_goes_on_so() {
    let site = Site::start();
    let conn = Connection::open(site.folder.db()).unwrap();
    let rename = |to: &str| {
        let token = site.invite();
        conn.execute("UPDATE prosody SET key = ?1 WHERE key = ?2", [to, &token]).unwrap();
        conn.execute("UPDATE invited_invite SET token = ?1 WHERE token = ?2", [to, &token]).unwrap();
    };
    for token in ["abcdefgh1-", "abcdefgh2__", "abcdefgh3-", "abcdefgh3_", "abcdefgh4-"] {
        rename(token);
    }
    for (cut, status) in [("abcdefgh1", 200), ("abcdefgh2", 200), ("abcdefgh2_", 200), ("abcdefgh3", 404)] {
        assert_eq!(site.server.get(&format!("/invite?{cut}")).status, status, "{cut}");
    }
    assert!(done(&site.folder.db(), &["show", HOST, "https://example.com/invite?abcdefgh1"]).contains("abcdefgh1-"));
    done(&site.folder.db(), &["revoke", HOST, "abcdefgh4"]);
    assert_eq!(site.server.get("/invite?abcdefgh4").status, 404, "one that has ended is not guessed at");
}

#[test]
fn the_command_line_takes_every_form_of_a_link() {
    let folder = Folder::new();
    create_key(&folder.db(), HOST);
    for options in [&["--contact", "ana", "--register"][..], &["--user", "bob"], &["--contact", "ana"], &[]] {
        let made = done(&folder.db(), &[&["invite", HOST, "--json"], options].concat());
        let made: serde_json::Value = serde_json::from_str(&made).unwrap();
        let [token, uri, url] = ["token", "uri", "url"].map(|name| made[name].as_str().unwrap());
        for form in
            [token, uri, url, &format!("{url}&fbclid=x"), &format!(" <{url}>, "), &format!("https://h/invite/{token}/")]
        {
            let shown = done(&folder.db(), &["show", HOST, form]);
            assert!(shown.contains(uri), "{form}: {shown}");
        }
        done(&folder.db(), &["revoke", HOST, uri]);
        assert!(fails(&folder.db(), 1, &["revoke", HOST, url]).contains("is revoked already"));
    }
}

#[test]
fn a_browser_that_loads_ahead_makes_no_invite_and_counts_no_view() {
    let site = Site::start();
    let token = site.invite();
    let bookmark = format!("/invites_api?key={}&redirect=true", site.key);
    for header in [
        ("Sec-Purpose", "prefetch"),
        ("Sec-Purpose", "prefetch;prerender"),
        ("Purpose", "prefetch"),
        ("X-Purpose", "preview"),
        ("X-Moz", "prefetch"),
    ] {
        let reply = site.server.request("GET", &bookmark, &[header]);
        assert_eq!((reply.status, reply.header("cache-control")), (503, Some("no-store")), "{header:?}");
        assert_eq!(site.server.request("GET", &format!("/invite?{token}"), &[header]).status, 200);
    }
    assert_eq!(done(&site.folder.db(), &["invites", HOST]).lines().count(), 1);
    assert_eq!(site.server.get(&bookmark).status, 303);
    // What was seen goes into the file at the end at the latest.
    let Site { folder, mut server, .. } = site;
    server.signal("TERM");
    server.wait();
    let shown: serde_json::Value =
        serde_json::from_str(&done(&folder.db(), &["show", HOST, &token, "--json"])).unwrap();
    assert_eq!(shown["opened"], 0);
}

#[test]
fn a_key_that_was_pasted_with_a_line_break_works() {
    let site = Site::start();
    for pasted in ["{}%0D%0A", "%20{}", "{}%E2%80%8B", "%EF%BB%BF{}%20"] {
        let query = pasted.replace("{}", &site.key);
        assert_eq!(site.server.get(&format!("/invites_api?key={query}")).status, 201, "{pasted}");
    }
}

/// A web server on the way may replace whatever looks like an e-mail address in a page, unless it is told not to.
#[test]
fn addresses_of_users_are_kept_from_what_hides_email_addresses() {
    let site = Site::start();
    let made = done(&site.folder.db(), &["invite", HOST, "--contact", "ana", "--register"]);
    let token = made.trim_end().split_once('?').unwrap().1;
    let page = site.server.get(&format!("/invite?{token}")).body;
    let (before, rest) = page.split_once("<!--email_off-->").unwrap();
    let (within, after) = rest.split_once("<!--/email_off-->").unwrap();
    assert!(within.contains("ana@example.com") && !before.contains("ana@") && !after.contains('@'), "{page}");
}
