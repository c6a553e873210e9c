//! The apps that guests are shown: a list embedded in the binary, and which of them fit the guest's device.
//!
//! Names, platforms, links and abilities are facts about the apps; the tiles are drawn from name and colour. Knows nothing
//! of invites.

use std::sync::Arc;

use super::lang::Catalogue;
use crate::http::Request;
use crate::json;

/// Every platform, in the order in which they are shown.
pub const PLATFORMS: [&str; 7] = ["android", "ios", "macos", "windows", "linux", "haiku", "web"];

/// The id of the host's own web client, see the setting `web-client`.
pub const WEB_CLIENT: &str = "web-client";

const EMBEDDED: &str = include_str!("apps.json");

/// An app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct App {
    /// Its name in addresses and settings: small letters, digits and hyphens.
    pub id: String,
    /// Its name for people.
    pub name: String,
    /// The colour of its tile, as `#rrggbb`.
    pub colour: String,
    /// Where it runs: words of [`PLATFORMS`].
    pub platforms: Vec<String>,
    /// Whether it can open invites by itself (XEP-0445).
    pub preauth: bool,
    /// Its home page.
    pub link: String,
    /// Where to get it.
    pub buttons: Vec<Button>,
    /// An address at which a new user can log in; `{jid}`, `{username}` and `{host}` stand for the parts of the user's own.
    pub login_link_format: Option<String>,
}

/// One place to get an app from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Button {
    /// The name of the place.
    pub text: String,
    /// The address.
    pub url: String,
    /// An address that hands the invite to the app through its installation; `{uri}` stands for the invite's URI.
    pub magic_link_format: Option<String>,
}

impl App {
    /// Whether one of its buttons hands the invite on.
    pub fn is_magic(&self) -> bool {
        self.buttons.iter().any(|button| button.magic_link_format.is_some())
    }

    /// One or two letters for its tile.
    pub fn letters(&self) -> String {
        self.name.chars().filter(|c| c.is_alphanumeric()).take(1).flat_map(char::to_uppercase).collect()
    }
}

/// Apps for one platform.
pub struct Group<'a> {
    platform: &'static str,
    /// In the order of the host.
    pub apps: Vec<&'a App>,
}

impl Group<'_> {
    /// What stands above them.
    pub fn title(&self, t: &Catalogue) -> String {
        t.text_with("apps.here", &[("platform", t.text(&format!("platform.{}", self.platform)))])
    }
}

/// The embedded list.
pub fn embedded() -> Vec<App> {
    read(EMBEDDED).unwrap_or_default()
}

/// Reads a list of apps, field by field; the error names the app and the field.
pub fn read(text: &str) -> Result<Vec<App>, String> {
    let value = json::parse(text)?;
    let list = value.as_array().ok_or("it must be a JSON array of apps")?;
    let mut apps: Vec<App> = Vec::with_capacity(list.len());
    for (at, value) in list.iter().enumerate() {
        let app = read_app(value).map_err(|why| format!("app {}: {why}", at + 1))?;
        if apps.iter().any(|other| other.id == app.id) {
            return Err(format!("app {}: the id '{}' is there twice", at + 1, app.id));
        }
        apps.push(app);
    }
    Ok(apps)
}

fn read_app(value: &json::Json) -> Result<App, String> {
    let object = value.as_object().ok_or("it must be an object")?;
    let known = ["id", "name", "colour", "platforms", "preauth", "link", "buttons", "login_link_format"];
    if let Some(unknown) = object.keys().find(|key| !known.contains(&key.as_str())) {
        return Err(format!("there is no field '{}' (there are {})", unknown.escape_debug(), known.join(", ")));
    }
    let text = |field: &str, max: usize| {
        let text = value[field].as_str().filter(|text| !text.is_empty() && text.chars().count() <= max);
        let text = text.filter(|text| !text.chars().any(crate::key::is_control));
        text.map(str::to_owned).ok_or(format!("{field} must be a text of 1 to {max} characters"))
    };
    let id = text("id", 40)?;
    if !id.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-') {
        return Err("id must be small letters, digits and hyphens".to_owned());
    }
    let colour = match &value["colour"] {
        json::Json::Null => "#455a64".to_owned(),
        colour => colour.as_str().unwrap_or_default().to_owned(),
    };
    if colour.len() != 7 || !colour.starts_with('#') || !colour[1..].bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err("colour must be of the form #rrggbb".to_owned());
    }
    let platforms = value["platforms"].as_array().filter(|list| !list.is_empty());
    let platforms: Option<Vec<String>> = platforms.and_then(|list| list.iter().map(read_platform).collect());
    let platforms = platforms.ok_or(format!("platforms must be a list of {}", PLATFORMS.join(", ")))?;
    let preauth = match &value["preauth"] {
        json::Json::Null => false,
        preauth => preauth.as_bool().ok_or("preauth must be true or false")?,
    };
    let buttons = value["buttons"].as_array().filter(|list| (1..=6).contains(&list.len()));
    let buttons = buttons.ok_or("buttons must be a list of 1 to 6")?.iter().map(read_button);
    Ok(App {
        id,
        name: text("name", 40)?,
        colour,
        platforms,
        preauth,
        link: web_address(value["link"].as_str(), "link")?,
        buttons: buttons.collect::<Result<_, String>>()?,
        login_link_format: match &value["login_link_format"] {
            json::Json::Null => None,
            format => Some(web_address(format.as_str(), "login_link_format")?),
        },
    })
}

/// A word of [`PLATFORMS`], in any case: Prosody's and ejabberd's lists of apps say `Windows` and `iPadOS`.
fn read_platform(value: &json::Json) -> Option<String> {
    let word = value.as_str()?.to_ascii_lowercase();
    let word = if word == "ipados" { "ios" } else { word.as_str() };
    PLATFORMS.contains(&word).then(|| word.to_owned())
}

fn read_button(value: &json::Json) -> Result<Button, String> {
    let object = value.as_object().ok_or("each of the buttons must be an object")?;
    let known = ["text", "url", "magic_link_format"];
    if let Some(unknown) = object.keys().find(|key| !known.contains(&key.as_str())) {
        return Err(format!("a button has no field '{}' (it has {})", unknown.escape_debug(), known.join(", ")));
    }
    let text = value["text"].as_str().filter(|text| !text.is_empty() && text.chars().count() <= 40);
    let text = text.filter(|text| !text.chars().any(crate::key::is_control));
    let magic = match &value["magic_link_format"] {
        json::Json::Null => None,
        format => Some(web_address(format.as_str(), "magic_link_format")?),
    };
    if magic.as_ref().is_some_and(|magic| !magic.contains("{uri}")) {
        return Err("magic_link_format needs {uri}".to_owned());
    }
    Ok(Button {
        text: text.ok_or("text of a button must be a text of 1 to 40 characters")?.to_owned(),
        url: web_address(value["url"].as_str(), "url")?,
        magic_link_format: magic,
    })
}

/// An address that a browser may be sent to: https alone, in ASCII.
fn web_address(text: Option<&str>, field: &str) -> Result<String, String> {
    let good = text.filter(|text| text.starts_with("https://") && text.len() <= 500);
    let good = good.filter(|text| text.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"<>\\^`|".contains(&byte)));
    good.map(str::to_owned).ok_or(format!("{field} must be an address that begins with https://"))
}

/// What names a phone or a tablet. Android names Linux too, an iPhone says "like Mac OS X", and browsers that ask for a
/// desktop's pages name only themselves, so that these are looked for first.
const PHONES: [(&str, &str); 9] = [
    ("Android", "android"),
    ("SamsungBrowser", "android"),
    ("Silk/", "android"),
    ("iPhone", "ios"),
    ("iPad", "ios"),
    ("iPod", "ios"),
    ("CriOS", "ios"),
    ("FxiOS", "ios"),
    ("EdgiOS", "ios"),
];

/// The platforms that the device that asks can be of, the likeliest first; none if unknown.
///
/// Safari on an iPad calls itself Safari on a Mac, and nothing tells the two apart. (Safari sends no client hints.)
pub fn platforms(request: &Request) -> &'static [&'static str] {
    let agent = request.header("user-agent").unwrap_or_default();
    match platform(request) {
        Some("macos") if agent.contains("Version/") && request.header("sec-ch-ua-platform").is_none() => {
            &["macos", "ios"]
        }
        Some(found) => PLATFORMS.iter().find(|word| **word == found).map_or(&[], std::slice::from_ref),
        None => &[],
    }
}

/// The platform of the device that asks, from its client hint (`Sec-CH-UA-Platform`) or its `User-Agent`; none if unknown.
fn platform(request: &Request) -> Option<&'static str> {
    let hint = request.header("sec-ch-ua-platform").map(|hint| hint.trim_matches('"').to_ascii_lowercase());
    let agent = request.header("user-agent").unwrap_or_default();
    // A phone says so in both; only a browser that pretends to be one says so in its name alone.
    if let Some((_, platform)) = PHONES.iter().find(|(sign, _)| agent.contains(sign)) {
        return Some(platform);
    }
    match hint.as_deref() {
        Some("android") => return Some("android"),
        Some("ios") => return Some("ios"),
        Some("macos") => return Some("macos"),
        Some("windows") => return Some("windows"),
        Some("linux" | "chrome os" | "chromium os") => return Some("linux"),
        _ => {}
    }
    let signs = [
        ("Haiku", "haiku"),
        ("Windows", "windows"),
        ("Macintosh", "macos"),
        ("Linux", "linux"),
        ("CrOS", "linux"),
        ("BSD", "linux"),
    ];
    signs.iter().find(|(sign, _)| agent.contains(sign)).map(|(_, platform)| *platform)
}

/// All apps by platform, and how many groups at the beginning are for these platforms.
pub fn groups<'a>(apps: &'a [Arc<App>], here: &[&str]) -> (usize, Vec<Group<'a>>) {
    let group = |platform| {
        let fitting = apps.iter().filter(|app| app.platforms.iter().any(|word| word == platform));
        let apps: Vec<&App> = fitting.map(|app| &**app).collect();
        (!apps.is_empty()).then_some(Group { platform, apps })
    };
    let mut groups: Vec<Group> = PLATFORMS.into_iter().filter_map(group).collect();
    let rank = |group: &Group| here.iter().position(|platform| *platform == group.platform).unwrap_or(here.len());
    groups.sort_by_key(rank);
    let fitting = groups.iter().take_while(|group| rank(group) < here.len()).count();
    (fitting, groups)
}

/// The apps for these platforms, or all by platform where there are none for them.
pub fn for_device<'a>(apps: &'a [Arc<App>], here: &[&str]) -> Vec<Group<'a>> {
    let (fitting, mut groups) = groups(apps, here);
    if fitting > 0 {
        groups.truncate(fitting);
    }
    groups
}

/// Whether a program asks that makes a preview of a link for a chat or a search, rather than a guest.
pub fn is_preview_bot(request: &Request) -> bool {
    let agent = request.header("user-agent").unwrap_or_default().to_ascii_lowercase();
    let signs = [
        "facebookexternalhit",
        "whatsapp",
        "telegrambot",
        "twitterbot",
        "slackbot",
        "discordbot",
        "linkedinbot",
        "skypeuripreview",
        "googlebot",
        "bingbot",
        "applebot",
        "embedly",
        "mastodon",
        "pleroma",
        "signal-desktop",
        "matrix",
        "synapse",
        "redditbot",
        "viber",
        "snapchat",
        "yandexbot",
        "baiduspider",
        "duckduckbot",
        "petalbot",
        "bot/",
        "crawler",
        "spider",
        "preview",
    ];
    signs.iter().any(|sign| agent.contains(sign))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asking(headers: &[(&str, &str)]) -> Request {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Request::new("GET", "/invite?T", headers)
    }

    #[test]
    fn the_embedded_list_is_good_and_loses_nobody() {
        let apps = read(EMBEDDED).unwrap();
        for id in [
            "conversations",
            "yaxim",
            "siskin-im",
            "beagle-im",
            "dino",
            "gajim",
            "monal",
            "monal-macos",
            "renga",
            "cheogram",
            "monocles",
            "kaidan",
            "movim",
            "conversejs",
        ] {
            assert!(apps.iter().any(|app| app.id == id), "{id}");
        }
        for platform in PLATFORMS {
            assert!(apps.iter().any(|app| app.platforms.iter().any(|word| word == platform)), "{platform}");
        }
        let conversations = apps.iter().find(|app| app.id == "conversations").unwrap();
        assert!(conversations.buttons.len() == 2 && conversations.buttons[0].magic_link_format.is_some());
    }

    #[test]
    fn a_bad_entry_is_named_with_its_field() {
        let good = r##""id":"x","name":"X","platforms":["web"],"link":"https://x.example","buttons":[{"text":"x","url":"https://x.example"}]"##;
        assert_eq!(read(&format!("[{{{good}}}]")).unwrap().len(), 1);
        let like_prosodys = good.replace("[\"web\"]", "[\"Windows\", \"iPadOS\"]");
        assert_eq!(read(&format!("[{{{like_prosodys}}}]")).unwrap()[0].platforms, ["windows", "ios"]);
        for (part, text) in [
            ("JSON array", "{}".to_owned()),
            ("line 2 column 5", format!("[{{{good}}},\n    x]")),
            ("app 1: it must be an object", "[1]".to_owned()),
            ("there twice", format!("[{{{good}}},{{{good}}}]")),
            ("'bogus'", format!("[{{{good},\"bogus\":1}}]")),
            ("id", format!("[{{{}}}]", good.replace("\"id\":\"x\"", "\"id\":\"X Y\""))),
            ("name", format!("[{{{}}}]", good.replace("\"name\":\"X\"", "\"name\":\"\""))),
            ("colour", format!("[{{{good},\"colour\":\"red\"}}]")),
            ("platforms", format!("[{{{}}}]", good.replace("web", "amiga"))),
            ("link", format!("[{{{}}}]", good.replacen("https://x.example", "javascript:alert(1)", 1))),
            ("url", format!("[{{{}}}]", good.replace("\"url\":\"https://x.example\"", "\"url\":\"http://x\""))),
        ] {
            let why = read(&text).unwrap_err();
            assert!(why.contains(part), "{why} has no {part}");
        }
    }

    #[test]
    fn devices_are_told_apart() {
        let agent = |agent| platform(&asking(&[("user-agent", agent)]));
        assert_eq!(
            agent("Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36 Chrome/125.0 Mobile"),
            Some("android")
        );
        assert_eq!(agent("Mozilla/5.0 (iPhone; CPU iPhone OS 17_4 like Mac OS X) AppleWebKit/605.1.15"), Some("ios"));
        assert_eq!(agent("Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 Safari"), Some("macos"));
        assert_eq!(agent("Mozilla/5.0 (Windows NT 10.0; Win64; x64) Gecko/20100101 Firefox/126.0"), Some("windows"));
        assert_eq!(agent("Mozilla/5.0 (X11; Linux x86_64; rv:126.0) Gecko/20100101 Firefox/126.0"), Some("linux"));
        assert_eq!(agent("curl/8"), None);
        let hinted =
            asking(&[("user-agent", "Mozilla/5.0 (X11; Linux x86_64)"), ("sec-ch-ua-platform", "\"Android\"")]);
        assert_eq!(platform(&hinted), Some("android"));
        // An iPad with Safari, as a Mac with it; other browsers of an iPad that asks for a desktop's pages name themselves.
        const SAFARI: &str = "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.4 Safari/605.1.15";
        for (agent, expected) in [
            (SAFARI, &["macos", "ios"][..]),
            ("Mozilla/5.0 (Macintosh; Intel Mac OS X 10.15; rv:126.0) Gecko/20100101 Firefox/126.0", &["macos"]),
            (
                "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) CriOS/125 Version/11.1.1 Safari/605.1.15",
                &["ios"],
            ),
            (
                "Mozilla/5.0 (Macintosh; Intel Mac OS X 10.15) AppleWebKit/605.1.15 (KHTML, like Gecko) FxiOS/126.0 Safari/605.1.15",
                &["ios"],
            ),
            (
                "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) SamsungBrowser/25.0 Chrome/121.0 Safari/537.36",
                &["android"],
            ),
            (
                "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Silk/120.4 like Chrome/120.0 Safari/537.36",
                &["android"],
            ),
            ("Mozilla/5.0 (X11; FreeBSD amd64; rv:126.0) Gecko/20100101 Firefox/126.0", &["linux"]),
            ("curl/8", &[]),
        ] {
            assert_eq!(platforms(&asking(&[("user-agent", agent)])), expected, "{agent}");
        }
        assert!(is_preview_bot(&asking(&[("user-agent", "TelegramBot (like TwitterBot)")])));
        assert!(is_preview_bot(&asking(&[("user-agent", "WhatsApp/2.23.20.0 A")])));
        assert!(!is_preview_bot(&asking(&[("user-agent", "Mozilla/5.0 (X11; Linux x86_64) Firefox/126.0")])));
    }

    #[test]
    fn the_apps_of_the_device_come_first_and_nobody_is_lost() {
        let apps: Vec<Arc<App>> = embedded().into_iter().map(Arc::new).collect();
        let platforms = |here: &[&str]| {
            let (fitting, groups) = groups(&apps, here);
            (fitting, groups.iter().map(|group| group.platform).collect::<Vec<_>>())
        };
        assert_eq!(platforms(&[]), (0, PLATFORMS.to_vec()));
        assert_eq!(platforms(&["bogus"]), (0, PLATFORMS.to_vec()));
        assert_eq!(platforms(&["windows"]), (1, vec!["windows", "android", "ios", "macos", "linux", "haiku", "web"]));
        assert_eq!(
            platforms(&["macos", "ios"]),
            (2, vec!["macos", "ios", "android", "windows", "linux", "haiku", "web"])
        );
    }
}
